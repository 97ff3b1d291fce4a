"""``oxibonsai devices``: the devices, the default first."""

from __future__ import annotations

import argparse
import json
from typing import TextIO

from oxibonsai import metal
from oxibonsai.cli.terminal import escaped
from oxibonsai.model.runtime.kernels import names_by_op

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's option."""
    parser.add_argument("--json", action="store_true", help="print a JSON list of objects")


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    found = metal.probe_devices()
    if args.json:
        out.write(json.dumps(_objects(found), indent=2) + "\n")
    else:
        for device in found.usable:
            out.write(_line(device) + "\n")
        for refused in found.refused:
            out.write(f"{refused.driver}:{refused.index}  refused: {_reason(refused)}\n")
    # A variable of the environment may be wrong: opening says which. Every machine has a cpu.
    metal.Device().close()
    if all(device.driver != "cpu" for device in found.usable):
        metal.Device("cpu").close()
    return 0


def _objects(found: metal.FoundDevices) -> list[dict[str, object]]:
    usable = [
        {
            **device._asdict(),
            "variants": [variant._asdict() for variant in metal.kept_variants(device)],
            "reason": None,
        }
        for device in found.usable
    ]
    return [*usable, *({**refused._asdict(), "variants": []} for refused in found.refused)]


def _reason(refused: metal.RefusedDevice) -> str:
    """Return one line: a compiler's log has many."""
    return escaped(" ".join(refused.reason.split()))


def _line(device: metal.DeviceInfo) -> str:
    threads = f", {device.threads} threads" if device.threads else ""
    names = names_by_op((variant.op, variant.name) for variant in metal.kept_variants(device))
    tuned = f" (tuned: {escaped(names)})" if names else ""
    return (
        f"{device.driver}:{device.index}  {escaped(device.name)}: {device.variant} "
        f"kernels{tuned}{threads}, {device.recommended_working_set / 2**30:.1f} GiB"
    )
