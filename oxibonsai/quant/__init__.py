"""Quantise float matrices to the weight formats and back, with NumPy alone.

Each format is rounded as its own project does: ggml's reference quantisers for ``Q1_0``, ``Q2_0``,
``TQ2_0`` and ``Q8_0``, Prism's for ``PQ2_0`` and ``PTQ1_0``, OxiBonsai's for ``TQ2_0_g128``. ggml
and Prism round ``x * (1 / d)``; OxiBonsai compares ``x`` with ``d / 2``.

ggml's other types are read only: :func:`from_ggml` gives their values in one of these formats.
"""

from __future__ import annotations

from oxibonsai.quant.convert import codes, dequantize, from_ggml, quantize, rewritten
from oxibonsai.quant.tensor import QTensor

__all__ = ["QTensor", "codes", "dequantize", "from_ggml", "quantize", "rewritten"]
