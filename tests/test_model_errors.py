"""Files that are no good and calls that are wrong: the message, and that nothing is left behind."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import held_by
from gguf_bytes import string
from model_files import Q1_MODEL
from tiny_models import CHAIN, Tensors, Tiny, random_tensors, write, write_chain

import oxibonsai.model.weights
from oxibonsai import gguf, metal, quant
from oxibonsai.gguf import GGUFError, ValueType
from oxibonsai.model import Model, Session, SessionFullError

TINY = Tiny(hidden=256, context=48)
IDS = [5, 17, 76, 0, 33]


class Bench:
    """Writes variants of one good small model and loads them."""

    def __init__(self, device: metal.Device, folder: Path) -> None:
        self.device = device
        self.path = folder / "model.gguf"

    def write(self, metadata: dict[str, Any] | None = None, **changes: Any) -> Path:
        """Write the model with changed metadata, and tensors replaced, or left out by None."""
        tensors: dict[str, Any] = {**random_tensors(TINY), **changes.pop("tensors", {})}
        tensors = {name: t for name, t in tensors.items() if t is not None}
        return write(self.path, TINY, tensors, metadata)

    def refused(
        self, *texts: str, error: type[Exception] = GGUFError, path: Path | None = None, **kw: Any
    ) -> str:
        """Load what was written; return the message. The device must be as it was, and work."""
        before = held_by(self.device)
        with pytest.raises(error) as caught:
            Model.load(path or self.path, self.device, **kw)
        assert held_by(self.device) == before
        message = str(caught.value)
        for text in (path or self.path).name, *texts:
            assert text in message
        self.works()
        return message

    def works(self) -> None:
        good = write(self.path.with_name("good.gguf"), TINY, random_tensors(TINY))
        with Model.load(good, self.device) as model, model.session() as session:
            logits = session.forward(IDS, logits="last")
            assert logits is not None
            assert np.isfinite(logits).all()


@pytest.fixture
def bench(device: metal.Device, tmp_path: Path) -> Bench:
    return Bench(device, tmp_path)


# Files


@pytest.mark.parametrize(
    "name",
    ["output_norm", "blk.0.attn_q", "blk.1.ffn_down", "blk.1.attn_k_norm", "blk.0.ffn_norm"],
)
def test_missing_tensor_is_named(bench, name):
    bench.write(tensors={f"{name}.weight": None})
    bench.refused(f"'{name}.weight'", "missing")


def test_missing_embedding_is_named(bench):
    bench.write(tensors={"token_embd.weight": None})
    bench.refused("'token_embd.weight'", "missing")


def test_first_of_many_missing_tensors_is_named_with_their_number(bench):
    bench.write({"qwen3.block_count": 4})
    bench.refused("22 tensors are missing", "'blk.2.attn_norm.weight'")


def quantized(n_rows: int, k: int) -> quant.QTensor:
    return quant.quantize(np.ones((n_rows, k), np.float32), "Q1_0")


@pytest.mark.parametrize(
    ("name", "tensor", "shapes"),
    [
        ("blk.0.attn_q.weight", quantized(255, 256), ("(255, 256)", "(256, 256)")),
        ("blk.0.attn_k.weight", quantized(256, 128), ("(256, 128)", "(128, 256)")),
        ("blk.1.ffn_up.weight", quantized(256, 128), ("(256, 128)", "(256, 256)")),
        ("blk.1.attn_output.weight", quantized(256, 384), ("(256, 384)", "(256, 256)")),
        ("output.weight", quantized(78, 256), ("(78, 256)", "(77, 256)")),
        ("token_embd.weight", quantized(77, 128), ("(77, 128)", "(77, 256)")),
        ("output_norm.weight", np.ones(255, np.float32), ("(255,)", "(256,)")),
        ("blk.0.attn_q_norm.weight", np.ones(128, np.float32), ("(128,)", "(64,)")),
        ("blk.0.attn_norm.weight", np.ones((1, 256), np.float32), ("(1, 256)", "(256,)")),
        ("blk.0.attn_q.weight", np.ones((2, 128, 256), np.float32), ("(2, 128, 256)",)),
    ],
)
def test_tensor_of_another_shape_is_refused_with_both_shapes(bench, name, tensor, shapes):
    bench.write(tensors={name: tensor})
    bench.refused(repr(name), *shapes)


def test_embedding_that_is_no_matrix_is_refused(bench):
    bench.write(tensors={"token_embd.weight": np.ones(256, np.float32)})
    bench.refused("'token_embd.weight'", "(256,)", "matrix")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_q.bias", (256,)),
        ("blk.2.attn_norm.weight", (256,)),
        ("rope_freqs.weight", (32,)),
        ("blk.0.ffn_gate_inp.weight", (8, 256)),
    ],
)
def test_tensor_that_has_no_place_in_the_model_is_refused(bench, name, shape):
    bench.write(tensors={name: np.ones(shape, np.float32)})
    bench.refused(repr(name))


def retype(path: Path, name: str, ggml_type: int) -> None:
    """Overwrite the type id of a tensor in the file."""
    raw = bytearray(path.read_bytes())
    at = raw.index(string(name)) + len(string(name))
    (n_dims,) = struct.unpack_from("<I", raw, at)
    struct.pack_into("<I", raw, at + 4 + 8 * n_dims, ggml_type)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("ggml_type", "type_name"), [(12, "Q4_K"), (14, "Q6_K"), (999, "unknown type 999")]
)
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight"])
def test_unsupported_type_is_named_with_its_tensor(bench, name, ggml_type, type_name):
    part = name.split(".")[-2]
    write(bench.path, TINY, random_tensors(TINY, formats={part: "Q8_0"}))
    retype(bench.path, name, ggml_type)
    bench.refused(repr(name), type_name, "Q8_0")


@pytest.mark.parametrize("name", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_quantised_norm_is_refused(bench, name):
    q = quant.quantize(np.ones((1, 256), np.float32), "Q8_0")
    bench.write(tensors={name: (q.data, (256,), "Q8_0")})
    bench.refused(repr(name), "Q8_0", "F32")


@pytest.mark.parametrize("value", ["llama", "qwen2", "", None, 3, "QWEN3"])
def test_other_architecture_is_refused_by_its_name(bench, value):
    bench.write({"general.architecture": value})
    bench.refused("general.architecture", repr(value), "qwen3")


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ],
)
def test_missing_metadata_is_named(bench, key):
    bench.write({f"qwen3.{key}": None})
    bench.refused(f"'qwen3.{key}'", "missing")


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count_kv"])
@pytest.mark.parametrize("value", [2.0, True, "2", [2, 2]], ids=repr)
def test_metadata_of_another_kind_is_refused(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key}", "integer")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 2**31),
        ("block_count", 2**32 - 1),
        ("block_count", 0),
        ("block_count", ValueType.I32(-1)),
        ("block_count", ValueType.U64(2**64 - 1)),
        ("context_length", 0),
        ("context_length", 2**32 - 1),
        ("embedding_length", 2**31),
        ("embedding_length", 0),
        ("feed_forward_length", 2**32 - 1),
        ("attention.head_count", 0),
        ("attention.head_count", 2**31),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 2**20),
        ("attention.key_length", 0),
        ("attention.key_length", 2**16),
    ],
)
def test_absurd_size_is_refused_with_its_value(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    number = value.value if hasattr(value, "value") else value
    bench.refused(f"qwen3.{key} = {number} must lie in 1..")


def test_more_layers_than_tensors_are_refused_at_once(bench):
    bench.write({"qwen3.block_count": 4096})
    bench.refused("4096", "missing")


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_number_that_is_not_positive_and_finite_is_refused(bench, key, value):
    bench.write({f"qwen3.{key}": value})
    bench.refused(f"qwen3.{key} = {value} must be finite and above 0")


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "rope.freq_base"])
def test_number_of_another_kind_is_refused(bench, key):
    bench.write({f"qwen3.{key}": "1e-6"})
    bench.refused(f"qwen3.{key} is '1e-6'")


@pytest.mark.parametrize(
    ("metadata", "texts"),
    [
        ({"attention.head_count_kv": 3}, ("4 query heads", "3 key-value heads")),
        ({"attention.key_length": 63}, ("head_dim = 63", "odd")),
        ({"attention.value_length": 128}, ("value_length is 128", "64")),
        ({"attention.value_length": [64, 64]}, ("value_length",)),
        ({"rope.dimension_count": 32}, ("rope.dimension_count is 32", "64")),
    ],
)
def test_shape_of_attention_that_is_not_supported_is_refused(bench, metadata, texts):
    bench.write({f"qwen3.{key}": value for key, value in metadata.items()})
    bench.refused(*texts)


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
        {"rope.scaling.factor": 2.0},
        {"rope.scale_linear": 8.0},
    ],
)
def test_rope_scaling_is_refused_by_name(bench, metadata):
    bench.write({f"qwen3.{key}": value for key, value in metadata.items()})
    kind = str(metadata.get("rope.scaling.type", "none"))
    bench.refused("RoPE scaling", kind, f"{max(v for v in metadata.values() if v != kind)}")


def test_rope_scaling_that_says_none_is_no_scaling(bench):
    path = bench.write({"qwen3.rope.scaling.type": "none", "qwen3.rope.scaling.factor": 1.0})
    with Model.load(path, bench.device) as model, model.session() as session:
        session.forward(IDS)


@pytest.mark.parametrize("key", ["prism.hadamard.block_size", "prism.hadamard.seed"])
def test_activation_transform_is_refused_by_the_names_of_its_keys(bench, key):
    bench.write({key: 128})
    bench.refused(key, "activation transform")


def test_gate_and_up_of_different_formats_are_refused_by_name(bench):
    # In the last layer: much is on the device by then.
    up = random_tensors(TINY, "PQ2_0")["blk.1.ffn_up.weight"]
    bench.write(tensors={"blk.1.ffn_up.weight": up})
    bench.refused("'blk.1.ffn_gate.weight' is Q1_0", "'blk.1.ffn_up.weight' is PQ2_0")


def test_ambiguous_type_42_asks_for_its_name_and_takes_it(bench):
    # All zero: code bytes that are finite scales too, in either order.
    zero = quant.quantize(np.zeros((77, 256), np.float32), "TQ2_0_g128")
    path = bench.write(tensors={"token_embd.weight": zero})
    message = bench.refused("ambiguous", "'token_embd.weight'")
    for name in ("Q2_0_g128", "TQ2_0_g128"):
        assert name in message
        with Model.load(path, bench.device, type42=name) as model:
            assert model.weights.embedding.format == name
    bench.refused("type42='Q2_0'", "contradicts", type42="Q2_0")


def test_file_cut_short_is_refused(bench):
    path = bench.write()
    raw = path.read_bytes()
    for length in (0, 10, len(raw) // 3, len(raw) - 64):
        path.write_bytes(raw[:length])
        bench.refused()


def test_missing_file_and_directory_are_refused(bench, tmp_path):
    bench.refused(error=FileNotFoundError, path=tmp_path / "none.gguf")
    bench.refused("directory", path=tmp_path)


@pytest.mark.parametrize("nth", [1, 4, 9])
def test_error_in_the_middle_of_loading_leaves_nothing(bench, monkeypatch, nth):
    calls = 0
    real = oxibonsai.model.weights._float32

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise MemoryError(f"no memory for {bench.path.name}")
        return real(*args)

    bench.write()
    with monkeypatch.context() as patch:
        patch.setattr(oxibonsai.model.weights, "_float32", fail)
        before = held_by(bench.device)
        with pytest.raises(MemoryError):
            Model.load(bench.path, bench.device)
        assert held_by(bench.device) == before
    bench.works()


def test_missing_device_is_refused_before_the_weights_are_read(bench):
    path = bench.write()
    with pytest.raises(metal.DeviceNotFoundError, match="nowhere"):
        Model.load(path, "nowhere")


# Models and sessions


@pytest.fixture
def model(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    path = write(tmp_path / "tiny.gguf", TINY, random_tensors(TINY))
    with Model.load(path, device) as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with model.session(max_seq=8) as session:
        yield session


def last(session: Session, ids: list[int]) -> Any:
    return session.forward(ids, logits="last")


def unchanged(session: Session, ids: list[int]) -> None:
    """Check that the session holds `ids` and goes on as if nothing had happened."""
    assert session.position == len(ids)
    assert session.tokens == ids
    with session.model.session(max_seq=session.max_seq) as fresh:
        fresh.forward(ids, logits=None)
        expected = list(fresh.generate(2))
        again = last(fresh, [1])
    assert list(session.generate(2)) == expected
    np.testing.assert_array_equal(last(session, [1]), again)


@pytest.mark.parametrize("value", [0, -1, 49, 2**40])
def test_cache_longer_than_the_context_is_refused(model, value):
    with pytest.raises(ValueError, match=rf"max_seq = {value} must lie in 1\.\.48"):
        model.session(max_seq=value)


def test_unknown_kind_of_cache_is_refused(model):
    with pytest.raises(ValueError, match="kv_dtype = 'bf16': 'f16' or 'f32'"):
        model.session(kv_dtype="bf16")  # type: ignore[arg-type]


def test_default_cache_holds_the_context_up_to_2048_positions(model, device, tmp_path):
    with model.session() as session:
        assert session.max_seq == 48
    long = replace(TINY, n_layers=1, context=100_000)
    path = write(tmp_path / "long.gguf", long, random_tensors(long))
    with Model.load(path, device) as other, other.session() as session:
        assert session.max_seq == 2048


def test_cache_that_does_not_fit_the_device_is_an_error_and_leaves_nothing(device, tmp_path):
    # 2**24 positions of 128 x 512 halves are 2 TiB.
    wide = Tiny(n_layers=1, n_heads=128, n_kv_heads=128, head_dim=512, context=2**24)
    tensors: dict[str, Any] = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else (np.zeros(shape[0] * shape[1] // 128 * 18, np.uint8), shape, "Q1_0")
        for name, shape in wide.shapes.items()
    }
    path = write(tmp_path / "wide.gguf", wide, tensors)
    with Model.load(path, device) as model:
        before = held_by(device)
        with pytest.raises(metal.BufferCreationError, match=r"\d"):
            model.session(max_seq=2**24)
        assert held_by(device) == before
        with model.session(max_seq=4) as session:
            session.forward([1])


@pytest.mark.parametrize("token", [77, -1, 2**31, 2**32 + 5, -(2**40)])
@pytest.mark.parametrize("at", [0, 3])
def test_token_outside_the_vocabulary_is_refused(session, token, at):
    session.forward([1, 2])
    ids = [3, 4, 5, 6]
    ids[at] = token
    for logits in ("all", "last", None):
        with pytest.raises(ValueError, match=rf"token {token} at {at} .* ids are 0 to 76"):
            session.forward(ids, logits=logits)
    unchanged(session, [1, 2])


@pytest.mark.parametrize("ids", [[], np.empty(0, np.int32)], ids=["list", "array"])
def test_no_tokens_are_refused(session, ids):
    session.forward([1, 2])
    with pytest.raises(ValueError, match="at least one"):
        session.forward(ids)
    unchanged(session, [1, 2])


@pytest.mark.parametrize("ids", ["12", [1.5], np.array([1.0]), [None], 3], ids=repr)
def test_ids_that_are_no_integers_are_refused(session, ids):
    session.forward([1, 2])
    with pytest.raises(TypeError):
        session.forward(ids)
    unchanged(session, [1, 2])


def test_unknown_kind_of_logits_is_refused(session):
    with pytest.raises(ValueError, match="logits = 'none': 'all', 'last' or None"):
        session.forward([1], logits="none")
    assert session.position == 0


def test_ids_of_numpy_are_tokens(session):
    expected = session.forward([1, 2, 76])
    for dtype in (np.int32, np.int64, np.uint16):
        session.rewind(0)
        np.testing.assert_array_equal(session.forward(np.array([1, 2, 76], dtype)), expected)
    assert all(type(token) is int for token in session.tokens)


def test_full_session_says_how_full_and_loses_nothing(session):
    session.forward([1, 2, 3, 4, 5, 6], logits=None)
    for logits in ("all", "last", None):
        with pytest.raises(SessionFullError, match=r"3 tokens do not fit: .* 6 of 8"):
            session.forward([7, 8, 9], logits=logits)
        assert session.position == 6
    assert issubclass(SessionFullError, ValueError)
    text = list(session.generate(2))
    assert session.position == 8
    with pytest.raises(SessionFullError, match=r"1 tokens do not fit: .* 8 of 8"):
        session.forward([1])
    session.rewind(6)
    assert list(session.generate(2)) == text
    session.rewind(5)
    unchanged(session, [1, 2, 3, 4, 5])


def test_generation_into_a_full_session_gives_what_fits(session):
    session.forward([1, 2, 3, 4, 5], logits=None)
    text: list[int] = []
    with pytest.raises(SessionFullError, match="8 of 8"):
        text.extend(session.generate(10))
    assert len(text) == 3
    assert session.tokens == [1, 2, 3, 4, 5, *text]
    # What follows is still known, and there is room for it after a rewind.
    with session.model.session() as longer:
        longer.forward([1, 2, 3, 4, 5], logits=None)
        assert list(longer.generate(3)) == text
    session.rewind(2)
    unchanged(session, [1, 2])


def test_session_can_be_filled_to_the_last_position(model):
    with model.session() as long, model.session(max_seq=5) as exact:
        np.testing.assert_array_equal(long.forward(IDS), exact.forward(IDS))
        assert exact.position == exact.max_seq
    with model.session(max_seq=1) as one:
        one.forward([3])
        with pytest.raises(SessionFullError):
            next(one.generate(1))
        assert one.tokens == [3]


@pytest.mark.parametrize("position", [4, 100, -1])
def test_rewind_out_of_range_is_refused(session, position):
    session.forward([1, 2, 3])
    with pytest.raises(ValueError, match=rf"{position}: the session is at 3"):
        session.rewind(position)
    unchanged(session, [1, 2, 3])


@pytest.mark.parametrize("position", [1.5, "1", None])
def test_rewind_to_what_is_no_integer_is_refused(session, position):
    session.forward([1, 2, 3])
    with pytest.raises(TypeError):
        session.rewind(position)
    unchanged(session, [1, 2, 3])


def test_generate_before_forward_is_refused(session):
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        session.generate()
    session.forward([1])
    session.rewind(0)
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        session.generate()


def test_generation_whose_session_was_rewound_to_nothing_is_refused(session):
    session.forward([1, 2])
    generation = session.generate(4)
    next(generation)
    session.rewind(0)
    with pytest.raises(ValueError, match="feed a prompt with forward"):
        next(generation)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
    ],
    ids=str,
)
def test_argument_of_generate_out_of_range_is_refused_at_the_call(session, arguments):
    session.forward([1])
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} = {value} must be"):
        session.generate(**arguments)
    unchanged(session, [1])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_logits_without_any_number_are_an_error_not_a_token(device, tmp_path, value, temperature):
    tensors: Tensors = random_tensors(TINY, tied=False)
    # The final norm times one row of ones: every logit is `value` or NaN.
    tensors["output.weight"] = np.full((TINY.vocab, TINY.hidden), value, np.float32)
    path = write(tmp_path / "broken.gguf", TINY, tensors)
    with Model.load(path, device) as model, model.session() as session:
        logits = last(session, IDS)
        assert np.isnan(logits).all()
        with pytest.raises(ValueError, match="every logit is NaN"):
            next(session.generate(4, temperature))
        assert session.tokens == IDS


def test_nan_logit_is_never_generated(device, tmp_path):
    tensors = random_tensors(TINY, tied=False, formats={"output": "F32"})
    head = np.asarray(tensors["output.weight"].data).view(np.float32)
    head[::2] = np.nan
    path = write(tmp_path / "half.gguf", TINY, tensors)
    with Model.load(path, device) as model, model.session() as session:
        logits = last(session, IDS)
        assert np.isnan(logits[::2]).all()
        greedy = next(session.generate(1))
        assert greedy == np.nanargmax(logits)
        assert all(token % 2 for token in session.generate(10, 1.0, seed=0))


def use(session: Session) -> dict[str, Callable[[], Any]]:
    return {
        "forward": lambda: session.forward([1]),
        "rewind": lambda: session.rewind(0),
        "generate": lambda: session.generate(),
        "enter": session.__enter__,
    }


@pytest.mark.parametrize("call", ["forward", "rewind", "generate", "enter"])
@pytest.mark.parametrize("closed", ["session", "model"])
def test_closed_session_says_so(model, call, closed):
    session = model.session()
    session.forward([1])
    running = session.generate(3)
    next(running)
    assert not session.closed
    (session if closed == "session" else model).close()
    assert session.closed
    with pytest.raises(ValueError, match="the session is closed"):
        use(session)[call]()
    with pytest.raises(ValueError, match="the session is closed"):
        next(running)
    assert "closed" in repr(session)
    session.close()
    session.close()


def test_closed_model_says_so_and_gives_everything_back(device, tmp_path):
    path = write(tmp_path / "tiny.gguf", TINY, random_tensors(TINY))
    before = held_by(device)
    model = Model.load(path, device)
    assert held_by(device)["buffers"] > before["buffers"]
    assert not model.closed
    session = model.session()
    session.forward([1])
    session.close()
    model.close()
    assert model.closed
    assert held_by(device) == before
    for call in (model.session, model.__enter__):
        with pytest.raises(ValueError, match="the model is closed"):
            call()
    assert "closed" in repr(model)
    model.close()


def test_sessions_open_and_close_without_leaving_anything(model, device):
    before = held_by(device)
    for _ in range(3):
        with model.session() as session:
            session.forward(IDS)
        assert held_by(device) == before


def test_model_without_a_tokenizer_runs_and_says_what_it_lacks(model):
    assert model.end_ids == frozenset()
    with model.session() as session:
        session.forward(IDS)
        assert len(list(session.generate(3))) == 3
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\.model is None"):
        _ = model.tokenizer


def test_generation_stops_before_the_end_of_text_unless_told_not_to(device, tmp_path):
    path = write_chain(tmp_path / "chain.gguf", {10: 11, 11: 12})
    with Model.load(path, device) as model, model.session() as session:
        session.forward([10])
        assert list(session.generate(9)) == [11, 12]
        assert session.tokens == [10, 11, 12]
        assert list(session.generate(9)) == []
        assert list(session.generate(2, ignore_eos=True)) == [256, 256]
        assert model.end_ids == {256}


def test_no_tokens_asked_for_are_none(session):
    session.forward([1])
    assert list(session.generate(0)) == []
    assert session.position == 1


def test_config_holds_the_files_shape(device, tmp_path):
    path = write_chain(tmp_path / "chain.gguf", {})
    with Model.load(path, device) as model:
        c = model.config
        assert (c.n_layers, c.hidden_size, c.intermediate_size) == (1, CHAIN.hidden, CHAIN.inter)
        assert (c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size) == (1, 1, 64, 257)
        assert (c.q_size, c.qkv_size) == (64, 192)
        assert not model.weights.tied
        assert model.name == "tiny"


def test_file_stays_usable_for_others_while_and_after_a_model_is_loaded(device):
    with Model.load(Q1_MODEL, device) as model, gguf.open(Q1_MODEL) as file:
        assert file.metadata["general.name"] == model.name
    with Model.load(str(Q1_MODEL), device) as again:
        assert again.tokenizer.vocab_size == again.config.vocab_size
