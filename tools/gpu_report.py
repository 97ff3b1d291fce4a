"""Write the report of tools/gpu_check.sh from what its stages left: Markdown on standard output.

python tools/gpu_report.py build/gpu
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import embed_shaders  # noqa: E402

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
_ENTRY = re.compile(rb"msl_entry_(\w+)\0")


def output(*command: str) -> str:
    """Return the first lines of a command's output, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"({error})"
    return (done.stdout or done.stderr).strip()


def machine() -> list[str]:
    query = "--query-gpu=name,driver_version,memory.total"
    gpu = output("nvidia-smi", query, "--format=csv,noheader")
    nvcc = output("nvcc", "--version").splitlines()[-1:]
    commit = os.environ.get("GPU_CHECK_COMMIT") or output("git", "describe", "--always", "--dirty")
    system = f"{os.cpu_count()} processors, Linux {platform.release()}"
    return [
        f"- GPU, driver, memory: {gpu}",
        f"- nvcc: {' '.join(nvcc)}",
        f"- compute-sanitizer: {output('compute-sanitizer', '--version').splitlines()[-1:]}",
        f"- Python {platform.python_version()}, {system}",
        f"- commit {commit}",
    ]


def tests(path: Path) -> str:
    """Return the counts of a JUnit file."""
    if not path.is_file():
        return "no report"
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ET.parse(path).iter("testsuite"):
        for key in total:
            total[key] += int(suite.get(key, 0))
    bad, skipped = total["failures"] + total["errors"], total["skipped"]
    return f"{total['tests'] - bad - skipped} passed, {bad} failed, {skipped} skipped"


def failures(path: Path) -> list[str]:
    if not path.is_file():
        return []
    found = []
    for case in ET.parse(path).iter("testcase"):
        for kind in ("failure", "error"):
            node = case.find(kind)
            if node is not None:
                message = " ".join((node.get("message") or "").splitlines()[:1])[:300]
                found.append(f"- `{case.get('classname')}::{case.get('name')}`: {message}")
    return found


def compiled_kernels(cache: Path) -> set[str]:
    """Return the names of the kernels in a cache directory, by the symbols of its entries."""
    found: set[str] = set()
    for path in cache.glob("oxibonsai/cuda/*"):
        found.update(name.decode() for name in _ENTRY.findall(path.read_bytes()))
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    logs = work / "logs"
    print("# Check of the cuda driver\n")
    print("\n".join(machine()))
    print("\n| stage | exit status | seconds | tests |\n|---|---|---|---|")
    for line in (work / "stages.txt").read_text().splitlines():
        name, status, seconds = line.split("\t")
        print(f"| {name} | {status} | {seconds} | {tests(logs / f'{name}.xml')} |")
    shipped = {name for family in embed_shaders.families() for name in family.functions}
    print("\n## compute-sanitizer\n")
    for tool in SANITIZERS:
        path = logs / f"{tool}.log"
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            found = [line for line in lines if line.startswith("====")]
            missing = sorted(shipped - compiled_kernels(work / f"cache-{tool}"))
            print(
                f"- {tool}: {found[-1].strip('= ') if found else 'no summary'}; pipelines made for "
                f"{len(shipped) - len(missing)} of the {len(shipped)} kernels that ship"
                + (f", without {', '.join(missing)}" if missing else "")
            )
    bad = [line for path in sorted(logs.glob("*.xml")) for line in failures(path)]
    if bad:
        print("\n## Failures\n")
        print("\n".join(bad[:100]))
    bench = logs / "bench.log"
    if bench.is_file():
        print("\n## Times\n")
        print(bench.read_text(errors="replace").strip())


if __name__ == "__main__":
    main()
