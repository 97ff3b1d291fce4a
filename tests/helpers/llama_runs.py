"""Logits of llama.cpp for a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers import import_peer


def llama_logits(path: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the logits of every position, with the K/V cache in float32."""
    llama_cpp = import_peer("llama_cpp")
    model = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        n_gpu_layers=0,
        logits_all=True,
        type_k=0,
        type_v=0,
        verbose=False,
    )
    try:
        model.eval(list(ids))
        return np.array(model.scores[: len(ids)], np.float64)
    finally:
        model.close()
