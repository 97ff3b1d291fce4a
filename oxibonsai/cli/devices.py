"""``oxibonsai devices``: the devices, the default first."""

from __future__ import annotations

import argparse
from typing import TextIO

from oxibonsai import metal

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add no options: there are none."""


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    for device in metal.devices():
        threads = f", {device.threads} threads" if device.threads else ""
        print(
            f"{device.driver}:{device.index}  {device.name}: {device.variant} kernels{threads}, "
            f"{device.recommended_working_set / 2**30:.1f} GiB",
            file=out,
        )
    return 0
