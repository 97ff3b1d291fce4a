"""Tell the three meanings of tensor type 42 apart.

Upstream ggml gives 42 to ``Q2_0`` (64 weights in 18 bytes), legacy Prism files to a ``Q2_0`` of 128
weights in 34 bytes with the scale first, and OxiBonsai files to ``TQ2_0_g128``, also 34 bytes, with
the scale last. Nothing in the metadata says which, so the tensors must: first by the room that each
has in the file, then by its scales, which every quantiser writes finite and not negative. One
layout has to stand and the others have to fall; all else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from oxibonsai import formats
from oxibonsai.formats import FORMATS, Format
from oxibonsai.gguf.errors import GGUFError
from oxibonsai.gguf.types import TYPE_42

__all__ = ["LAYOUTS", "Tensor42", "parse_override", "resolve"]

LAYOUTS: Final[tuple[Format, ...]] = tuple(f for f in FORMATS.values() if f.ggml_type == TYPE_42)
_SAMPLE_BLOCKS: Final = 128
_HELP: Final = "name it: GGUFFile(path, type42=" + " | ".join(f'"{f.name}"' for f in LAYOUTS) + ")"


@dataclass(frozen=True)
class Tensor42:
    """A tensor of type 42: `weights` in rows of `k`, `span` bytes from `offset` to what follows."""

    name: str
    k: int
    weights: int
    offset: int
    span: int

    def nbytes(self, layout: Format) -> int:
        """Return the bytes of the tensor in `layout`, whose blocks must divide its rows."""
        return self.weights // layout.block_weights * layout.block_bytes


def parse_override(name: str | None) -> Format | None:
    """Return the layout called `name`; ValueError unless it is a meaning of type 42."""
    if name is None:
        return None
    found = formats.get(name)
    if found not in LAYOUTS:
        names = ", ".join(f.name for f in LAYOUTS)
        raise ValueError(f"type42={name!r} is not a layout of tensor type 42: one of {names}")
    return found


def resolve(
    tensors: Sequence[Tensor42], data: Any, alignment: int, path: str, override: Format | None
) -> Format:
    """Return the one layout of all `tensors` of a file; GGUFError where it is not certain.

    Parameters
    ----------
    tensors : sequence of Tensor42
        All tensors of type 42 in the file, at least one.
    data : buffer
        The file's bytes.
    alignment : int
        The file's tensor alignment, which bounds the padding behind a tensor.
    override : Format, optional
        The layout that the caller names. It decides between layouts that the spans allow, and
        stands in for the look at the scales.
    """
    allowed = _by_span(tensors, alignment, path)
    if override is not None:
        if override not in allowed:
            raise GGUFError(
                f"{path}: type42={override.name!r} contradicts the file: the data spans of its "
                f"{len(tensors)} tensors of type 42 fit only {_names(allowed)}"
            )
        return override
    refuted = {f: why for f in allowed if (why := _refute(f, tensors, data)) is not None}
    standing = [f for f in allowed if f not in refuted]
    if len(standing) == 1:
        return standing[0]
    if standing:
        raise GGUFError(
            f"{path}: tensor type 42 is ambiguous here: {_names(standing)} all fit the data of "
            f"{len(tensors)} tensors (first {tensors[0].name!r}); {_HELP}"
        )
    why = "; ".join(f"{f.name}: {text}" for f, text in refuted.items())
    raise GGUFError(f"{path}: no layout of tensor type 42 fits its scales ({why}); {_HELP}")


def _names(layouts: Sequence[Format]) -> str:
    return " or ".join(f.name for f in layouts)


def _by_span(tensors: Sequence[Tensor42], alignment: int, path: str) -> list[Format]:
    """Return the layouts whose size agrees with the span of every tensor."""
    allowed = list(LAYOUTS)
    for t in tensors:
        possible = [f for f in LAYOUTS if t.k % f.block_weights == 0 and t.nbytes(f) <= t.span]
        if not possible:
            least = min(t.nbytes(f) for f in LAYOUTS if t.k % f.block_weights == 0)
            raise GGUFError(
                f"{path}: tensor {t.name!r} of type 42 has {t.weights} weights, at least {least} "
                f"bytes, but only {t.span} bytes from byte {t.offset} to the next tensor or the "
                "end of the file"
            )
        # A writer pads to the alignment and no further. Small tensors can agree with both block
        # sizes; where a file leaves wider gaps than that, only a too small span says anything.
        exact = [f for f in possible if t.span - t.nbytes(f) < alignment]
        here = exact or possible
        remaining = [f for f in allowed if f in here]
        if not remaining:
            raise GGUFError(
                f"{path}: tensor {t.name!r} of type 42 spans {t.span} bytes for {t.weights} "
                f"weights, which fits {_names(here)}, but the tensors before it fit only "
                f"{_names(allowed)}"
            )
        allowed = remaining
    return allowed


def _refute(layout: Format, tensors: Sequence[Tensor42], data: Any) -> str | None:
    """Return why the scales of the sampled blocks rule `layout` out, or None.

    The first blocks of every tensor are enough, and nothing is lost by not reading the rest: no
    block of a file that really has this layout refutes it, so where one layout falls and the other
    stands, no block left unread could turn the answer to the one that fell.
    """
    for t in tensors:
        blocks = min(t.weights // layout.block_weights, _SAMPLE_BLOCKS)
        raw = np.frombuffer(data, np.uint8, blocks * layout.block_bytes, t.offset)
        at = layout.scale_offset
        scale = raw.reshape(blocks, layout.block_bytes)[:, at : at + 2].copy().view("<f2")[:, 0]
        bad = np.flatnonzero(~(np.isfinite(scale) & (scale >= 0)))
        if bad.size:
            i = int(bad[0])
            return f"the scale of block {i} of {t.name!r} would be {scale[i]}"
    return None
