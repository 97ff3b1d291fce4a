"""What an import says where the compiled modules are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import run_python
from places import ROOT


@pytest.mark.parametrize("statement", ["import oxibonsai.metal", "from oxibonsai import model"])
def test_a_source_folder_that_shadows_an_install_says_so(tmp_path: Path, statement: str):
    left_out = shutil.ignore_patterns("*.so", "data", "__pycache__")
    shutil.copytree(ROOT / "oxibonsai", tmp_path / "oxibonsai", ignore=left_out)
    done = subprocess.run(
        [sys.executable, "-c", statement],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: oxibonsai.metal is not compiled in {tmp_path}/oxibonsai. If oxibonsai is "
        "installed, this folder is found first: start Python in another one. To use this folder, "
        "compile in it: make build, or pip install -e ."
    )


def test_a_second_interpreter_of_the_process_is_refused():
    run_python(
        """
        import os, sys
        import oxibonsai.metal
        name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
        interpreters = __import__(name)
        reading, writing = os.pipe()
        interpreters.run_string(interpreters.create(), f'''
        try:
            import oxibonsai.metal
        except ImportError as error:
            import os
            os.write({writing}, str(error).encode())
        ''')
        os.close(writing)
        answer = os.read(reading, 1000)
        assert b"interpreter" in answer, answer
        """
    )
