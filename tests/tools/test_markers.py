"""Markers come from the folder: a new file has them, whatever it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from places import HELPERS, ROOT, SIMULATORS, TESTS

MARKED = {
    "simulated": ["shaders/test_new.py", "shim/metal/deeper/test_new.py", "simulators/test_new.py"],
    "peer": ["peers/test_new.py"],
}
UNMARKED = ["model/test_new.py", "shim/test_new.py", "test_shaders_new.py"]


@pytest.mark.parametrize("marker", MARKED)
def test_a_new_file_is_marked_by_its_folder(tmp_path, marker):
    for name in [*(name for names in MARKED.values() for name in names), *UNMARKED]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("def test_it():\n    pass\n")
    shutil.copy(TESTS / "conftest.py", tmp_path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(tmp_path), "--import-mode=importlib", "--collect-only", "-q"]
    done = subprocess.run(
        [*command, "-m", marker, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert found == sorted(f"{name}::test_it" for name in MARKED[marker])
