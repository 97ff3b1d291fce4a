"""The coded device formats, in what the kernels read: 16-byte loads and scales."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CodedFormat:
    """Codes of a few bits with a half scale for each scale group."""

    name: str
    file_format: str
    bits: int
    group_size: int

    @property
    def load_weights(self) -> int:
        """Weights of a row in a load."""
        return 128 // self.bits

    def nbytes(self, n_rows: int, k: int) -> int:
        """Return the bytes of a matrix."""
        return n_rows * (k * self.bits // 8 + k // self.group_size * 2)


FORMATS = {
    one.file_format: one
    for one in (
        CodedFormat("q1_g128", "Q1_0", 1, 128),
        CodedFormat("q2_g128", "TQ2_0_g128", 2, 128),
        CodedFormat("q2_g64", "Q2_0", 2, 64),
    )
}
