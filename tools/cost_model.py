"""What the kernels should cost on a chip, beside what was measured.

    python tools/cost_model.py                  prints the tables of docs/performance.md
    python tools/cost_model.py TABLE ...        prints those of them
    python tools/cost_model.py --update         writes the tables into the page
    python tools/cost_model.py --check          tells whether the page has them
    python tools/cost_model.py --report FILE    puts a report of tools/mac_check.sh beside them, or
                                                the JSON of benchmarks/report_times.py
    python tools/cost_model.py --count          counts the instructions anew (NVRTC, nvdisasm)

The model is in tools/cost/. It needs no GPU: instructions of NVIDIA's code are counted in what
NVRTC compiles, and stored; those of Apple's are counted by hand from the source.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import mac_report  # noqa: E402
from cost import compiled  # noqa: E402
from cost.report import compared  # noqa: E402
from cost.tables import TABLES  # noqa: E402
from mac_report_schema import REPORT, problems  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


# What of a report's data the JSON of benchmarks/report_times.py has too.
_TIMES = {
    key: REPORT[key] for key in ("device", "bandwidth_bytes_per_second", "kernels", "variants")
}


def read(path: Path) -> dict[str, Any]:
    """Return the data of a report, or of its times alone; raise ValueError where it is neither."""
    text = path.read_text()
    if path.suffix != ".json":
        return mac_report.read(text)
    found = json.loads(text)
    if isinstance(found, dict) and "version" not in found:
        found = {key: value for key, value in found.items() if key in _TIMES}
        wrong = problems(found, _TIMES, "times")
    else:
        wrong = problems(found, REPORT)
    if wrong:
        raise ValueError("this is neither a report nor its times: " + "; ".join(wrong[:10]))
    assert isinstance(found, dict)
    return found


def filled(text: str) -> str:
    """Return the page with its tables as they are now."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n\n", text)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--update", action="store_true")
    kind.add_argument("--check", action="store_true")
    kind.add_argument("--report", type=Path, metavar="REPORT.md")
    kind.add_argument("--count", action="store_true")
    parser.add_argument("--nvdisasm", help="where nvdisasm is, for --count")
    options = parser.parse_args()
    unknown = [name for name in options.tables if name not in TABLES]
    if unknown:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    if options.count:
        try:
            print(f"{compiled.update(options.nvdisasm)} kernels counted")
        except (OSError, subprocess.CalledProcessError) as error:
            parser.exit(1, f"{error}\n")
    elif options.report:
        try:
            print(compared(read(options.report)))
        except (OSError, ValueError) as error:
            parser.exit(1, f"{options.report}: {error}\n")
    elif options.update:
        PAGE.write_text(filled(PAGE.read_text()))
    elif options.check:
        if filled(PAGE.read_text()) != PAGE.read_text():
            parser.exit(1, f"{PAGE.name} is out of date: python tools/cost_model.py --update\n")
    else:
        for name in options.tables or TABLES:
            print(f"{name}\n\n{TABLES[name]()}\n")


if __name__ == "__main__":
    main()
