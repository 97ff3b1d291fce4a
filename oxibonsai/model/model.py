"""A model: its shape, weights on a device, and tokenizer."""

from __future__ import annotations

import operator
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import Device, MetalGraph
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.session import Session
from oxibonsai.model.weights import ModelWeights, load_weights
from oxibonsai.tokenizer import Tokenizer

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Model"]

_DEFAULT_MAX_SEQ = 2048


class Model:
    """A qwen3 model on a device, made by ``Model.load``.

    Attributes
    ----------
    path : str
        The file.
    config : ModelConfig
        The shape.
    graph : MetalGraph
        The device's graph that holds the weights.
    weights : ModelWeights
        The weights on the device.
    name : str
        The model's name in the file, else the file's.
    """

    def __init__(
        self, file: GGUFFile, config: ModelConfig, graph: MetalGraph, weights: ModelWeights
    ) -> None:
        self.path = file.path
        self.config = config
        self.graph = graph
        self.weights = weights
        name = file.metadata.get("general.name")
        self.name = name if isinstance(name, str) else Path(self.path).stem
        self._file = file
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: Device | str | None = None,
        *,
        type42: str | None = None,
    ) -> Model:
        """Load a GGUF file of architecture qwen3.

        Parameters
        ----------
        path : str or path-like
            The file; its matrices in any format of ``oxibonsai.formats``.
        device : Device or str, optional
            Where it runs; the default device where left out.
        type42 : {"Q2_0", "Q2_0_g128", "TQ2_0_g128"}, optional
            What tensor type 42 means, for files in which the data does not say.

        Raises
        ------
        GGUFError
            For a file that is damaged, of another architecture, or with tensors that are missing,
            unknown, of another shape or of an unsupported type.
        DeviceNotFoundError, BufferCreationError
            From the device.
        """
        file = GGUFFile(path, type42=type42)
        try:
            config = ModelConfig.from_gguf(file)
            graph = MetalGraph(device)
            weights = load_weights(file, config, graph)
        except BaseException:
            file.close()
            raise
        return cls(file, config, graph, weights)

    @property
    def device(self) -> Device:
        """Where the model runs."""
        return self.graph.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; needs the extra ``oxibonsai[model]`` to encode."""
        return Tokenizer.from_gguf(self._file)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text; none where the file has no tokenizer."""
        if "tokenizer.ggml.model" not in self._file.metadata:
            return frozenset()
        return self.tokenizer.eos_ids

    def session(
        self, max_seq: int | None = None, kv_dtype: Literal["f16", "f32"] = "f16"
    ) -> Session:
        """Return a new text on this model.

        Parameters
        ----------
        max_seq : int, optional
            Positions of the KV cache, at most the model's context_length; left out, 2048 or the
            context_length, whichever is less.
        kv_dtype : {"f16", "f32"}
            Elements of the KV cache. Half rounds K and V, about 4e-4 of the logits' norm on the
            demo model.

        Raises
        ------
        ValueError
            For a value out of its range.
        BufferCreationError
            Where the cache does not fit the device.
        """
        if self.closed:
            raise ValueError("the model is closed: load it again")
        limit = self.config.context_length
        if max_seq is None:
            max_seq = min(_DEFAULT_MAX_SEQ, limit)
        max_seq = operator.index(max_seq)
        if not 1 <= max_seq <= limit:
            raise ValueError(
                f"max_seq = {max_seq} must lie in 1..{limit}, the model's context_length"
            )
        if kv_dtype not in ("f16", "f32"):
            raise ValueError(f"kv_dtype = {kv_dtype!r}: 'f16' or 'f32'")
        return Session(self, max_seq, kv_dtype)

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the device."""
        return self._closed or self.graph.closed

    def close(self) -> None:
        """Release the weights and the file; idempotent. Its sessions are closed with it."""
        self._closed = True
        self.weights.close()
        self._file.close()

    def __enter__(self) -> Model:
        if self.closed:
            raise ValueError("the model is closed: load it again")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"on {self.device.driver}"
        c = self.config
        return f"<Model {self.name!r} {state}: {c.n_layers} layers, hidden {c.hidden_size}>"
