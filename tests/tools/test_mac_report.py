"""The report of tools/mac_check.sh: what it takes, what it leaves out, and its data."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import pytest
from places import TOOLS

sys.path.insert(0, str(TOOLS))
import mac_machine
import mac_report
from mac_report_schema import REPORT, problems

SERIAL, DISPLAY_SERIAL, UUID = "XK4QF7Q2P1", "SN9988776655", "564D0F1A-0CFA-4B6C-9C57-7A0F4D0B9E11"
DISPLAYS = {
    "SPDisplaysDataType": [
        {
            "_name": "Apple M2 Pro",
            "sppci_cores": "19",
            "sppci_model": "Apple M2 Pro",
            "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
            "spdisplays_ndrvs": [
                {"_name": "Jane's Display", "_spdisplays_display-serial-number": DISPLAY_SERIAL}
            ],
        }
    ]
}
# What each tool of a Mac prints, by the arguments that it is asked with.
TOOLS_OF_A_MAC = {
    "sysctl -n machdep.cpu.brand_string": "Apple M2 Pro",
    "sysctl -n hw.model": "Mac14,9",
    "sysctl -n hw.memsize": "17179869184",
    "sysctl -n hw.perflevel0.physicalcpu": "8",
    "sysctl -n hw.perflevel1.physicalcpu": "4",
    "sysctl -n kern.hv_vmm_present": "0",
    "sysctl -n sysctl.proc_translated": "0",
    "sw_vers -productVersion": "15.3.1",
    "sw_vers -buildVersion": "24D70",
    "xcrun --sdk macosx --show-sdk-version": "15.2",
    "xcodebuild -version": "Xcode 16.2\nBuild version 16C5032a",
    "xcrun metal --version": "Apple metal version 32023.404 (metalfe-32023.404)",
    "cc --version": "Apple clang version 16.0.0 (clang-1600.0.26.6)\nInstalledDir: /Users/jdoe/X",
    "system_profiler SPDisplaysDataType -json": json.dumps(DISPLAYS),
    "pmset -g batt": f"Now drawing from 'Battery Power'\n -InternalBattery-0 (id={SERIAL})\t83%",
    "pmset -g": "System-wide power settings:\nCurrently in use:\n lowpowermode         1\n sleep 1",
    "scutil --get ComputerName": "Jane's MacBook Pro",
    "scutil --get LocalHostName": "Janes-MacBook-Pro",
    "id -F": "Jane Q Doe",
    "ioreg -d2 -c IOPlatformExpertDevice": (
        f'  | "IOPlatformSerialNumber" = "{SERIAL}"\n  | "IOPlatformUUID" = "{UUID}"'
    ),
}


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tools of a Mac on PATH, and its user's names; returns the home folder."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in {line.split()[0] for line in TOOLS_OF_A_MAC}:
        answers = "".join(
            f"'{line}') cat <<'END_OF_TEXT'\n{text}\nEND_OF_TEXT\n;;\n"
            for line, text in TOOLS_OF_A_MAC.items()
            if line.split()[0] == name
        )
        tool = folder / name
        tool.write_text(f'#!/bin/sh\ncase "{name} $*" in\n{answers}*) exit 1;; esac\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "jdoe")
    home = tmp_path / "home" / "jdoe"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_the_machine_is_what_the_tools_say(mac):
    found = mac_machine.machine()
    del found["system"], found["architecture"]
    assert found == {
        "chip": "Apple M2 Pro",
        "model": "Mac14,9",
        "memory_bytes": 17179869184,
        "performance_cores": 8,
        "efficiency_cores": 4,
        "virtual_machine": False,
        "translated": False,
        "macos": "15.3.1",
        "macos_build": "24D70",
        "sdk": "15.2",
        "xcode": "Xcode 16.2",
        "compiler": "Apple clang version 16.0.0 (clang-1600.0.26.6)",
        "metal_compiler": "Apple metal version 32023.404 (metalfe-32023.404)",
        "gpu": "Apple M2 Pro",
        "gpu_cores": 19,
        "metal_family": "metal3",
        "displays": 1,
        "power_source": "Battery Power",
        "low_power_mode": True,
    }


def test_a_machine_without_the_tools_says_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = mac_machine.machine()
    assert found["chip"] is found["macos"] is found["power_source"] is found["compiler"] is None
    assert problems(found, REPORT["machine"]) == []


PRIVATE = [
    *("jdoe", "Jane", "Doe", SERIAL, DISPLAY_SERIAL, UUID, "/Users/j", "/home/", "ab/T1x2y3"),
    *("a4:83:e7:1b:2c:3d", "jane@example.com", "Backup Disk", "bob", "C02XL0GTJG5H"),
]
JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.shim.test_ops" name="test_gemv[metal:0]"/>
<testcase classname="tests.shim.test_ops" name="test_gone[metal:0]"><skipped/></testcase>
<testcase classname="tests.shim.test_ops" name="test_bad[metal:0]"><failure
 message="no /Users/jdoe/models/x.gguf">E  at HOME/y
E  /private/var/folders/ab/T1x2y3/T/pytest-of-jdoe/pytest-0: 1 != 2</failure></testcase>
</testsuite></testsuites>"""
LOG = f"""/Users/bob/x.py:3: Error
/var/folders/ab/T1x2y3/T/pytest-of-jdoe/p: gone
HOME/checkout and CHECKOUT/shim/metal/submit.m:12 on Janes-MacBook-Pro.local
Jane Q Doe <jane@example.com> a4:83:e7:1b:2c:3d "{UUID}" {SERIAL}
/Volumes/Backup Disk/models: Serial Number: C02XL0GTJG5H
Error: kIOGPUCommandBufferCallbackErrorImpactingInteractivity"""


def left_by_stages(folder: Path, home: Path) -> Path:
    """Write what the stages of a run leave, with all that is private in it."""
    (folder / "logs").mkdir(parents=True)
    (folder / "results").mkdir()
    lines = ["build\t0\t61", "metallib\tskipped\t0", "suites\t1\t700"]
    lines += ["chunk-32\t0\t9", "chunk-512\t124\t300"]
    (folder / "stages.txt").write_text("\n".join([*lines, "validated\t134\t9\n"]))
    log = LOG.replace("HOME", str(home)).replace("CHECKOUT", str(mac_report.ROOT))
    for name in ("suites", "chunk-512", "metallib", "build"):
        (folder / "logs" / f"{name}.log").write_text("first\n" * 60 + log)
    (folder / "logs" / "suites.xml").write_text(JUNIT.replace("HOME", str(home)))
    (folder / "logs" / "validated.xml").write_text("<testsuites><testsuite>")  # killed meanwhile
    (folder / "results" / "machine.json").write_text(json.dumps(mac_machine.machine()))
    kernel = {
        "name": "gemv Q1_0",
        "shape": "64 x 64",
        "kernels": ["gemv_q1_g128"],
        "seconds": 2e-6,
        "bytes": 4096,
        "share": 0.5,
    }
    variants = {"op": "gemv", "format": "Q1_0", "n_rows": 4096, "k": 4096}
    variants["seconds"] = {"lookup-1": 4.3e-5, "shuffle-2": 3.1e-5}
    times = {
        "device": {"name": "Apple M2 Pro", "index": 0, "unified_memory": True},
        "bandwidth_bytes_per_second": 2e11,
        "kernels": [kernel],
        "variants": [variants],
        "untimed": ["halve"],
    }
    (folder / "results" / "kernels.json").write_text(json.dumps(times))
    model = {"model": "synthetic.gguf", "chunk": 32, "prompt_tokens": 512, "decode_tokens": 64}
    model |= {"load_seconds": 1.5, "first_prompt_seconds": 4.0, "prompt_tokens_per_second": 812.5}
    model |= {"longest_prompt_submission_seconds": 0.04125, "decode_tokens_per_second": 92.1}
    model |= {"decode_device_seconds": 0.0101, "longest_decode_submission_seconds": 0.02}
    model |= {"stats": {"buffers": 3, "work_per_second": 7e11}}
    (folder / "results" / "chunk-32.json").write_text(json.dumps(model))
    (folder / "results" / "chunk-512.part").write_text('{"model": ')  # killed meanwhile
    return folder


def test_the_report_is_complete_and_its_data_fit_the_schema(mac, tmp_path):
    report = mac_report.collect(left_by_stages(tmp_path / "work", mac))
    assert problems(report, REPORT) == []
    by_name = {stage["name"]: stage for stage in report["stages"]}
    outcomes = {name: stage["outcome"] for name, stage in by_name.items()}
    assert outcomes == {
        "build": "passed",
        "metallib": "skipped",
        "suites": "failed",
        "chunk-32": "passed",
        "chunk-512": "timed out",
        "validated": "failed",
    }
    assert by_name["suites"]["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert by_name["validated"]["tests"] is None
    assert by_name["validated"]["may_fail"]
    assert by_name["build"]["tail"] == []
    assert len(by_name["suites"]["tail"]) == mac_report.TAIL_LINES
    assert by_name["suites"]["tail"][-1].endswith("ImpactingInteractivity")
    (failure,) = report["failures"]
    assert failure["test"] == "tests.shim.test_ops::test_bad[metal:0]"
    assert failure["tail"].endswith("1 != 2")
    assert [one["chunk"] for one in report["models"]] == [32]
    text = mac_report.markdown(report)
    assert "| suites | failed | 700 | 1 passed, 1 failed, 1 skipped |" in text
    assert "| gemv Q1_0 | 64 x 64 | 2.0 | 4096 | 50% | gemv_q1_g128 |" in text
    assert "| gemv Q1_0 | 4096 x 4096 | lookup-1 43.0, shuffle-2 31.0 |" in text
    assert "Memory, read plus written by y += x: 200.0 GB/s." in text
    assert "| synthetic.gguf | 32 | 812.5 | 41.2 | 92.1 | 10.10 | 20.00 |" in text
    assert "- gpu cores: 19" in text
    assert mac_report.read(text) == report


def test_nothing_private_goes_into_the_report(mac, tmp_path):
    work = left_by_stages(tmp_path / "work", mac)
    text = mac_report.markdown(mac_report.collect(work))
    assert [word for word in PRIVATE if word.lower() in text.lower()] == []
    assert str(tmp_path) not in text
    assert str(mac_report.ROOT) not in text
    assert str(Path.home()) not in text
    # What a reader needs is still there.
    assert "CHECKOUT/shim/metal/submit.m:12 on HOST" in text
    assert "no /Users/USER" in text
    assert "/Volumes/VOLUME: " in text
    assert "ImpactingInteractivity" in text


@pytest.fixture
def scrubber(mac) -> mac_machine.Scrubber:
    return mac_machine.Scrubber.of_this_machine(mac / "work" / "oxibonsai")


# A text, and what is left of it. HOME is the home folder.
SCRUBBED = {
    "clang -IHOME/clients/acme/venv/include -c x.m": "clang -I~/PATH -c x.m",
    "HOME/work/oxibonsai/shim/a.m:3 HOME/Acme Corp/b.py:4": "CHECKOUT/shim/a.m:3 ~/PATH:4",
    "no '/Users/bob/Acme Corp/Secret plan' there": "no '/Users/USER' there",
    "'HOME/Acme Corp plan'": "'~/PATH'",
    "already ~/clients/acme": "already ~/PATH",
    "HOME: full": "~: full",
    "/Users/Shared/acme/x.gguf": "/Users/USER",
    "/Volumes/Acme Backup: no space left": "/Volumes/VOLUME: no space left",
    "/Volumes/Acme Backup": "/Volumes/VOLUME",
    "/Volumes/Jane's Disk/models/m.gguf is short": "/Volumes/VOLUME is short",
    "'/Volumes/Jane's Disk/my models'": "'/Volumes/VOLUME'",
    "cc -I/Volumes/Acme/inc -c CHECKOUT/x.m": "cc -I/Volumes/VOLUME -c CHECKOUT/x.m",
    "Looking in indexes: https://pypi.acme-internal.example/simple": (
        "Looking in indexes: https://HOST"
    ),
    "https://pypi.org/simple, https://x:tok3n@pypi.acme.example:8443/s": (
        "https://pypi.org/simple, https://HOST"
    ),
    "https://jd:tok3n@files.pythonhosted.org/p.whl": "https://files.pythonhosted.org/p.whl",
    "https://github.com.acme.example/x": "https://HOST",
    "see https://github.com/ggml-org/llama.cpp": "see https://github.com/ggml-org/llama.cpp",
    "HTTPSConnectionPool(host='pypi.acme.example', port=443)": (
        "HTTPSConnectionPool(host='HOST', port=443)"
    ),
    "HTTPSConnectionPool(host='pypi.org', port=443)": (
        "HTTPSConnectionPool(host='pypi.org', port=443)"
    ),
    "connect to 10.0.17.4:3128, node_192.168.1.20_a": "connect to ADDRESS:3128, node_ADDRESS_a",
    "127.0.0.1 Apple clang (clang-1600.0.26.6) 3.12.1, 1.2.3.4.5": (
        "127.0.0.1 Apple clang (clang-1600.0.26.6) 3.12.1, 1.2.3.4.5"
    ),
    "/opt/jdoe_env and env_jdoe/bin": "/opt/USER_env and env_USER/bin",
    "jdoery is another word": "jdoery is another word",
}


@pytest.mark.parametrize("text", SCRUBBED)
def test_what_is_private_leaves_a_text(mac, scrubber, text):
    left = SCRUBBED[text]
    assert scrubber.text(text.replace("HOME", str(mac))) == left
    assert scrubber.text(left) == left, "once more changes nothing"


def test_a_name_at_the_place_where_a_text_is_cut_is_found(mac, tmp_path):
    work = tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    (work / "stages.txt").write_text("suites\t1\t3\n")
    name = "Jane Q Doe"
    line = "x" * (mac_report.TAIL_COLUMNS - 7) + f" {name} and more"
    message = "y" * (mac_report.MESSAGE_COLUMNS - 7) + f" {name}"
    end = f"{name}\n" + "z" * 495  # of which the last 500 stay
    (work / "logs" / "suites.log").write_text(line)
    (work / "logs" / "suites.xml").write_text(
        f'<testsuite><testcase classname="a" name="b"><failure message="{message}">{end}</failure>'
        "</testcase></testsuite>"
    )
    text = mac_report.markdown(mac_report.collect(work))
    assert "Jane" not in text
    assert "Doe" not in text
    assert "x USER" in text


def test_a_stage_that_never_ended_is_reported_as_begun(mac, tmp_path):
    work = tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    (work / "stages.txt").write_text("demo\tbegun\t0\ndemo\t0\t9\nsuites\tbegun\t0\nhalf")
    (work / "logs" / "suites.log").write_text("the last test\n")
    report = mac_report.collect(work)
    assert [(s["name"], s["outcome"], s["seconds"]) for s in report["stages"]] == [
        ("demo", "passed", 9),
        ("suites", "begun", 0),
    ]
    assert report["stages"][1]["tail"] == ["the last test"]
    assert "| suites | begun | 0 |" in mac_report.markdown(report)


def test_a_build_that_failed_is_reported_too(mac, tmp_path):
    work = tmp_path / "work"
    (work / "logs").mkdir(parents=True)
    (work / "stages.txt").write_text("build\t1\t3\n")
    (work / "logs" / "build.log").write_text("error: Homebrew's GCC ('gcc-14') cannot compile\n")
    report = mac_report.collect(work)
    assert problems(report, REPORT) == []
    text = mac_report.markdown(report)
    assert "error: Homebrew's GCC ('gcc-14') cannot compile" in text
    assert mac_report.read(text)["kernels"] == []


def test_a_report_full_of_failures_fits_an_issue(mac, tmp_path):
    work = left_by_stages(tmp_path / "work", mac)
    case = (
        '<testcase classname="tests.shim.test_ops" name="test_{}[metal:0]"><failure message="{}">'
        "{}</failure></testcase>"
    )
    many = "".join(case.format(i, "m" * 900, "E  1 != 2\n" * 200) for i in range(400))
    for name in mac_report.SUITES:
        (work / "logs" / f"{name}.xml").write_text(f"<testsuite>{many}</testsuite>")
    stages = [f"stage-{i}" for i in range(12)]
    (work / "stages.txt").write_text("".join(f"{name}\t1\t9\n" for name in stages))
    times = json.loads((work / "results" / "kernels.json").read_text())
    # As many as benchmarks/report_times.py times on a Mac.
    times["kernels"] = [one | {"name": "gemv TQ2_0_g128 norm"} for one in times["kernels"] * 120]
    seconds = {f"lookup-{i}": 4.3e-5 for i in range(12)}
    times["variants"] = [one | {"seconds": seconds} for one in times["variants"] * 9]
    (work / "results" / "kernels.json").write_text(json.dumps(times))
    for name in stages:
        (work / "logs" / f"{name}.log").write_text(("x" * 1000 + "\n") * 99 + "the last line\n")
    report = mac_report.collect(work)
    text = mac_report.markdown(report)
    assert len(text) <= mac_report.LIMIT < 65_536
    assert mac_report.read(text) == report
    assert len(report["failures"]) + report["failures_left_out"] == 1200
    assert f"- and {report['failures_left_out']} more" in text
    assert all(stage["tail"][-1] == "the last line" for stage in report["stages"])
    # A report that is short enough loses nothing.
    (work / "stages.txt").write_text("suites\t1\t9\n")
    for name in mac_report.SUITES:
        (work / "logs" / f"{name}.xml").write_text(
            f"<testsuite>{''.join(case.format(i, 'm', 'E') for i in range(3))}</testsuite>"
        )
    assert mac_report.collect(work)["failures_left_out"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("kernels"), "report.kernels is missing"),
        (lambda r: r.update(extra=1), "report.extra is unknown"),
        (lambda r: r.update(version=True), "report.version is bool, not int"),
        (lambda r: r["stages"][0].update(seconds="3"), r"stages\[0\].seconds is str, not int"),
        (lambda r: r["kernels"][0].update(bytes=None), r"kernels\[0\].bytes is NoneType, not int"),
        (lambda r: r.update(models={}), "report.models is dict, not a list"),
        (lambda r: r["machine"].update(chip=[1]), "report.machine.chip is list"),
    ],
)
def test_a_report_that_does_not_fit_is_refused_with_the_place(mac, tmp_path, change, message):
    report = copy.deepcopy(mac_report.collect(left_by_stages(tmp_path / "work", mac)))
    change(report)
    text = f"# Check\n\n~~~~json\n{json.dumps(report)}\n~~~~\n"
    with pytest.raises(ValueError, match=message):
        mac_report.read(text)


def test_a_text_without_data_is_no_report():
    with pytest.raises(ValueError, match="no block of JSON"):
        mac_report.read("# Check of the metal driver on a Mac\n")


@pytest.mark.parametrize("user", ["runner", "root", "Metal"])
def test_a_users_name_that_is_an_ordinary_word_spoils_no_text(monkeypatch, tmp_path, user):
    for name in ("USER", "LOGNAME", "SUDO_USER"):
        monkeypatch.setenv(name, user)
    monkeypatch.setenv("PATH", str(tmp_path))
    scrubber = mac_machine.Scrubber.of_this_machine(tmp_path / "checkout")
    text = "tests.shim.metal::test_root[metal:0] on the runner"
    assert scrubber.text(text) == text
