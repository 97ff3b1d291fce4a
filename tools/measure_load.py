"""Load a model in a fresh process, fill a session of it, and print what that took as JSON.

Resident memory counts mapped pages of the file. Times are those of this machine as it is: the file
comes from its disk the first time, from memory after that.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Return the most memory this process has had resident."""
    if sys.platform == "linux":  # getrusage there starts from the parent's peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(path: Path, device: str | None, max_seq: int) -> dict[str, Any]:
    from oxibonsai.model import Model

    before = peak_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    with Model.load(path, device) as model:
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        loaded = peak_bytes()
        c = model.config
        with model.session(max_seq) as session:
            # To the last position: a cache that grows is as large as it gets then.
            logits = session.forward(range(max_seq), logits="last")
            assert logits is not None
            return {
                "file_bytes": path.stat().st_size,
                "weight_bytes": sum(handle.nbytes for handle in model.weights.handles),
                # K and V, two bytes an element.
                "kv_bytes": 4 * c.n_layers * c.n_kv_heads * c.head_dim * max_seq,
                "import_peak_bytes": before,
                "load_peak_bytes": loaded,
                "peak_bytes": peak_bytes(),
                "load_seconds": round(wall, 3),
                "load_cpu_seconds": round(cpu, 3),
                "device": model.device.name,
                "tied": model.weights.tied,
                "q_size": c.q_size,
                "hidden_size": c.hidden_size,
                "spread": float(logits.std()),
            }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", help="default: the machine's")
    parser.add_argument(
        "--max-seq", type=int, default=32, help="positions of the KV cache, all of which are filled"
    )
    args = parser.parse_args(arguments)
    print(json.dumps(measure(args.file, args.device, args.max_seq)))


if __name__ == "__main__":
    main()
