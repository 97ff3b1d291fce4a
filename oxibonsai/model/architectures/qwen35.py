"""Qwen3.5: layers of Gated DeltaNet, and among them some of gated attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from oxibonsai.gguf import GGUFError, GGUFFile
from oxibonsai.metal import Rotation, WeightHandle
from oxibonsai.model.architectures.base import ROTATED, LayerStep, moved
from oxibonsai.model.config import MetadataReader, ModelConfig, RecurrentShape
from oxibonsai.model.rotation import check_order_of_heads
from oxibonsai.model.weights import Place, Projection, Turns, WeightLoader

__all__ = ["Qwen35"]

_KEY_EPS = 1e-6
"""Added to the sum of squares of a query or key before its length becomes 1."""
_MAX_DIM = 256  # of a recurrent head, which has to be a multiple of 32 as well
_INTERVAL = 4  # of layers with attention, in files that do not say


class Qwen35:
    """The architecture ``qwen35``, of text alone."""

    name = "qwen35"
    rotated_inputs = (
        ("attn_qkv.weight", "attn_gate.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight"),
        ("attn_output.weight",),
        ("ssm_out.weight",),
        ("ffn_gate.weight", "ffn_up.weight"),
        ("ffn_down.weight",),
    )

    def config(self, file: GGUFFile) -> ModelConfig:
        """Read the shape."""
        counted = ModelConfig.from_gguf(file, partial_rope=True)
        read = MetadataReader(file, self.name)
        skipped = _drafter_layers(read, counted.n_layers)
        n_layers = counted.n_layers - skipped
        _check_sections(read, counted.rotary_dim)
        recurrent = _recurrent_shape(read)
        if counted.rotations is not None:
            n_groups = recurrent.n_value_heads // recurrent.n_key_heads
            check_order_of_heads(file, counted.rotations, n_groups)
        return replace(
            counted,
            n_layers=n_layers,
            attention_layers=_attention_layers(read, n_layers, counted.n_layers),
            recurrent=recurrent,
            n_skipped_layers=skipped,
        )

    def layer_tensors(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a layer's tensors."""
        c = config
        found: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (c.hidden_size,),
            "post_attention_norm.weight": (c.hidden_size,),
            "ffn_gate.weight": (c.intermediate_size, c.hidden_size),
            "ffn_up.weight": (c.intermediate_size, c.hidden_size),
            "ffn_down.weight": (c.hidden_size, c.intermediate_size),
        }
        if c.is_attention(layer):
            kv_size = c.n_kv_heads * c.head_dim
            return found | {
                # The rows of a query head, then those of its gate.
                "attn_q.weight": (2 * c.q_size, c.hidden_size),
                "attn_k.weight": (kv_size, c.hidden_size),
                "attn_v.weight": (kv_size, c.hidden_size),
                "attn_q_norm.weight": (c.head_dim,),
                "attn_k_norm.weight": (c.head_dim,),
                "attn_output.weight": (c.hidden_size, c.q_size),
            }
        r = _shape(c)
        return found | {
            "attn_qkv.weight": (r.conv_channels, c.hidden_size),
            "attn_gate.weight": (r.value_size, c.hidden_size),
            "ssm_alpha.weight": (r.n_value_heads, c.hidden_size),
            "ssm_beta.weight": (r.n_value_heads, c.hidden_size),
            "ssm_conv1d.weight": (r.conv_channels, r.conv_width),
            "ssm_a": (r.n_value_heads,),
            "ssm_dt.bias": (r.n_value_heads,),
            "ssm_norm.weight": (r.value_dim,),
            "ssm_out.weight": (c.hidden_size, r.value_size),
        }

    def scratch(self, config: ModelConfig) -> dict[str, int]:
        """Return the activations of a token beside those of every architecture."""
        r = _shape(config)
        return {
            "gate": config.q_size,  # of attention
            "projected": _projected_size(r),  # queries, keys, values, and the gate behind them
            "convolved": r.conv_channels,
            "alpha_beta": 2 * r.n_value_heads,
            "mixed": r.value_size,
        }

    def load_layer(
        self, loader: WeightLoader, config: ModelConfig, layer: int
    ) -> AttentionLayer | RecurrentLayer:
        """Upload a layer."""
        p = f"blk.{layer}."
        rest = FeedForward(
            norm=loader.vector(f"{p}post_attention_norm.weight"),
            gate_up=loader.matrix(f"{p}ffn_gate.weight", f"{p}ffn_up.weight"),
            down=loader.matrix(f"{p}ffn_down.weight"),
            gate_up_rotation=loader.rotation(f"{p}ffn_gate.weight"),
            down_rotation=loader.rotation(f"{p}ffn_down.weight"),
        )
        if config.is_attention(layer):
            q, gate = (Turns(f"{p}attn_q.weight", config.head_dim, i, 2) for i in range(2))
            return AttentionLayer(
                attn_norm=loader.vector(f"{p}attn_norm.weight"),
                qkv=loader.projection(q, f"{p}attn_k.weight", f"{p}attn_v.weight"),
                gate=loader.matrix(gate),
                q_norm=loader.vector(f"{p}attn_q_norm.weight"),
                k_norm=loader.vector(f"{p}attn_k_norm.weight"),
                attn_output=loader.matrix(f"{p}attn_output.weight"),
                rotation=loader.rotation(f"{p}attn_q.weight"),
                output_rotation=loader.rotation(f"{p}attn_output.weight"),
                rest=rest,
            )
        return RecurrentLayer(
            attn_norm=loader.vector(f"{p}attn_norm.weight"),
            projection=loader.projection(f"{p}attn_qkv.weight", f"{p}attn_gate.weight"),
            alpha_beta=loader.projection(f"{p}ssm_alpha.weight", f"{p}ssm_beta.weight"),
            conv=loader.floats(f"{p}ssm_conv1d.weight"),
            decay=_decay(loader, f"{p}ssm_a"),
            dt_bias=loader.vector(f"{p}ssm_dt.bias"),
            ssm_norm=loader.vector(f"{p}ssm_norm.weight"),
            ssm_out=loader.matrix(f"{p}ssm_out.weight"),
            rotation=loader.rotation(f"{p}attn_qkv.weight"),
            out_rotation=_out_rotation(loader, config, f"{p}ssm_out.weight"),
            rest=rest,
        )


@dataclass(frozen=True)
class FeedForward:
    """What follows the mixing of tokens in every layer."""

    norm: WeightHandle
    gate_up: WeightHandle
    down: WeightHandle
    gate_up_rotation: Rotation | None
    down_rotation: Rotation | None

    @property
    def handles(self) -> list[WeightHandle]:
        """The weights."""
        return [self.norm, self.gate_up, self.down]

    @property
    def operands(self) -> dict[str, Any]:
        """The arguments of ``Commands.feed_forward`` that are of it."""
        return vars(self)


@dataclass(frozen=True)
class AttentionLayer:
    """A layer of attention whose heads are multiplied by a gate, on the device."""

    attn_norm: WeightHandle
    qkv: Projection
    gate: WeightHandle
    q_norm: WeightHandle
    k_norm: WeightHandle
    attn_output: WeightHandle
    rotation: Rotation | None  # of what q, gate, k and v share
    output_rotation: Rotation | None
    rest: FeedForward

    @property
    def first_handles(self) -> list[WeightHandle]:
        """Weights up to the caches."""
        return [self.attn_norm, self.q_norm, self.k_norm, *self.qkv.handles]

    @property
    def second_handles(self) -> list[WeightHandle]:
        """Weights behind them."""
        return [self.gate, self.attn_output, *self.rest.handles]

    def record_keys_and_values(self, step: LayerStep) -> None:
        """Record q, k and v of the normed input, and what goes into the caches."""
        eps = step.config.rms_eps
        self.qkv.record(
            step.commands,
            step.hidden,
            step.qkv,
            n_vectors=step.n_tokens,
            norm=self.attn_norm,
            eps=eps,
            rotation=self.rotation,
            rotated=step.scratch.get(ROTATED),
        )
        for group in () if step.whole else step.groups:
            step.commands.qkv_to_cache(
                step.qkv_of(group),
                self.q_norm,
                self.k_norm,
                step.rope,
                step.k_cache,
                step.v_cache,
                group.state,
                eps=eps,
                rotary_dim=step.config.rotary_dim,
                **step.heads_of(group),
            )

    def record_rest(self, step: LayerStep) -> None:
        """Record the attention, its gate and output projection, and the feed-forward block."""
        c = step.config
        for group in step.groups:
            if step.whole:
                step.commands.qkv_attention(
                    step.qkv_of(group),
                    self.q_norm,
                    self.k_norm,
                    step.rope,
                    step.k_cache,
                    step.v_cache,
                    group.state,
                    step.attention_of(group),
                    eps=c.rms_eps,
                    rotary_dim=c.rotary_dim,
                    max_length=group.max_length,
                    **step.heads_of(group),
                )
            else:
                step.commands.attention(
                    step.qkv_of(group),
                    step.k_cache,
                    step.v_cache,
                    group.state,
                    step.attention_of(group),
                    max_length=group.max_length,
                    **step.heads_of(group),
                )
        gate = step.scratch["gate"]
        # The first part has left the rotated norm of these rows.
        rotated = None if self.rotation is None else step.scratch[ROTATED]
        step.commands.gemv(
            self.gate,
            step.hidden if rotated is None else rotated,
            gate,
            n_vectors=step.n_tokens,
            norm=self.attn_norm if rotated is None else None,
            eps=c.rms_eps,
        )
        step.commands.gate(
            step.attention,
            gate,
            step.attention,
            n_heads=c.n_heads,
            head_dim=c.head_dim,
            activation="sigmoid",
            n_vectors=step.n_tokens,
        )
        step.commands.feed_forward(
            step.attention,
            step.hidden,
            step.activated,
            attn_proj=self.attn_output,
            attn_rotation=self.output_rotation,
            n_vectors=step.n_tokens,
            eps=c.rms_eps,
            **self.rest.operands,
        )


@dataclass(frozen=True)
class RecurrentLayer:
    """A layer of Gated DeltaNet on the device."""

    attn_norm: WeightHandle
    projection: Projection
    alpha_beta: Projection
    conv: WeightHandle
    decay: WeightHandle
    dt_bias: WeightHandle
    ssm_norm: WeightHandle
    ssm_out: WeightHandle
    rotation: Rotation | None  # of what `projection` takes in, not alpha_beta
    out_rotation: Rotation | None
    rest: FeedForward

    @property
    def first_handles(self) -> list[WeightHandle]:
        """Weights up to the state."""
        vectors = [self.attn_norm, self.conv, self.decay, self.dt_bias]
        return [*vectors, *self.projection.handles, *self.alpha_beta.handles]

    @property
    def second_handles(self) -> list[WeightHandle]:
        """Weights behind it."""
        return [self.ssm_norm, self.ssm_out, *self.rest.handles]

    def record_keys_and_values(self, step: LayerStep) -> None:
        """Record what goes into the state, and what each token reads from it."""
        r, place = _shape(step.config), step.recurrent
        assert place is not None
        for projection, y, rotation in (
            (self.projection, step.scratch["projected"], self.rotation),
            (self.alpha_beta, step.scratch["alpha_beta"], None),
        ):
            projection.record(
                step.commands,
                step.hidden,
                y,
                n_vectors=step.n_tokens,
                norm=self.attn_norm,
                eps=step.config.rms_eps,
                rotation=rotation,
                rotated=step.scratch.get(ROTATED),
            )
        offset = r.slot_size(step.config.ordinal(step.layer))
        for group in step.groups:

            def rows(name: str, size: int, first: int = group.first) -> Place:
                return moved(step.scratch[name], 4 * size * first)

            slots: dict[str, Any] = {
                "slot_size": step.config.slot_size,
                "ring": place.ring,
                "n_tokens": group.n_tokens,
                "batch": group.batch,
            }
            convolved = rows("convolved", r.conv_channels)
            step.commands.conv(
                rows("projected", _projected_size(r)),
                self.conv,
                group.state,
                place.states,
                convolved,
                n_channels=r.conv_channels,
                width=r.conv_width,
                offset=offset,
                x_stride=_projected_size(r),
                **slots,
            )
            step.commands.delta(
                convolved,
                rows("alpha_beta", 2 * r.n_value_heads),
                self.decay,
                self.dt_bias,
                group.state,
                place.states,
                rows("mixed", r.value_size),
                n_key_heads=r.n_key_heads,
                n_value_heads=r.n_value_heads,
                key_dim=r.key_dim,
                value_dim=r.value_dim,
                offset=offset + r.conv_size,
                eps=_KEY_EPS,
                **slots,
            )

    def record_rest(self, step: LayerStep) -> None:
        """Record the norm and gate of the heads, their projection, and the feed-forward block."""
        r, mixed = _shape(step.config), step.scratch["mixed"]
        step.commands.gate(
            mixed,
            moved(step.scratch["projected"], 4 * r.conv_channels),
            mixed,
            n_heads=r.n_value_heads,
            head_dim=r.value_dim,
            activation="silu",
            norm=self.ssm_norm,
            eps=step.config.rms_eps,
            n_vectors=step.n_tokens,
            z_stride=_projected_size(r),
        )
        step.commands.feed_forward(
            mixed,
            step.hidden,
            step.activated,
            attn_proj=self.ssm_out,
            attn_rotation=self.out_rotation,
            n_vectors=step.n_tokens,
            eps=step.config.rms_eps,
            **self.rest.operands,
        )


def _shape(config: ModelConfig) -> RecurrentShape:
    assert config.recurrent is not None
    return config.recurrent


def _projected_size(shape: RecurrentShape) -> int:
    return shape.conv_channels + shape.value_size


def _out_rotation(loader: WeightLoader, config: ModelConfig, name: str) -> Rotation | None:
    """Return the rotation of ssm_out's input, which may have the heads of a key head together."""
    r, rotations = _shape(config), config.rotations
    if rotations is None or not rotations.gdn_v_grouped:
        return loader.rotation(name)
    return loader.rotation(name, head_size=r.value_dim, n_groups=r.n_value_heads // r.n_key_heads)


def _decay(loader: WeightLoader, name: str) -> WeightHandle:
    """Upload -exp(A_log); GGUFError where the file has something else, with which states grow."""
    values = loader.values(name)
    if not (np.isfinite(values).all() and (values <= 0).all()):
        raise GGUFError(
            f"{loader.path}: tensor {name!r} has values from {values.min()} to {values.max()}; "
            "-exp(A_log), which is finite and not above 0, is needed: convert the model again"
        )
    return loader.vector(name)


def _drafter_layers(read: MetadataReader, n_counted: int) -> int:
    """Return how many of the layers that the file counts are a drafter's, behind the model's."""
    key = "nextn_predict_layers"
    found = read.integer(key, 0, low=0)
    if found >= n_counted:
        raise GGUFError(
            f"{read.file.path}: {read.architecture}.{key} = {found} leaves nothing of "
            f"{n_counted} layers (block_count)"
        )
    parts = [name.split(".") for name in read.file.tensors if name.startswith("blk.")]
    drafters = {part[1] for part in parts if part[2:3] == ["nextn"]}
    others = {part[1] for part in parts} - drafters
    for layer in range(n_counted - found, n_counted):
        if str(layer) in others:
            raise GGUFError(
                f"{read.file.path}: {read.architecture}.{key} = {found} leaves out layer {layer}, "
                f"which has tensors, but none 'blk.{layer}.nextn.*' of a drafter's: set it to 0, "
                "or convert the model again"
            )
    return found


def _attention_layers(read: MetadataReader, n_layers: int, n_counted: int) -> tuple[bool, ...]:
    """Return which layers have attention, by the list of the others or by the interval."""
    path, metadata = read.file.path, read.file.metadata
    list_name = f"{read.architecture}.attention.recurrent_layers"
    interval_name = f"{read.architecture}.full_attention_interval"
    listed = metadata.get(list_name)
    interval = read.integer("full_attention_interval", _INTERVAL)
    found = tuple((i + 1) % interval == 0 for i in range(n_layers))
    if listed is not None:
        if not (
            isinstance(listed, np.ndarray)
            and listed.dtype.kind in "biu"
            and np.isin(listed, (0, 1)).all()
            and len(listed) in (n_layers, n_counted)
        ):
            raise GGUFError(
                f"{path}: {list_name} is {listed!r}; a list of booleans, one for each of "
                f"{n_counted} layers, is needed"
            )
        by_list = tuple(not x for x in listed[:n_layers].tolist())
        if interval_name in metadata and by_list != found:
            raise GGUFError(
                f"{path}: {list_name} and {interval_name} = {interval} name different layers: "
                "convert the model again"
            )
        found = by_list
    if not any(found) or all(found):
        kind = "recurrent" if not any(found) else "attention"
        raise GGUFError(
            f"{path}: all {n_layers} layers are {kind} ones by {list_name} or {interval_name}; "
            "models with layers of both kinds are supported"
        )
    return found


def _recurrent_shape(read: MetadataReader) -> RecurrentShape:
    """Read the shape of the recurrent layers."""
    path, name = read.file.path, read.architecture
    n_key_heads, n_value_heads = (
        read.integer(f"ssm.{x}") for x in ("group_count", "time_step_rank")
    )
    key_dim, value_size = (read.integer(f"ssm.{x}") for x in ("state_size", "inner_size"))
    if n_value_heads % n_key_heads:
        raise GGUFError(
            f"{path}: {n_value_heads} value heads ({name}.ssm.time_step_rank) do not divide among "
            f"{n_key_heads} key heads ({name}.ssm.group_count)"
        )
    value_dim, left = divmod(value_size, n_value_heads)
    if left:
        raise GGUFError(
            f"{path}: {name}.ssm.inner_size = {value_size} does not divide among {n_value_heads} "
            f"value heads ({name}.ssm.time_step_rank)"
        )
    for dim, what in ((key_dim, "ssm.state_size"), (value_dim, "ssm.inner_size of a value head")):
        if dim % 32 or dim > _MAX_DIM:
            raise GGUFError(
                f"{path}: {name}.{what} = {dim} must be a multiple of 32, at most {_MAX_DIM}"
            )
    conv_width = read.integer("ssm.conv_kernel", low=2)
    return RecurrentShape(n_key_heads, n_value_heads, key_dim, value_dim, conv_width)


def _check_sections(read: MetadataReader, rotary_dim: int) -> None:
    """Check that the axes of positions share out the pairs that RoPE turns.

    All axes of a text have one position, so that it does not matter which of them turns a pair.
    """
    name = f"{read.architecture}.rope.dimension_sections"
    found = read.file.metadata.get(name)
    if found is None:
        return
    if not (
        isinstance(found, np.ndarray)
        and found.dtype.kind in "iu"
        and (found >= 0).all()
        and int(found.sum(dtype=np.int64)) == rotary_dim // 2
    ):
        raise GGUFError(
            f"{read.file.path}: {name} is {found!r}; integers of 0 or more that add up to half of "
            f"rope.dimension_count, {rotary_dim // 2}, are needed"
        )
