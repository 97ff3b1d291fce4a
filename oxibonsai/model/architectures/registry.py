"""The known architectures, and how any of them is loaded."""

from __future__ import annotations

from typing import Final

from oxibonsai.gguf import GGUFError, GGUFFile, check_supported
from oxibonsai.metal import MetalGraph
from oxibonsai.model.architectures.base import (
    ROTATED,
    Architecture,
    ModelWeights,
    Rotatable,
    Scratch,
    Variants,
)
from oxibonsai.model.architectures.expected import Expected, check_tensors
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.rotation import check_rotated, read_rotations
from oxibonsai.model.weights import WeightLoader, check_memory, loaded_bytes
from oxibonsai.model.workingset import warn_of_working_set

__all__ = ["Registry", "load_weights"]


# Files beside a model, by ``general.type``, and what to do with them.
_OTHER_FILES: Final = {
    "adapter": "a LoRA adapter: merge it into its model with llama-export-lora",
    "mmproj": "an encoder of images or sound: name the file of the language model",
    "imatrix": "the statistics that llama-quantize takes: name the file of the model",
    "vocab": "a vocabulary alone: name the file of the model",
}


class Registry:
    """Architectures by name."""

    def __init__(self, *architectures: Architecture) -> None:
        self._known: dict[str, Architecture] = {}
        for architecture in architectures:
            self.register(architecture)

    @property
    def names(self) -> list[str]:
        """Names of the known architectures."""
        return sorted(self._known)

    def register(self, architecture: Architecture) -> None:
        """Make an architecture known; ValueError where its name is taken.

        Parameters
        ----------
        architecture : Architecture
            It; from then on ``Model.load`` takes files with its name in ``general.architecture``.
        """
        if architecture.name in self._known:
            raise ValueError(f"architecture {architecture.name!r} is known already")
        self._known[architecture.name] = architecture

    def unregister(self, name: str) -> None:
        """Forget an architecture; models that are loaded go on. ValueError for an unknown name."""
        if name not in self._known:
            raise ValueError(f"no architecture {name!r}; known are {', '.join(self.names)}")
        del self._known[name]

    def of(self, file: GGUFFile) -> Architecture:
        """Return the architecture of a file; GGUFError, with the known ones, for another."""
        kind = file.metadata.get("general.type")
        if isinstance(kind, str) and kind in _OTHER_FILES:
            raise GGUFError(
                f"{file.path} is no model: general.type is {kind!r}, {_OTHER_FILES[kind]}"
            )
        name = file.metadata.get("general.architecture")
        found = self._known.get(name) if isinstance(name, str) else None
        if found is None:
            raise GGUFError(
                f"{file.path}: general.architecture is {name!r}; supported are "
                f"{', '.join(map(repr, self.names))}"
            )
        if not file.tensors:
            raise GGUFError(f"{file.path} has no tensors, only metadata: take the model's own file")
        return found


def expected_tensors(architecture: Architecture, config: ModelConfig) -> Expected:
    """Return the tensors of a file with this shape."""
    variants = architecture if isinstance(architecture, Variants) else None
    required: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, config.hidden_size),
        "output_norm.weight": (config.hidden_size,),
    }
    optional: dict[str, tuple[int, ...]] = {
        "output.weight": (config.vocab_size, config.hidden_size)
    }
    fused: dict[str, tuple[str, ...]] = {}
    for i in range(config.n_layers):
        p = f"blk.{i}."
        required |= {
            p + name: shape for name, shape in architecture.layer_tensors(config, i).items()
        }
        if variants is not None:
            optional |= {
                p + name: shape for name, shape in variants.optional_tensors(config, i).items()
            }
            fused |= {
                p + name: tuple(p + part for part in parts)
                for name, parts in variants.fused_tensors(config, i).items()
            }
    return Expected(required, optional, fused)


def _scratch(architecture: Architecture, config: ModelConfig) -> dict[str, int]:
    own = architecture.scratch(config) if isinstance(architecture, Scratch) else {}
    shared = {} if config.rotations is None else {ROTATED: config.hidden_size}
    return {**own, **shared}


def load_weights(
    file: GGUFFile, architecture: Architecture, config: ModelConfig, graph: MetalGraph
) -> ModelWeights:
    """Upload every tensor of `file`; what is on the device goes again where that fails.

    Raises
    ------
    GGUFError
        For tensors that are missing, unknown, of another shape or of an unsupported type, and for
        rotated matrices whose input the architecture does not rotate.
    BufferCreationError
        If they do not fit the device.
    """
    first, n_skipped = config.n_layers, config.n_skipped_layers
    skipped = tuple(f"blk.{i}." for i in range(first, first + n_skipped))
    check_supported(file, skipped)
    # A lying block_count costs nothing: it is compared before a name is made for every layer.
    if config.n_layers > len(file.tensors):
        raise GGUFError(
            f"{file.path}: {config.n_layers} layers in {len(file.tensors)} tensors: tensors are "
            "missing"
        )
    expected = expected_tensors(architecture, config)
    check_tensors(file, architecture.name, expected, skipped)
    if config.rotations is not None:
        inputs = architecture.rotated_inputs if isinstance(architecture, Rotatable) else ()
        check_rotated(file, config.rotations, architecture.name, inputs, first, skipped)
    elif read_rotations(file) is not None:  # of an architecture that makes its config by itself
        raise GGUFError(
            f"{file.path}: prism.hadamard.weight_names has weights that were rotated, but the "
            f"config of {architecture.name} models has no rotations: its config() has to pass on "
            "read_rotations(file)"
        )
    check_memory(file, graph.device.info.recommended_working_set, skipped)
    warn_of_working_set(
        graph.device,
        loaded_bytes(file, skipped),
        f"{file.path}: the weights take",
        "a smaller model, or one in a format of fewer bits, or close what else the device holds",
    )
    loader = WeightLoader(file, graph, expected.optional, config.rotations)
    try:
        # The largest first: their pages of the file are gone before the rest is on the device.
        embedding = loader.matrix("token_embd.weight")
        head = loader.matrix("output.weight") if "output.weight" in loader else embedding
        return ModelWeights(
            embedding=embedding,
            layers=[architecture.load_layer(loader, config, i) for i in range(config.n_layers)],
            output_norm=loader.vector("output_norm.weight"),
            head=head,
            embedding_rotation=loader.embedding_rotation(),
            head_rotation=loader.head_rotation(),
            signs=loader.signs,
            scratch=_scratch(architecture, config),
        )
    except BaseException:
        loader.close()
        raise
