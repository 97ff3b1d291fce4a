"""Which tensors a file of an architecture must and may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.model.weights import factor_name

__all__ = ["Expected", "check_tensors"]

Shape = tuple[int, ...]

_NO_LLAMA: Final = "llama.cpp refuses it too"

# What a name without a place says of the file, and the way out; the first that fits.
_UNPLACED: Final[tuple[tuple[str, str], ...]] = (
    (
        r"\.lora_[ab]$",
        "it is part of a LoRA adapter: merge the adapter into its model with llama-export-lora",
    ),
    (
        r"^(v|mm|a)\.|^(vision|audio|mm_)",
        "it is part of an encoder of images or sound: only text is read here; take the file of "
        "the language model without it (the encoder's own file is often called mmproj)",
    ),
    (
        r"_exps?\.|_shexp\.|ffn_gate_inp|exp_probs",
        "it is part of a mixture of experts: take a dense model",
    ),
    (
        r"\.(scale|input_scale)$",
        "it is a factor as NVFP4 files have them, but not of a matrix of a layer: requantise the "
        "model from its F16 or BF16 file, such as to Q8_0",
    ),
    (
        r"rope_(freqs|factors)",
        "it holds factors of the rotary frequencies, which this architecture does not have; "
        "contexts are extended by the metadata rope.scaling.* here",
    ),
    (r"^cls(\.|_)", "it is the head of a reranker or classifier: run it with llama.cpp"),
    (r"nextn|^mtp|\.eh_proj|\.enorm|\.hnorm", "it predicts several tokens: convert with --no-mtp"),
    (r"ssm_|attn_gate|linear_attn", "it is part of a hybrid model: the architecture is wrong"),
    (
        r"\.bias$",
        "it is a bias where these models have none: " + _NO_LLAMA + "; if all of it is zero, "
        "remove it with gguf-py's gguf_new_metadata or convert the model again",
    ),
)


@dataclass(frozen=True)
class Expected:
    """The tensors of a file, by name.

    Attributes
    ----------
    required, optional : dict of str to tuple of int
        Shapes.
    fused : dict of str to tuple of str
        Tensors that hold the rows of others one after another and stand in their place.
    """

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def within(self, names: Callable[[str], bool], path: str) -> Expected:
        """Return what is expected where some of the fused tensors are there.

        Parameters
        ----------
        names : callable
            Whether the file has a tensor.
        path : str
            The file, for error texts.

        Returns
        -------
        Expected
            Without `fused`.

        Raises
        ------
        GGUFError
            Where a tensor is there twice: fused and on its own.
        """
        required, optional = dict(self.required), dict(self.optional)
        for name, parts in self.fused.items():
            if not names(name):
                continue
            twice = next(filter(names, parts), None)
            if twice is not None:
                raise GGUFError(
                    f"{path}: tensor {twice!r} is there twice, on its own and in {name!r}"
                )
            group = required if parts[0] in required else optional
            shapes = [group.pop(part) for part in parts]
            group[name] = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        return Expected(required, optional)


def check_tensors(
    file: GGUFFile, architecture: str, expected: Expected, skipped: tuple[str, ...] = ()
) -> None:
    """Check that a file has every tensor that is required, and none that has no place.

    Parameters
    ----------
    file : GGUFFile
        The file.
    architecture : str
        Name of the architecture, for error texts.
    expected : Expected
        Its tensors. Dimensions of 1 in front of a shape do not count.
    skipped : tuple of str
        What the names of tensors begin with that are left out with reason.

    Raises
    ------
    GGUFError
        For a tensor that is missing, has no place or another shape, or a vector that is quantised.
    """
    found = expected.within(file.tensors.__contains__, file.path)
    missing = [name for name in found.required if name not in file.tensors]
    if missing:
        raise GGUFError(
            f"{file.path}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
        )
    shapes = {**found.required, **found.optional}
    # Any matrix of a layer may have a factor.
    shapes |= {
        factor_name(name): (1,)
        for name, shape in shapes.items()
        if len(shape) == 2 and name.startswith("blk.") and name in file.tensors
    }
    for name, info in file.tensors.items():
        if name.startswith(skipped):
            continue
        if name not in shapes:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has no place in a {architecture} model; leaving it "
                f"out would change the result{_why_unplaced(name, shapes)}"
            )
        shape = shapes[name]
        extra = len(info.shape) - len(shape)
        if extra < 0 or info.shape != (1,) * extra + shape:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has shape {info.shape}, {shape} is needed"
            )
        if len(shape) == 1 and info.format not in ("F32", "F16", "BF16"):
            raise GGUFError(
                f"{file.path}: tensor {name!r} is {info.type_name}; a vector must be F32, F16 or "
                "BF16"
            )


def _why_unplaced(name: str, shapes: Mapping[str, Shape]) -> str:
    for pattern, why in _UNPLACED:
        if re.search(pattern, name):
            return f": {why}"
    layer = re.match(r"blk\.(\d+)\.", name)
    if layer and f"blk.{layer[1]}.attn_norm.weight" not in shapes:
        return ": it is of a layer beyond block_count: convert the model again"
    return ": convert or download the model again"
