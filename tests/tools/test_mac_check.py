"""tools/mac_check.sh: each stage rehearsed, a hung one, and what bash 3.2 and macOS lack."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT, TOOLS

sys.path.insert(0, str(TOOLS))
import mac_report
import metallib

SCRIPT = TOOLS / "mac_check.sh"
STAGES = [
    *("build", "metallib", "devices", "demo", "kernels", "demo-model", "synthetic", "chunk-32"),
    *("chunk-128", "chunk-512", "precompiled", "suites", "cpu", "validated"),
]
XCRUN = """#!/bin/sh
[ "$1" != metal ] || { echo "Apple metal version 32023.404"; exit 0; }
for last; do :; done
[ "$3" = metal ] || [ "$3" = metallib ] || exit 1
echo "$3" >"$last"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout as it is built, with its times, which make a build find no work."""
    place = tmp_path / "checkout"
    left_out = shutil.ignore_patterns(".git", ".venv", ".cache", "build", "dist", "__pycache__")
    shutil.copytree(ROOT, place, ignore=left_out)
    return place


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a person named jdoe with Xcode, whose tools are in `folder`."""
    folder.mkdir()
    for name, text in (("xcrun", XCRUN), ("caffeinate", '#!/bin/sh\necho "$*" >"$0.log"\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "OXIBONSAI_"))}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    home = folder.parent / "home" / "jdoe"
    home.mkdir(parents=True)
    return kept | {"PATH": path, "USER": "jdoe", "LOGNAME": "jdoe", "HOME": str(home)}


@pytest.mark.slow
def test_the_rehearsal_runs_every_stage_and_its_report_is_whole(checkout, tmp_path):
    # Nothing is downloaded: what the given Python has is all that it takes.
    env = environment(tmp_path / "tools") | {"PIP_NO_INDEX": "1"}
    before = {path for path in tmp_path.rglob("*") if checkout not in path.parents}
    # The report goes into the folder where the command is given.
    command = [checkout / "tools" / "mac_check.sh", "--rehearse", "--python", sys.executable]
    done = subprocess.run(
        [*command, "report.md"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "report.md").read_text()
    report = mac_report.read(text)
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert {stage["outcome"] for stage in report["stages"]} == {"passed"}
    by_name = {stage["name"]: stage for stage in report["stages"]}
    for name in ("suites", "cpu", "validated"):
        assert by_name[name]["tests"]["passed"] > 100
        assert by_name[name]["tests"]["failed"] == 0
    assert report["device"]["driver"] == "cpu"
    assert any(line.startswith("cpu") for line in by_name["devices"]["tail"])
    assert [one["chunk"] for one in report["models"]] == [32, 32, 128, 512]
    assert all(one["decode_tokens_per_second"] > 0 for one in report["models"])
    assert len(report["kernels"]) > 100
    assert all(one["seconds"] > 0 and one["kernels"] for one in report["kernels"])
    assert "jdoe" not in text
    assert str(tmp_path) not in text
    # Outside the checkout: the report; what pip keeps, or rustc, which pip asks for its version.
    after = {path for path in tmp_path.rglob("*") if checkout not in path.parents}
    kept = [tmp_path / "home" / "jdoe" / name for name in (".cache", ".rustup")]
    kept.append(tmp_path / "tools")
    made = {p for p in after - before if not any(k == p or k in p.parents for k in kept)}
    assert made == {tmp_path / "report.md"}
    assert not list((checkout / "build" / "mac").glob("*.gguf"))


def test_a_stage_that_hangs_is_ended_with_what_it_started(checkout, tmp_path):
    python = checkout / "build" / "mac" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # Neither it nor its child listens to SIGTERM.
    python.write_text(
        "#!/bin/bash\ntrap '' TERM\necho begun\n"
        f"(trap '' TERM; while :; do date >{tmp_path}/alive; sleep 0.1; done) &\n"
        "while :; do sleep 0.1; done\n"
    )
    python.chmod(0o755)
    env = environment(tmp_path / "tools") | {"MAC_CHECK_LIMIT": "1"}
    command = [checkout / "tools" / "mac_check.sh", "--rehearse", "--python", sys.executable]
    done = subprocess.run(
        [*command, "--only", "devices", tmp_path / "report.md"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "failed: devices" in done.stdout
    assert (tmp_path / "tools" / "caffeinate.log").read_text().startswith("-dims -w ")
    (stage,) = mac_report.read((tmp_path / "report.md").read_text())["stages"]
    assert (stage["name"], stage["outcome"]) == ("devices", "timed out")
    assert stage["tail"][0] == "begun"
    assert stage["tail"][-1] == "(ended after its limit)"
    (tmp_path / "alive").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists(), "a child of the stage is still running"


def begin_hanging(checkout: Path, tmp_path: Path, text: str = "") -> subprocess.Popen[str]:
    """Begin a run whose stage "devices" does not end, and wait until it is in it."""
    python = checkout / "build" / "mac" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    metallib_ends = 'case "$*" in *metallib.py*) exit 0 ;; esac'
    python.write_text(f"#!/bin/bash\n{metallib_ends}\n{text}\necho hanging\nexec sleep 60\n")
    python.chmod(0o755)
    script, report = str(checkout / "tools" / "mac_check.sh"), str(tmp_path / "report.md")
    process = subprocess.Popen(
        [script, "--rehearse", "--python", sys.executable, "--only", "metallib,devices", report],
        env=environment(tmp_path / "tools")
        | {"PYTEST_ADDOPTS": "-x", "OXIBONSAI_DEVICE": "no such device"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = checkout / "build" / "mac" / "logs" / "devices.log"
    end = time.monotonic() + 60
    while not (log.exists() and "hanging" in log.read_text()):
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            pytest.fail(process.communicate(timeout=60)[0])
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_does_not_end_leaves_a_report_of_where_it_was(checkout, tmp_path, number):
    """A Mac that hangs is like SIGKILL: nothing runs after it."""
    with begin_hanging(checkout, tmp_path) as process:
        time.sleep(1.2)
        process.send_signal(number)
        text, _ = process.communicate(timeout=60)
    stages = mac_report.read((tmp_path / "report.md").read_text())["stages"]
    outcomes = {stage["name"]: stage["outcome"] for stage in stages}
    assert outcomes == {"metallib": "passed", "devices": "begun"}
    if number == signal.SIGKILL:
        return
    assert process.returncode == 130
    assert f"interrupted; the report so far: {tmp_path / 'report.md'}" in text
    assert stages[-1]["tail"] == ["hanging"]
    assert stages[-1]["seconds"] >= 1


def test_what_the_person_has_set_changes_no_stage(checkout, tmp_path):
    with begin_hanging(checkout, tmp_path, "env") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    log = (checkout / "build" / "mac" / "logs" / "devices.log").read_text()
    assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1" in log
    assert "OXIBONSAI_TUNING=0" in log
    assert "PYTEST_ADDOPTS" not in log
    assert "no such device" not in log


def test_without_xcode_the_metallib_is_left_out(checkout, tmp_path):
    env = environment(tmp_path / "tools")
    (tmp_path / "tools" / "xcrun").write_text("#!/bin/sh\nexit 72\n")
    command = [checkout / "tools" / "mac_check.sh", "--rehearse", "--python", sys.executable]
    only = ["--only", "metallib,precompiled", tmp_path / "report.md"]
    done = subprocess.run([*command, *only], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = mac_report.read((tmp_path / "report.md").read_text())["stages"]
    assert [(stage["name"], stage["outcome"], stage["tail"]) for stage in stages] == [
        ("metallib", "skipped", [f"no offline Metal compiler. {metallib.HELP}"]),
        ("precompiled", "skipped", ["no metallib was made"]),
    ]


@pytest.mark.parametrize("arguments", [[], ["--only"], ["--unknown", "r.md"], ["a.md", "b.md"]])
def test_wrong_arguments_show_the_usage(arguments):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "tools/mac_check.sh [--python PYTHON]" in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_a_machine_that_is_no_mac_is_told_of_the_rehearsal(tmp_path):
    done = subprocess.run([SCRIPT, tmp_path / "r.md"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "not a Mac: tools/mac_check.sh --rehearse" in done.stderr


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = [SCRIPT, "--rehearse", "--python", old, tmp_path / "r.md"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Python 3.10 or newer is needed" in done.stderr


# What came after bash 3.2, and commands and options of GNU's tools that macOS lacks.
NOT_THERE = {
    "bash 4": r"\b(mapfile|readarray|coproc)\b|declare -[An]|local -n|\|&|&>>|;;&|;&|\[\[ -v|"
    r"\$\{\w+(,,?|\^\^?|@[A-Z])\}|\$\{\w+\[-|\$EPOCH|\$BASHPID|wait -n|printf -v \w+\[|%\(.*\)T",
    "GNU": r"\b(timeout|nproc|realpath|readlink -f|sed -i|sed -r|date -d|date \+%N|stat -c|"
    r"grep -\w*P|xargs -r|head -n -|mktemp --|cp --|sort -V|tac|sha256sum|free|numfmt)\b",
}


@pytest.mark.parametrize("kind", NOT_THERE)
def test_the_script_uses_only_what_macos_has(kind):
    lines = SCRIPT.read_text().splitlines()
    code = [line for line in lines if not line.lstrip().startswith("#")]
    assert len(code) > 100
    assert [line for line in code if re.search(NOT_THERE[kind], line)] == []
    # The expression finds what it is for.
    bad = {"bash 4": "mapfile -t lines <file", "GNU": "timeout 5 sleep 9"}[kind]
    assert re.search(NOT_THERE[kind], bad)
