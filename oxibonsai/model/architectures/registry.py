"""The known architectures, and how any of them is loaded."""

from __future__ import annotations

from oxibonsai.gguf import GGUFError, GGUFFile, check_supported
from oxibonsai.metal import MetalGraph
from oxibonsai.model.architectures.base import Architecture, ModelWeights
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.weights import WeightLoader, check_tensors

__all__ = ["Registry", "load_weights"]


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
        name = file.metadata.get("general.architecture")
        found = self._known.get(name) if isinstance(name, str) else None
        if found is None:
            raise GGUFError(
                f"{file.path}: general.architecture is {name!r}; supported are "
                f"{', '.join(map(repr, self.names))}"
            )
        return found


def tensor_shapes(architecture: Architecture, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a file with this shape, the optional head included."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, config.hidden_size),
        "output_norm.weight": (config.hidden_size,),
        "output.weight": (config.vocab_size, config.hidden_size),
    }
    layer = architecture.layer_tensors(config)
    for i in range(config.n_layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def load_weights(
    file: GGUFFile, architecture: Architecture, config: ModelConfig, graph: MetalGraph
) -> ModelWeights:
    """Upload every tensor of `file`; what is on the device goes again where that fails.

    Raises
    ------
    GGUFError
        For tensors that are missing, unknown, of another shape or of an unsupported type.
    """
    check_supported(file)
    # A lying block_count costs nothing: it is compared before a name is made for every layer.
    if config.n_layers > len(file.tensors):
        raise GGUFError(
            f"{file.path}: {config.n_layers} layers in {len(file.tensors)} tensors: tensors are "
            "missing"
        )
    check_tensors(file, architecture.name, tensor_shapes(architecture, config))
    loader = WeightLoader(file, graph)
    try:
        # The largest first: their pages of the file are gone before the rest is on the device.
        embedding = loader.matrix("token_embd.weight")
        head = loader.matrix("output.weight") if "output.weight" in loader else embedding
        return ModelWeights(
            embedding=embedding,
            layers=[architecture.load_layer(loader, f"blk.{i}.") for i in range(config.n_layers)],
            output_norm=loader.vector("output_norm.weight"),
            head=head,
        )
    except BaseException:
        loader.close()
        raise
