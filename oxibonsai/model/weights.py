"""The weights of a qwen3 model: which tensors a file must have, and their upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from oxibonsai.gguf import GGUFError, GGUFFile, check_supported
from oxibonsai.metal import Buffer, Commands, MetalGraph, WeightHandle
from oxibonsai.model.config import ModelConfig

__all__ = ["LayerWeights", "ModelWeights", "Place", "Projection", "load_weights"]

Place: TypeAlias = Buffer | tuple[Buffer, int]
"""A buffer, or a buffer and an offset in bytes."""


class Projection:
    """Matrices over one input whose rows stand one after another in the output.

    Tensors of one format are one handle and one GEMV; of several formats, one for each.
    """

    def __init__(self, parts: list[tuple[WeightHandle, int]]) -> None:
        self.parts = parts

    def record(
        self,
        commands: Commands,
        x: Place,
        y: Place,
        *,
        residual: bool = False,
        n_vectors: int = 1,
        norm: WeightHandle | None = None,
        eps: float = 1e-6,
    ) -> None:
        """Record y = W x, or y += W x, for each of n_vectors rows of x.

        With `norm` x is normalised first, as in ``Commands.gemv``.
        """
        buffer, offset = y if isinstance(y, tuple) else (y, 0)
        for handle, first_row in self.parts:
            commands.gemv(
                handle,
                x,
                (buffer, offset + 4 * first_row),
                residual=residual,
                n_vectors=n_vectors,
                y_stride=self.n_rows,
                norm=norm,
                eps=eps,
            )

    @property
    def n_rows(self) -> int:
        """Rows of all parts."""
        return sum(handle.shape[0] for handle, _ in self.parts if handle.shape is not None)

    @property
    def handles(self) -> list[WeightHandle]:
        """The handles, in row order."""
        return [handle for handle, _ in self.parts]


@dataclass(frozen=True)
class LayerWeights:
    """One layer."""

    attn_norm: WeightHandle
    qkv: Projection
    q_norm: WeightHandle
    k_norm: WeightHandle
    attn_output: Projection
    ffn_norm: WeightHandle
    gate_up: WeightHandle
    down: Projection

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        norms = (self.attn_norm, self.q_norm, self.k_norm)
        return sum(h.nbytes for h in (*norms, *self.qkv.handles)) + self.rest_nbytes

    @property
    def rest_nbytes(self) -> int:
        """Bytes of what comes after the keys and values."""
        parts = (self.ffn_norm, self.gate_up, *self.attn_output.handles, *self.down.handles)
        return sum(h.nbytes for h in parts)


@dataclass(frozen=True)
class ModelWeights:
    """All weights; `head` is `embedding` itself where the file ties them."""

    embedding: WeightHandle
    layers: list[LayerWeights]
    output_norm: WeightHandle
    head: WeightHandle

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.head is self.embedding

    @property
    def handles(self) -> list[WeightHandle]:
        """Every handle, once."""
        found = [self.embedding, self.output_norm]
        if not self.tied:
            found.append(self.head)
        for layer in self.layers:
            found += [layer.attn_norm, layer.q_norm, layer.k_norm, layer.ffn_norm, layer.gate_up]
            for projection in (layer.qkv, layer.attn_output, layer.down):
                found += projection.handles
        return found

    @property
    def nbytes(self) -> int:
        """Bytes that decoding one token reads from the device, the embedding's other rows apart."""
        skipped = 0 if self.tied else self.embedding.nbytes
        return sum(handle.nbytes for handle in self.handles) - skipped

    def close(self) -> None:
        """Release all handles."""
        for handle in self.handles:
            handle.close()


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a file with this shape, the optional head included."""
    c = config
    kv_size = c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (c.vocab_size, c.hidden_size),
        "output_norm.weight": (c.hidden_size,),
        "output.weight": (c.vocab_size, c.hidden_size),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (c.hidden_size,),
        "attn_q": (c.q_size, c.hidden_size),
        "attn_k": (kv_size, c.hidden_size),
        "attn_v": (kv_size, c.hidden_size),
        "attn_q_norm": (c.head_dim,),
        "attn_k_norm": (c.head_dim,),
        "attn_output": (c.hidden_size, c.q_size),
        "ffn_norm": (c.hidden_size,),
        "ffn_gate": (c.intermediate_size, c.hidden_size),
        "ffn_up": (c.intermediate_size, c.hidden_size),
        "ffn_down": (c.hidden_size, c.intermediate_size),
    }
    for i in range(c.n_layers):
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    """Raise GGUFError unless the file has every tensor, in its shape, and no other."""
    check_supported(file)
    # As many tensors as layers ask for is checked first: a lying block_count costs nothing.
    if config.n_layers > len(file.tensors):
        raise GGUFError(
            f"{file.path}: {config.n_layers} layers in {len(file.tensors)} tensors: tensors are "
            "missing"
        )
    shapes = expected_shapes(config)
    missing = [name for name in shapes if name not in file.tensors and name != "output.weight"]
    if missing:
        raise GGUFError(
            f"{file.path}: {len(missing)} tensors are missing, the first is {missing[0]!r}"
        )
    for name, info in file.tensors.items():
        if name not in shapes:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has no place in a qwen3 model; leaving it out would "
                "change the result"
            )
        if info.shape != shapes[name]:
            raise GGUFError(
                f"{file.path}: tensor {name!r} has shape {info.shape}, {shapes[name]} is needed"
            )
        if len(info.shape) == 1 and info.format not in ("F32", "F16", "BF16"):
            raise GGUFError(
                f"{file.path}: tensor {name!r} is {info.format}; a norm's weight must be F32, F16 "
                "or BF16"
            )


def load_weights(file: GGUFFile, config: ModelConfig, graph: MetalGraph) -> ModelWeights:
    """Upload every tensor of `file`, dropping its pages as soon as it is on the device."""
    check_tensors(file, config)
    uploaded: list[WeightHandle] = []

    def matrix(*names: str) -> WeightHandle:
        infos = [file.tensors[name] for name in names]
        n_rows = sum(info.shape[0] for info in infos)
        handle = graph.upload_weight_soa(
            file.joined_data(*names), format=infos[0].format, shape=(n_rows, infos[0].shape[1])
        )
        uploaded.append(handle)
        for name in names:
            file.release(name)
        return handle

    def projection(*names: str) -> Projection:
        """Return one GEMV for each run of tensors of one format."""
        parts: list[tuple[WeightHandle, int]] = []
        row = 0
        while names:
            format = file.tensors[names[0]].format
            n = next(
                (i for i, name in enumerate(names) if file.tensors[name].format != format),
                len(names),
            )
            parts.append((matrix(*names[:n]), row))
            row += sum(file.tensors[name].shape[0] for name in names[:n])
            names = names[n:]
        return Projection(parts)

    def vector(name: str) -> WeightHandle:
        handle = graph.upload_f32_weight(_float32(file, name))
        uploaded.append(handle)
        return handle

    def gate_up(prefix: str) -> WeightHandle:
        gate, up = (file.tensors[f"{prefix}.ffn_{part}.weight"] for part in ("gate", "up"))
        if gate.format != up.format:
            raise GGUFError(
                f"{file.path}: {gate.name!r} is {gate.format} and {up.name!r} is {up.format}; the "
                "fused kernel needs one format for both"
            )
        return matrix(gate.name, up.name)

    try:
        # The largest first: their pages of the file are gone before the rest is on the device.
        embedding = matrix("token_embd.weight")
        head = matrix("output.weight") if "output.weight" in file.tensors else embedding
        layers = [
            LayerWeights(
                attn_norm=vector(f"{p}.attn_norm.weight"),
                qkv=projection(*(f"{p}.attn_{x}.weight" for x in "qkv")),
                q_norm=vector(f"{p}.attn_q_norm.weight"),
                k_norm=vector(f"{p}.attn_k_norm.weight"),
                attn_output=projection(f"{p}.attn_output.weight"),
                ffn_norm=vector(f"{p}.ffn_norm.weight"),
                gate_up=gate_up(p),
                down=projection(f"{p}.ffn_down.weight"),
            )
            for p in (f"blk.{i}" for i in range(config.n_layers))
        ]
        return ModelWeights(
            embedding=embedding,
            layers=layers,
            output_norm=vector("output_norm.weight"),
            head=head,
        )
    except BaseException:
        for handle in uploaded:
            handle.close()
        raise


def _float32(file: GGUFFile, name: str) -> np.ndarray:
    data = file.tensor_data(name)
    match file.tensors[name].format:
        case "F32":
            return np.frombuffer(data, "<f4").astype(np.float32)
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case _:  # BF16: the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
