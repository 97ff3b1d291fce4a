"""Small random models of every format and shape against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ALL_FORMATS, BLOCK_FORMATS, relative_error
from tiny_models import Tensors, Tiny, random_tensors, reference_logits, write

from oxibonsai import metal
from oxibonsai.model import Model

DENSE = ("F32", "F16", "BF16", "Q8_0")


def check(
    device: metal.Device,
    path: Path,
    tiny: Tiny,
    tensors: Tensors,
    metadata: dict[str, Any] | None = None,
    *,
    kv_dtype: Any = "f32",
    n: int = 7,
) -> None:
    """Compare the logits of `n` positions: each with K/V in float32, all together in half."""
    ids = np.random.default_rng(9).integers(0, tiny.vocab, n).tolist()
    expected = reference_logits(tiny, tensors, ids)
    write(path, tiny, tensors, metadata)
    with Model.load(path, device) as model, model.session(kv_dtype=kv_dtype) as session:
        found = session.forward(ids)
        assert found is not None
        if kv_dtype == "f16":
            assert relative_error(found, expected) <= 1e-3
        else:
            errors = [relative_error(y, r) for y, r in zip(found, expected, strict=True)]
            assert max(errors) <= 1e-5, f"at position {int(np.argmax(errors))}"
        # The device's own choice after the last token.
        assert next(session.generate(1)) == int(np.argmax(found[-1]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("format_name", ALL_FORMATS)
def test_model_of_one_format(device, path, format_name, tied):
    tiny = Tiny(hidden=256, n_heads=2, n_kv_heads=1, head_dim=128)
    check(device, path, tiny, random_tensors(tiny, format_name, tied=tied, seed=1))


@pytest.mark.parametrize("layers", ["Q1_0", "TQ2_0_g128", "Q2_0"])
@pytest.mark.parametrize("format_name", DENSE)
def test_dense_embedding_and_head_beside_block_formats(device, path, format_name, layers):
    tiny = Tiny(n_layers=1)
    formats = {"token_embd": format_name, "output": format_name}
    check(device, path, tiny, random_tensors(tiny, layers, formats=formats, tied=False))


@pytest.mark.parametrize(
    ("embedding", "head"),
    [("Q8_0", "F16"), ("F16", "Q1_0"), ("Q1_0", "F32"), ("BF16", "PTQ1_0"), ("Q2_0", "Q8_0")],
)
def test_embedding_and_head_of_different_formats(device, path, embedding, head):
    tiny = Tiny(n_layers=1)
    formats = {"token_embd": embedding, "output": head}
    check(device, path, tiny, random_tensors(tiny, "Q1_0", formats=formats, tied=False))


@pytest.mark.parametrize("format_name", DENSE)
def test_dense_embedding_that_is_the_head_too(device, path, format_name):
    tiny = Tiny(n_layers=1)
    check(device, path, tiny, random_tensors(tiny, "Q1_0", formats={"token_embd": format_name}))


@pytest.mark.parametrize(
    "formats",
    [
        ("Q1_0", "Q1_0", "Q8_0"),
        ("Q8_0", "Q1_0", "Q1_0"),
        ("Q1_0", "TQ2_0_g128", "Q1_0"),
        ("TQ2_0_g128", "PQ2_0", "PTQ1_0"),
        ("F16", "F32", "BF16"),
        ("Q2_0", "Q2_0", "F16"),
        ("Q1_0", "Q2_0_g128", "Q2_0_g128"),
    ],
    ids="-".join,
)
def test_q_k_and_v_of_different_formats(device, path, formats):
    tiny = Tiny(n_layers=2)
    mixed = dict(zip(("attn_q", "attn_k", "attn_v"), formats, strict=True))
    check(device, path, tiny, random_tensors(tiny, "Q1_0", formats=mixed))


def test_every_projection_of_another_format(device, path):
    tiny = Tiny(hidden=256, n_heads=4, n_kv_heads=2, head_dim=64)
    formats = {
        "token_embd": "Q8_0",
        "attn_q": "Q1_0",
        "attn_k": "TQ2_0",
        "attn_v": "PTQ1_0",
        "attn_output": "PQ2_0",
        "ffn_gate": "Q2_0",
        "ffn_up": "Q2_0",
        "ffn_down": "Q1_0",
        "output": "F16",
        "norm": "F16",
    }
    check(device, path, tiny, random_tensors(tiny, formats=formats, tied=False))


def test_layers_of_different_formats(device, path):
    tiny = Tiny(n_layers=len(BLOCK_FORMATS) - 2, hidden=256, inter=256)
    kept = [f for f in BLOCK_FORMATS if f not in ("Q2_0", "Q2_0_g128")]  # 42 means one of three
    tensors = random_tensors(tiny, "Q1_0")
    for i, name in enumerate(kept):
        other = random_tensors(tiny, name, seed=i)
        tensors |= {key: t for key, t in other.items() if key.startswith(f"blk.{i}.")}
    check(device, path, tiny, tensors)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (8, 1), (8, 4)], ids=str)
def test_grouped_query_attention(device, path, heads, head_dim):
    tiny = Tiny(hidden=128, n_heads=heads[0], n_kv_heads=heads[1], head_dim=head_dim)
    check(device, path, tiny, random_tensors(tiny, "Q1_0", seed=2))


@pytest.mark.parametrize("head_dim", [32, 96])
def test_other_head_dims(device, path, head_dim):
    tiny = Tiny(n_heads=4, n_kv_heads=2, head_dim=head_dim)
    formats = {"attn_output": "F16"}
    check(device, path, tiny, random_tensors(tiny, "Q1_0", formats=formats))


@pytest.mark.parametrize("vocab", [1, 15, 17, 33, 250])
def test_vocabulary_that_is_no_multiple_of_a_tile(device, path, vocab):
    tiny = Tiny(n_layers=1, vocab=vocab)
    check(device, path, tiny, random_tensors(tiny, "Q1_0"))


@pytest.mark.parametrize(("hidden", "inter"), [(192, 320), (256, 128), (128, 384), (160, 96)])
def test_other_widths(device, path, hidden, inter):
    tiny = Tiny(hidden=hidden, inter=inter)
    fits = "Q1_0" if hidden % 128 == inter % 128 == 0 else "Q8_0"
    check(device, path, tiny, random_tensors(tiny, fits))


@pytest.mark.parametrize("format_name", ["F16", "BF16"])
def test_norms_of_two_bytes(device, path, format_name):
    tiny = Tiny()
    check(device, path, tiny, random_tensors(tiny, formats={"norm": format_name}))


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_epsilon_of_the_norms_is_the_files(device, path, eps):
    tiny = Tiny(eps=eps)
    tensors = random_tensors(tiny, "Q8_0", formats={"token_embd": "F32"})
    # So small that epsilon weighs.
    embedding = np.asarray(tensors["token_embd.weight"].data).view(np.float32)
    embedding *= np.float32(0.05)
    check(device, path, tiny, tensors)


@pytest.mark.parametrize("theta", [100.0, 1e6])
def test_base_of_the_rotation_is_the_files(device, path, theta):
    tiny = Tiny(rope_theta=theta)
    check(device, path, tiny, random_tensors(tiny), n=30)


def test_values_that_a_file_may_leave_out(device, path):
    # As many K/V heads as query heads, head_dim = hidden / heads, theta = 10000.
    tiny = Tiny(hidden=256, n_heads=4, n_kv_heads=4, head_dim=64, rope_theta=10000.0)
    left_out = (
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.freq_base",
    )
    check(device, path, tiny, random_tensors(tiny), {f"qwen3.{key}": None for key in left_out})


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("format_name", ["Q1_0", "TQ2_0_g128"])
def test_half_keys_and_values(device, path, format_name, head_dim):
    tiny = Tiny(head_dim=head_dim)
    check(device, path, tiny, random_tensors(tiny, format_name), kv_dtype="f16", n=20)


@pytest.mark.large
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_long_text(device, path, kv_heads):
    tiny = Tiny(n_layers=1, n_heads=4, n_kv_heads=kv_heads, context=701)
    check(device, path, tiny, random_tensors(tiny), n=700)


@pytest.mark.large
def test_last_position_of_a_session_can_be_filled(device, path):
    tiny = Tiny(n_layers=1, context=40)
    check(device, path, tiny, random_tensors(tiny), n=39)


def test_large_activations(device, path):
    tiny = Tiny()
    tensors = random_tensors(tiny, "F16")
    tensors["blk.0.attn_norm.weight"] = np.full(tiny.hidden, 300, np.float32)
    tensors["blk.1.ffn_norm.weight"] = np.full(tiny.hidden, 100, np.float32)
    check(device, path, tiny, tensors)
