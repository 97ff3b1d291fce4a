"""What conftest.py asks of a run of the device suite on the simulated Metal, broken on purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from metal_sim import build
from places import HELPERS, ROOT, SIMULATORS, TESTS

KEPT = "import numpy as np\nKEPT = []\n"
BODIES = {
    "nothing": ("def test(device):\n    device.buffer(64).close()\n", None),
    "a buffer that is kept": (
        KEPT + "from oxibonsai import metal\n"
        "def test(device):\n"
        "    KEPT.append(metal.Device('metal').buffer(64))\n",
        "left alive: MTLDevice",
    ),
    "a device that is kept": (
        KEPT + "from oxibonsai import metal\ndef test():\n    KEPT.append(metal.Device('metal'))\n",
        "left alive: MTLDevice",
    ),
    "a line on stderr": (
        "import os\ndef test(device):\n    os.write(2, b'autorelease called without pool')\n",
        "written to stderr",
    ),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_run_fails_for_what_it_leaves_behind(tmp_path: Path, body: str) -> None:
    try:
        library = build.build()
    except build.Unavailable as error:
        if os.environ.get("OXIBONSAI_REQUIRE_METAL_SIM") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    source, expected = BODIES[body]
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OXIBONSAI_")}
    done = subprocess.run(
        [*command, "--driver", str(library), "-c", os.devnull, "test_one.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": os.pathsep.join(map(str, (SIMULATORS, HELPERS, ROOT)))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (1 if expected else 0), done.stdout + done.stderr
    assert (expected or "passed") in done.stdout
