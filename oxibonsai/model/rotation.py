"""How the weights of a file were rotated, and their inputs have to be (``prism.hadamard.*``).

A folded matrix W' stands for W = W' H diag(s) P, so that W x = W' H (s * P x): H is the normalised
Walsh-Hadamard transform of each block of the input, s its signs, by the input's width, and P the
order of heads. Without the rotation of x a file gives fluent nonsense, so that whatever is not
understood is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from oxibonsai.gguf import GGUFError, GGUFFile, Strings

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Rotations",
    "check_order_of_heads",
    "check_rotated",
    "read_rotations",
]

_PRISM: Final = "prism."
_PREFIX: Final = "prism.hadamard."
_TRANSFORM: Final = "normalized-sylvester-walsh-hadamard"
_AXIS: Final = "input-last-dimension"
_SIGN_MODES: Final = ("identity", "explicit")
EMBEDDING: Final = "token_embd.weight"
HEAD: Final = "output.weight"
_GROUPED: Final = ".ssm_out.weight"

_MIN_BLOCK: Final = 16
_MAX_BLOCK: Final = 4096
"""Of the kernels."""

_KEYS: Final = (
    "version",
    "block_size",
    "transform",
    "axis",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
    "gdn_v_grouped",
    "tied_output",
)


@dataclass(frozen=True)
class Rotations:
    """What the metadata ``prism.hadamard.*`` of a file say.

    Attributes
    ----------
    version : int
        1 or 2.
    block_size : int
        Elements of the input that H transforms together.
    sign_mode : {"identity", "explicit"}
        Whether s is 1 throughout.
    signs : tuple of (int, bytes)
        Widths of inputs, and the signs of an input of that width as signed bytes. Empty for
        "identity".
    weights : tuple of str
        Names of the matrices whose input is rotated, in order of the alphabet; that of the head
        too, where the file has one of its own that is rotated.
    embedding : bool
        Whether rows of the embedding are turned back, s * (H row), when a token is looked up.
    gdn_v_grouped : bool
        Whether the input of ``ssm_out`` has its heads moved: value heads that share a key head lie
        side by side then.
    tied_output : bool
        Whether the head is the embedding, with its input rotated.
    """

    version: int
    block_size: int
    sign_mode: str
    signs: tuple[tuple[int, bytes], ...]
    weights: tuple[str, ...]
    embedding: bool
    gdn_v_grouped: bool
    tied_output: bool

    def __repr__(self) -> str:
        # Of signs and names, which may be tens of thousands, what tells them from others.
        digest = hashlib.blake2b(repr((self.signs, self.weights)).encode(), digest_size=8)
        return (
            f"Rotations(version={self.version}, block_size={self.block_size}, "
            f"sign_mode={self.sign_mode!r}, {len(self.weights)} weights, "
            f"embedding={self.embedding}, gdn_v_grouped={self.gdn_v_grouped}, "
            f"tied_output={self.tied_output}, digest={digest.hexdigest()})"
        )

    @property
    def grouped_names(self) -> list[str]:
        """The rotated matrices whose input has its heads moved where they are grouped."""
        return [name for name in self.weights if name.endswith(_GROUPED)]

    @property
    def head(self) -> bool:
        """Whether the input of the head is rotated."""
        return self.tied_output or HEAD in self.weights

    def signs_of(self, width: int) -> npt.NDArray[np.float32]:
        """Return s for inputs of a width that a rotated matrix has."""
        if self.sign_mode == "identity":
            return np.ones(width, np.float32)
        return np.frombuffer(dict(self.signs)[width], np.int8).astype(np.float32)


def read_rotations(file: GGUFFile) -> Rotations | None:
    """Read how the weights of a file were rotated.

    Parameters
    ----------
    file : GGUFFile
        The file; it may be closed.

    Returns
    -------
    Rotations or None
        None where they were not: the file has no key ``prism.*``.

    Raises
    ------
    GGUFError
        For a key or value that is unknown, contradicts another or the tensors, or cannot be
        honoured; the text names it.
    """
    keys = [key for key in file.metadata if key.startswith(_PRISM)]
    if not keys:
        return None
    read = _Reader(file)
    for key in keys:
        if key.removeprefix(_PREFIX) not in _KEYS or not key.startswith(_PREFIX):
            raise read.error(
                key,
                "is not known here; without what it asks for the weights may give fluent nonsense: "
                "run the file with the llama.cpp of its maker",
            )
    version = read.integer("version", 1, 2)
    block = read.integer("block_size", _MIN_BLOCK, _MAX_BLOCK)
    if block & (block - 1):
        raise read.error("block_size", f"is {block}; a power of two is needed")
    read.one_of("transform", _TRANSFORM)
    read.one_of("axis", _AXIS)
    mode = read.one_of("sign_mode", *_SIGN_MODES)
    found = Rotations(
        version=version,
        block_size=block,
        sign_mode=mode,
        signs=read.signs(mode),
        weights=tuple(sorted(set(read.names("weight_names")))),
        embedding=bool(read.names("inverse_weight_names", optional=True)),
        gdn_v_grouped=read.flag("gdn_v_grouped"),
        tied_output=read.flag("tied_output"),
    )
    if not found.weights:
        raise read.error("weight_names", "names no weight")
    if found.gdn_v_grouped and not found.grouped_names:
        raise read.error("gdn_v_grouped", f"is true, but weight_names has no '*{_GROUPED}'")
    for name in read.names("inverse_weight_names", optional=True):
        if name != EMBEDDING:
            raise read.error(
                "inverse_weight_names", f"has {name!r}; only {EMBEDDING!r} is turned back"
            )
    _check_head(read, found)
    read.check_widths(found, "weight_names", found.weights)
    read.check_widths(found, "inverse_weight_names", [EMBEDDING] if found.embedding else [])
    return found


def check_order_of_heads(file: GGUFFile, rotations: Rotations, n_groups: int) -> None:
    """Check that a file says whether its value heads are grouped, where that matters.

    Parameters
    ----------
    file : GGUFFile
        The file.
    rotations : Rotations
        What it says.
    n_groups : int
        Value heads that share a key head.

    Raises
    ------
    GGUFError
        If there are several, a matrix over them is rotated, and the file does not say it.
    """
    names = rotations.grouped_names
    if names and n_groups > 1 and f"{_PREFIX}gdn_v_grouped" not in file.metadata:
        raise _Reader(file).error(
            "gdn_v_grouped",
            f"is missing, but {names[0]!r} is rotated and {n_groups} value heads share a key head: "
            "write true where those lie side by side in its input, false where they do not",
        )


def check_rotated(
    file: GGUFFile,
    rotations: Rotations,
    architecture: str,
    inputs: Sequence[Sequence[str]],
    n_layers: int,
    skipped: tuple[str, ...] = (),
) -> None:
    """Check that an architecture rotates the inputs of just the matrices that a file names.

    Parameters
    ----------
    file : GGUFFile
        The file, whose tensors are those of the architecture.
    rotations : Rotations
        What it says.
    architecture : str
        Name of the architecture, for error texts.
    inputs : sequence of sequences of str
        The matrices that share an input that can be rotated, by their names behind ``blk.N.``;
        those that the file does not have do not count.
    n_layers : int
        Layers that run.
    skipped : tuple of str
        What the names of tensors begin with that are left out.

    Raises
    ------
    GGUFError
        For a matrix whose input is never rotated, and where only some of the matrices that share
        an input are named.
    """
    read = _Reader(file)
    left = {name for name in rotations.weights if name != HEAD and not name.startswith(skipped)}
    for layer in range(n_layers):
        for group in inputs:
            names = [f"blk.{layer}.{name}" for name in group]
            there = [name for name in names if name in file.tensors]
            named = [name for name in there if name in left]
            if named and len(named) < len(there):
                other = next(name for name in there if name not in left)
                raise read.error(
                    "weight_names",
                    f"has {named[0]!r} without {other!r}: they share one input, which is rotated "
                    "for both or for none",
                )
            left.difference_update(named)
    if left:
        raise read.error(
            "weight_names",
            f"has {min(left)!r}, whose input is not rotated in {architecture} models",
        )


def _check_head(read: _Reader, found: Rotations) -> None:
    """Check that the head takes its input as the version has it."""
    own = HEAD in read.file.tensors
    if found.version == 1 and found.tied_output:
        raise read.error("tied_output", "is true, which version 1 does not have: only version 2")
    if found.version == 1:
        if found.embedding and not own:
            raise read.error(
                "inverse_weight_names",
                f"has {EMBEDDING!r}, but there is no tensor {HEAD!r}: a head that shares rotated "
                "rows with the embedding needs version 2",
            )
        return
    if not found.tied_output:
        raise read.error("tied_output", "is not true, which version 2 needs")
    if own:
        raise read.error("tied_output", f"is true, but there is a tensor {HEAD!r} as well")
    if not found.embedding:
        raise read.error(
            "inverse_weight_names",
            f"lacks {EMBEDDING!r}, whose rows version 2 rotates for the head",
        )


class _Reader:
    """Reads values of ``prism.hadamard.*``."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def error(self, key: str, text: str) -> GGUFError:
        """Return an error about a key, given whole or by what follows the prefix."""
        name = key if key.startswith(_PRISM) else _PREFIX + key
        return GGUFError(f"{self.file.path}: {name} {text}")

    def value(self, key: str) -> object:
        value = self.file.metadata.get(_PREFIX + key)
        if value is None:
            raise self.error(key, "is missing, but the file has other keys of a rotation")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is {_short(value)}; an integer is needed")
        if not low <= value <= high:
            raise self.error(key, f"is {value}; it must lie in {low}..{high}")
        return value

    def flag(self, key: str) -> bool:
        value = self.file.metadata.get(_PREFIX + key, False)
        # Some writers have no type for it.
        if not isinstance(value, int) or value not in (0, 1):
            raise self.error(key, f"is {_short(value)}; true or false is needed")
        return bool(value)

    def one_of(self, key: str, *known: str) -> str:
        value = self.value(key)
        if not isinstance(value, str) or value not in known:
            raise self.error(key, f"is {_short(value)}; {' and '.join(map(repr, known))} can run")
        return value

    def names(self, key: str, *, optional: bool = False) -> list[str]:
        if optional and _PREFIX + key not in self.file.metadata:
            return []
        value = self.value(key)
        if isinstance(value, Strings):
            return value.tolist()
        if isinstance(value, (np.ndarray, list)) and len(value) == 0:  # of no matter what type
            return []
        raise self.error(key, f"is {_short(value)}; an array of names is needed")

    def signs(self, mode: str) -> tuple[tuple[int, bytes], ...]:
        """Return the signs by width; none for the mode identity."""
        widths, values = self._integers("sign_widths"), self._integers("sign_values")
        wrong = np.flatnonzero((values != 1) & (values != -1))
        if wrong.size:
            raise self.error(
                "sign_values", f"[{wrong[0]}] is {values[wrong[0]]}; 1 or -1 is needed"
            )
        found: dict[int, bytes] = {}
        start = 0
        for width in map(int, widths):
            if not 1 <= width <= len(values) - start:
                raise self.error(
                    "sign_widths",
                    f"has the width {width}, for which sign_values has {len(values) - start} "
                    "values left",
                )
            if width in found:
                raise self.error("sign_widths", f"has the width {width} twice")
            found[width] = values[start : start + width].astype(np.int8).tobytes()
            start += width
        if start < len(values):
            raise self.error(
                "sign_values", f"has {len(values)} values; the widths of sign_widths are {start}"
            )
        if mode == "explicit":
            if not found:
                raise self.error("sign_mode", "is 'explicit', but sign_widths has no width")
            return tuple(found.items())
        if (values != 1).any():
            raise self.error("sign_mode", "is 'identity', but sign_values has values of -1")
        return ()

    def check_widths(self, found: Rotations, key: str, names: Iterable[str]) -> None:
        """Check that there are such matrices, and their inputs fit the blocks and have signs."""
        widths: Collection[int] = dict(found.signs)
        for name in names:
            info = self.file.tensors.get(name)
            if info is None:
                raise self.error(key, f"has {name!r}, but there is no such tensor")
            width = info.shape[-1] if info.shape else 0
            if not width or width % found.block_size:
                raise self.error(
                    "block_size",
                    f"is {found.block_size}, which does not divide {width}, the width of {name!r}",
                )
            if found.sign_mode == "explicit" and width not in widths:
                raise self.error(
                    "sign_widths",
                    f"has no signs for the width {width} of {name!r}; it has {_list(widths)}",
                )

    def _integers(self, key: str) -> npt.NDArray[np.integer]:
        value = self.file.metadata.get(_PREFIX + key, ())
        if not isinstance(value, (str, int, float)) and len(value) == 0:
            return np.empty(0, np.int64)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            return value
        raise self.error(key, f"is {_short(value)}; an array of integers is needed")


def _list(widths: Collection[int]) -> str:
    shown = [str(width) for width in widths][:8]
    return ", ".join(shown) + ", ..." * (len(widths) > len(shown))


def _short(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} values of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 64 else text[:61] + "..."
