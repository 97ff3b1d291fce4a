"""What the device fixture compiles ahead on a Mac."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import warm_up
from places import SHADERS


def test_one_kernel_of_every_family_is_compiled():
    asked = []
    kernels = warm_up.compile_families(SimpleNamespace(pipeline=asked.append))
    assert asked == kernels
    files = {path.stem: path.read_text() for path in SHADERS.glob("*.metal")}
    owners = [[name for name, text in files.items() if kernel in text] for kernel in kernels]
    assert len(kernels) == len(files)
    assert all(any(name in owner for owner in owners) for name in files)


@pytest.mark.parametrize(
    ("driver", "platform", "slow"),
    [("metal", "darwin", True), ("metal", "linux", False), ("cpu", "darwin", False)],
)
def test_only_metal_on_a_mac_is_warmed_up(driver, platform, slow):
    assert warm_up.is_slow_at_first(SimpleNamespace(driver=driver), platform) is slow


@pytest.mark.device("metal", "cuda")
def test_the_kernels_are_found_by_a_device_without_constants(device):
    """Their function constants have defaults: a warm-up that raises would fail every test."""
    warm_up.compile_families(device)
