"""What loading a model holds in memory, pages of the mapped file included."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest
from places import TOOLS


# In a process of its own, whose peak is that of the load; only on the cpu device all of a model's
# memory is the process's.
@pytest.mark.device("cpu")
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("format_name", ["PTQ1_0", "Q1_0"])
def test_pages_of_the_file_are_dropped_as_they_are_uploaded(device_name, tmp_path, format_name):
    path = tmp_path / "model.gguf"
    write = runpy.run_path(str(TOOLS / "synthetic_model.py"))["main"]
    shape = ["--shape", "bonsai-1.7b", "--layers", "8", "--vocab", "2048", "--head", "tied"]
    write([*shape, "--format", format_name, "--out", str(path)])
    done = subprocess.run(
        [sys.executable, TOOLS / "measure_load.py", path, "--device", device_name],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    path.unlink()
    found = json.loads(done.stdout)
    # Rows are padded to panels, and every tensor to 16 bytes: nothing that large layers show.
    assert found["weight_bytes"] <= 1.001 * found["file_bytes"]
    loaded = found["load_peak_bytes"] - found["import_peak_bytes"]
    assert loaded <= 1.1 * found["weight_bytes"], "with mapped pages twice the weights"
