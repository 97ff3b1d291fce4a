"""The report of tools/mac_check.sh, and how to read one that came back.

    python tools/mac_report.py build/mac            writes the report from what the stages left
    python tools/mac_report.py --machine            prints what the machine is, as JSON
    python tools/mac_report.py --read REPORT.md     prints the JSON of a report, checked

A report goes to strangers. It takes single fields of what the system's tools print. Out of those
and of the stages' text come the user's, the owner's and the machine's names as the system has them,
paths in home folders and on other volumes, hosts of URLs that are not generally known, mail, MAC
and IPv4 addresses, and serial numbers. What a person has called a thing elsewhere stays: whoever
sends a report reads it before.

While a stage runs, and where a Mac hung in one, its outcome is "begun". This file needs nothing but
Python: it also reports builds that failed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from mac_machine import Scrubber, machine, output  # noqa: E402
from mac_report_schema import REPORT, problems  # noqa: E402

VERSION = 2
TAIL_LINES = 20  # of the log of a stage that failed
TAIL_COLUMNS = 300
MESSAGE_COLUMNS = 300
MAX_FAILURES = 50
LIMIT = 60_000  # characters: an issue on GitHub takes 65,536
OUTCOMES = {"0": "passed", "124": "timed out", "skipped": "skipped", "begun": "begun"}
# Stages whose output belongs into the report also where they pass.
SHOWN = ("devices",)
# Stages whose failure is a result like others.
MAY_FAIL = ("validated",)
SUITES = ("suites", "cpu", "validated")


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def cases(path: Path) -> list[ET.Element]:
    """Return the test cases of a JUnit file; none where a killed run left no file, or half."""
    try:
        return list(ET.parse(path).iter("testcase"))
    except (OSError, ET.ParseError):
        return []


def counts(path: Path) -> dict[str, int] | None:
    found = {"passed": 0, "failed": 0, "skipped": 0}
    for case in cases(path):
        bad = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None
        found["failed" if bad else "skipped" if skipped else "passed"] += 1
    return found if any(found.values()) else None


def failures(stage: str, path: Path, clean: Callable[[str], str]) -> list[dict[str, str]]:
    found = []
    for case in cases(path):
        for kind in ("failure", "error"):
            node = case.find(kind)
            if node is not None:
                lines = (node.text or "").strip().splitlines()[-8:]
                found.append(
                    {
                        "stage": stage,
                        "test": f"{case.get('classname')}::{case.get('name')}",
                        "message": clean(node.get("message") or "")[:MESSAGE_COLUMNS],
                        "tail": clean("\n".join(lines))[-500:],
                    }
                )
    return found


def stages(work: Path, clean: Callable[[str], str]) -> list[dict[str, Any]]:
    """Return the stages with what is known last of each: first that it has begun, then its end."""
    found = []
    lines = [line.split("\t") for line in text_of(work / "stages.txt").splitlines()]
    for name, (status, seconds) in {line[0]: line[1:] for line in lines if len(line) == 3}.items():
        outcome = OUTCOMES.get(status, "failed")
        log = text_of(work / "logs" / f"{name}.log").strip().splitlines()
        found.append(
            {
                "name": name,
                "outcome": outcome,
                "status": status,
                "seconds": int(seconds),
                "may_fail": name in MAY_FAIL,
                "tests": counts(work / "logs" / f"{name}.xml"),
                "tail": [clean(x)[:TAIL_COLUMNS] for x in log[-TAIL_LINES:]]
                if outcome != "passed" or name in SHOWN
                else [],
            }
        )
    return found


def result(work: Path, name: str) -> Any:
    """Return what a stage wrote as JSON, or None."""
    try:
        return json.loads(text_of(work / "results" / f"{name}.json"))
    except ValueError:
        return None


def collect(work: Path) -> dict[str, Any]:
    """Return the whole report as data, with nothing private left in any text."""
    scrubber = Scrubber.of_this_machine(ROOT)
    found = stages(work, scrubber.text)
    times = result(work, "kernels") or {}
    names = ["demo-model", *(s["name"] for s in found if s["name"].startswith("chunk-"))]
    models = [one for one in (result(work, name) for name in names) if one is not None]
    bad = [
        {
            "stage": "kernels",
            "test": one["name"],
            "message": scrubber.text(one["error"])[:MESSAGE_COLUMNS],
            "tail": "",
        }
        for one in times.get("failed") or []
    ]
    for name in SUITES:
        bad += failures(name, work / "logs" / f"{name}.xml", scrubber.text)
    report = {
        "version": VERSION,
        "commit": output("git", "-C", str(ROOT), "describe", "--always", "--dirty") or None,
        "python": platform.python_version(),
        "machine": result(work, "machine") or {},
        "device": times.get("device"),
        "stages": found,
        "failures": bad,
        "failures_left_out": 0,
        "bandwidth_bytes_per_second": times.get("bandwidth_bytes_per_second"),
        "kernels": times.get("kernels") or [],
        "variants": times.get("variants") or [],
        "untimed": times.get("untimed") or [],
        "models": models,
    }
    clean = scrubber.everywhere(rounded(report))
    assert isinstance(clean, dict)
    return fitted(clean)


def rounded(value: Any) -> Any:
    """Return data with six digits of each number: clocks do not give more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def fitted(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report whose text fits LIMIT, with the longest ends of logs and lists that do."""
    failures, found = report["failures"], report
    for lines, n in ((TAIL_LINES, MAX_FAILURES), (10, 30), (5, 20), (3, 10), (1, 5), (1, 0)):
        found = {
            **report,
            "stages": [{**stage, "tail": stage["tail"][-lines:]} for stage in report["stages"]],
            "failures": failures[:n],
            "failures_left_out": max(len(failures) - n, 0),
        }
        if len(markdown(found)) <= LIMIT:
            break
    return found


def dumped(report: dict[str, Any]) -> str:
    """Return the data as JSON with a line for each element of a list: short, and to be compared."""
    lines = []
    for key, value in report.items():
        if isinstance(value, list) and value:
            inner = ",\n".join(json.dumps(one) for one in value)
            lines.append(f"{json.dumps(key)}: [\n{inner}\n]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}"


def cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def table(header: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(cell, line))} |" for line in lines] + [""]


def markdown(report: dict[str, Any]) -> str:
    """Return the report as people read it, with the whole of it as JSON at its end."""
    lines = ["# Check of the metal driver on a Mac", ""]
    shown = {"commit": report["commit"], "Python": report["python"], **report["machine"]}
    lines += [f"- {key.replace('_', ' ')}: {cell(value)}" for key, value in shown.items()]
    lines += ["", "## Stages", ""]
    rows = []
    for stage in report["stages"]:
        tests = stage["tests"]
        text = ", ".join(f"{n} {kind}" for kind, n in tests.items()) if tests else ""
        outcome = stage["outcome"] + (" (may fail)" if stage["may_fail"] else "")
        rows.append([stage["name"], outcome, stage["seconds"], text])
    lines += table(["stage", "outcome", "seconds", "tests"], rows)
    if report["models"]:
        lines += ["## Models", ""]
        rows = [
            [
                one["model"],
                one["chunk"],
                f"{one['prompt_tokens_per_second']:.1f}",
                f"{1e3 * one['longest_prompt_submission_seconds']:.1f}",
                f"{one['decode_tokens_per_second']:.1f}",
                f"{1e3 * one['decode_device_seconds']:.2f}",
                f"{1e3 * one['longest_decode_submission_seconds']:.2f}",
            ]
            for one in report["models"]
        ]
        header = ["model", "chunk", "prompt tokens/s", "longest submission ms"]
        header += ["decode tokens/s", "device ms a token", "longest ms"]
        lines += table(header, rows)
    if report["kernels"]:
        rate = (report["bandwidth_bytes_per_second"] or 0) / 1e9
        lines += ["## Kernels", "", f"Memory, read plus written by y += x: {rate:.1f} GB/s.", ""]
        rows = [
            [
                one["name"],
                one["shape"],
                f"{1e6 * one['seconds']:.1f}",
                one["bytes"],
                "" if one["share"] is None else f"{one['share']:.0%}",
                ", ".join(one["kernels"]),
            ]
            for one in report["kernels"]
        ]
        lines += table(["operation", "shape", "us", "bytes", "share", "kernels"], rows)
        if report["untimed"]:
            lines += [f"Not timed: {', '.join(report['untimed'])}.", ""]
    if report["variants"]:
        lines += ["## Variants", "", "Times in us, the default first.", ""]
        rows = [
            [
                f"{one['op']} {one['format']}",
                f"{one['n_rows']} x {one['k']}",
                ", ".join(f"{name} {1e6 * s:.1f}" for name, s in one["seconds"].items()),
            ]
            for one in report["variants"]
        ]
        lines += table(["product", "matrix", "variants"], rows)
    left_out = report["failures_left_out"]
    if report["failures"] or left_out:
        lines += ["## Failures", ""]
        for one in report["failures"]:
            lines.append(f"- {one['stage']}: `{one['test']}`: {cell(one['message'])}")
        lines += (
            [f"- and {report['failures_left_out']} more"] if report["failures_left_out"] else []
        )
        lines.append("")
    for stage in report["stages"]:
        if stage["tail"]:
            lines += [f"## The end of {stage['name']}", "", "~~~~text", *stage["tail"], "~~~~", ""]
    lines += ["## Data", "", "~~~~json", dumped(report), "~~~~", ""]
    return "\n".join(lines)


def read(text: str) -> dict[str, Any]:
    """Return the data of a report; raise ValueError where it has none that fits REPORT."""
    found = re.findall(r"^~~~~json$(.*?)^~~~~$", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError("the text has no block of JSON: it is not a whole report")
    report = json.loads(found[-1])
    wrong = problems(report, REPORT)
    if wrong:
        raise ValueError("this is not a report of this version: " + "; ".join(wrong[:10]))
    assert isinstance(report, dict)
    return report


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("work", nargs="?", type=Path, help="the folder of the stages")
    kind.add_argument("--machine", action="store_true")
    kind.add_argument("--read", type=Path, metavar="REPORT.md")
    options = parser.parse_args()
    if options.machine:
        print(json.dumps(machine(), indent=1))
    elif options.read:
        try:
            print(json.dumps(read(options.read.read_text()), indent=1))
        except ValueError as error:
            parser.exit(1, f"{options.read}: {error}\n")
    else:
        print(markdown(collect(options.work)))


if __name__ == "__main__":
    main()
