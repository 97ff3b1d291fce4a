"""Copies of sessions and their files, what they cost, and how probable a text is."""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hybrids
from cases import held_by, relative_error
from tiny_models import Tiny, byte_vocabulary, random_tensors, reference_logits, write

from oxibonsai import metal
from oxibonsai.model import Model, Session, SessionFileError
from oxibonsai.model.runtime import statefile

TINY = Tiny(context=600, vocab=257)
IDS = np.random.default_rng(3).integers(1, 256, 30).tolist()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    return random_tensors(TINY)


@pytest.fixture
def model(device: metal.Device, tmp_path: Path, tensors: dict[str, Any]) -> Iterator[Model]:
    path = write(tmp_path / "tiny.gguf", TINY, tensors, byte_vocabulary())
    with Model.load(path, device) as model:
        yield model


@pytest.fixture(params=["f16", "f32", "q8"])
def session(model: Model, request: pytest.FixtureRequest) -> Iterator[Session]:
    with model.session(kv_dtype=request.param) as session:
        session.forward(IDS, logits=None)
        yield session


def go_on(session: Session) -> tuple[list[int], Any]:
    text = list(session.generate(12, ignore_eos=True))
    return text, session.forward([7, 8])


def same(a: tuple[list[int], Any], b: tuple[list[int], Any]) -> None:
    assert a[0] == b[0]
    np.testing.assert_array_equal(a[1], b[1])


def test_restoring_tells_of_other_activations(model, tmp_path, caplog):
    path = tmp_path / "session"
    with model.session(64) as session:
        session.forward(IDS[:3], logits=None)
        session.save(path)
    with caplog.at_level(logging.INFO, "oxibonsai.model"):
        model.restore_session(path).close()
        assert not caplog.records
        saved, other = model.activations, "float32" if model.activations == "half" else "int8"
        model.activations = other
        model.restore_session(path).close()
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert f"activations of {saved}, and goes on with {other}" in record.getMessage()


# Copies


def test_copy_goes_on_in_the_same_way_and_on_its_own(session):
    with session.copy() as twin:
        assert twin.tokens == session.tokens
        assert (twin.max_seq, twin.kv_dtype, twin.chunk) == (
            session.max_seq,
            session.kv_dtype,
            session.chunk,
        )
        first = go_on(session)
        assert twin.tokens == IDS
        same(go_on(twin), first)
        session.rewind(3)
        assert twin.position == len(IDS) + 14


def test_copy_of_a_generation_in_flight_holds_the_context(session):
    generation = session.generate(20, lookahead=16, ignore_eos=True)
    got = [next(generation) for _ in range(4)]
    with session.copy() as twin:
        assert twin.tokens == IDS + got
        assert list(twin.generate(3, ignore_eos=True)) == [next(generation) for _ in range(3)]


def test_copy_of_an_empty_and_of_a_rewound_session(model):
    with model.session() as session:
        with session.copy() as twin:
            assert twin.tokens == []
            twin.forward(IDS, logits=None)
        session.forward(IDS, logits=None)
        session.rewind(9)
        with session.copy() as twin:
            assert list(twin.generate(5)) == list(session.generate(5))


@pytest.mark.large
def test_copy_of_a_session_that_has_grown(model):
    with model.session() as session:
        session.forward(IDS * 10, logits=None)
        with session.copy() as twin:
            same(go_on(twin), go_on(session))


# Files


def test_restored_session_goes_on_in_the_same_way(model, session, tmp_path):
    path = tmp_path / "text.session"
    session.save(path)
    with model.restore_session(path) as restored:
        assert restored.tokens == IDS
        assert (restored.max_seq, restored.kv_dtype) == (session.max_seq, session.kv_dtype)
        same(go_on(restored), go_on(session))
    with model.restore_session(str(path), max_seq=40, chunk=3, profile=True) as restored:
        assert (restored.max_seq, restored.chunk) == (40, 3)
        assert restored.profile is not None
        restored.forward([1] * 10)


@pytest.mark.parametrize(("fits", "max_seq"), [(1000, 600), (40, 40), (20, 30)])
def test_restored_session_may_grow_to_what_fits_this_device(
    model, session, tmp_path, monkeypatch, fits, max_seq
):
    path = tmp_path / "text.session"
    session.save(path)
    monkeypatch.setattr(statefile.KVCache, "most_positions", lambda *_: fits)
    with model.restore_session(path) as restored:
        assert restored.max_seq == max_seq
        assert restored.tokens == IDS
    with model.restore_session(path, max_seq=50) as restored:  # what is asked for is tried
        assert restored.max_seq == 50


def test_restored_session_of_a_rewound_one(model, session, tmp_path):
    session.rewind(11)
    session.save(tmp_path / "text.session")
    with model.restore_session(tmp_path / "text.session") as restored:
        assert restored.tokens == IDS[:11]
        assert list(restored.generate(6)) == list(session.generate(6))


def test_empty_session_can_be_saved(model, tmp_path):
    with model.session(50) as session:
        session.save(tmp_path / "empty.session")
    with model.restore_session(tmp_path / "empty.session") as restored:
        assert restored.position == 0
        assert restored.max_seq == 50
        restored.forward(IDS)


def test_a_deterministic_session_stays_one(model, tmp_path):
    for deterministic in (False, True):
        with model.session(deterministic=deterministic) as session:
            session.forward(IDS, logits=None)
            session.save(tmp_path / "text.session")
        with model.restore_session(tmp_path / "text.session") as restored:
            assert restored.deterministic is deterministic


def test_file_is_what_safetensors_defines(model, session, tmp_path):
    path = tmp_path / "text.session"
    session.save(path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__")["format"] == "oxibonsai session"
    assert set(header) == {"k", "v", "tokens", "logits"}
    dtypes = {"F16": "<f2", "F32": "<f4", "U32": "<u4", "U8": "u1"}
    found = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        data = np.frombuffer(raw[8 + length + start : 8 + length + stop], dtypes[entry["dtype"]])
        found[name] = data.reshape(entry["shape"])
    assert found["tokens"].tolist() == IDS
    np.testing.assert_array_equal(found["logits"], session._decoder.logits())
    if session.kv_dtype == "q8":  # of a head, the elements and then the words of its positions
        assert found["k"].shape == found["v"].shape == (2, 2, 30 * (64 + 8))
        whole = np.empty((2, 2, 256 * (64 + 8)), np.uint8)
        session._decoder.cache.v.read(whole)
        np.testing.assert_array_equal(found["v"][..., : 30 * 64], whole[..., : 30 * 64])
        words = whole[..., 256 * 64 : 256 * 64 + 30 * 8]
        np.testing.assert_array_equal(found["v"][..., 30 * 64 :], words)
        return
    assert found["k"].shape == found["v"].shape == (2, 2, 30, 64)
    whole = np.empty((2, 2, 256, 64), found["v"].dtype)
    session._decoder.cache.v.read(whole)
    np.testing.assert_array_equal(found["v"], whole[:, :, :30])


def test_save_that_fails_leaves_the_older_file_and_nothing_else(session, tmp_path, monkeypatch):
    path = tmp_path / "text.session"
    session.save(path)
    before = path.read_bytes()
    session.forward([1, 2])

    def fail(*args: Any) -> None:
        raise OSError("the disk is full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(statefile.os, name, fail)
            with pytest.raises(OSError, match="disk is full"):
                session.save(path)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir() if "session" in p.name] == ["text.session"]
    session.save(path)
    assert path.read_bytes() != before
    with pytest.raises(FileNotFoundError):
        session.save(tmp_path / "nowhere" / "text.session")


def test_save_goes_through_a_link_to_the_file_that_it_points_to(model, session, tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "text.session"
    inner, link = tmp_path / "far" / "inner", tmp_path / "link"
    inner.symlink_to("text.session")
    link.symlink_to(Path("far") / "inner")
    for _ in range(2):  # the file is not there yet, and then it is
        session.save(link)
        assert link.is_symlink()
        assert inner.is_symlink()
        assert not target.is_symlink()
        assert sorted(p.name for p in target.parent.iterdir()) == ["inner", "text.session"]
        with model.restore_session(link) as restored:
            assert restored.tokens == IDS
    # A new file is as readable as any other of its owner's; one that is there keeps its mode.
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode
    target.chmod(0o640)
    session.save(link)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    # A save that fails leaves what was there.
    before = target.read_bytes()
    session.forward([1, 2])
    target.parent.chmod(0o500)
    try:
        if not os.access(target.parent, os.W_OK):
            with pytest.raises(PermissionError):
                session.save(link)
            assert target.read_bytes() == before
    finally:
        target.parent.chmod(0o700)
    nowhere, loop = tmp_path / "nowhere", tmp_path / "loop"
    nowhere.symlink_to("missing/text.session")
    loop.symlink_to("loop")
    for path in (nowhere, loop, tmp_path):
        with pytest.raises(OSError, match=r"No such file|symbolic links|directory"):
            session.save(path)
    assert loop.is_symlink()


def test_save_writes_into_what_is_no_regular_file(session, tmp_path):
    path, fifo = tmp_path / "text.session", tmp_path / "fifo"
    session.save(path)
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        got = pool.submit(fifo.read_bytes)
        session.save(fifo)
        assert got.result(20) == path.read_bytes()
        assert stat.S_ISFIFO(fifo.stat().st_mode)
        read, write = os.pipe()
        with open(read, "rb") as end:
            got = pool.submit(end.read)
            session.save(f"/dev/fd/{write}")
            os.close(write)
            assert got.result(20) == path.read_bytes()
    session.save(os.devnull)
    assert not Path(os.devnull).is_file()
    with open(tmp_path / "open", "wb") as open_file:
        session.save(f"/dev/fd/{open_file.fileno()}")
        assert os.fstat(open_file.fileno()).st_nlink == 1
    assert (tmp_path / "open").read_bytes() == path.read_bytes()
    names = [p.name for p in tmp_path.iterdir() if not p.name.endswith(".gguf")]
    assert sorted(names) == ["fifo", "open", "text.session"]


def test_pipe_is_refused_at_once_where_a_session_is_restored(model, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = time.monotonic()
    for path in (fifo, os.devnull):  # a FIFO that nobody writes into
        with pytest.raises(SessionFileError, match=f"{path}: no regular file"):
            model.restore_session(path)
    assert time.monotonic() - started < 5
    with pytest.raises(IsADirectoryError):
        model.restore_session(tmp_path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> bytes:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def metadata(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["__metadata__"].update(changes)


def entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update(changes)


HUGE = 2**62


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (metadata(version="2"), "version '2'"),
        (metadata(version=["1"], model="0" * 32), r"version \['1'\]"),
        (metadata(model="0" * 32), "another model, 'tiny'"),
        (metadata(format="other"), "no session file"),
        (metadata(max_seq="601"), "context_length is 600"),
        (metadata(max_seq="29"), "30 tokens of 29"),
        (metadata(max_seq="many"), "no session file"),
        (metadata(chunk="0"), "30 tokens"),
        (metadata(chunk="4097"), "in chunks of 4097"),
        (entry("k", dtype="F64"), "dtype 'F64'"),
        (entry("k", dtype=["F16"]), r"dtype \['F16'\]"),
        (entry("v", dtype="F32", shape=[2, 2, 30, 64]), "not those of 30 tokens"),
        (entry("tokens", shape=[HUGE]), "tokens of 600"),
        (entry("tokens", shape=[-1]), "-1 tokens"),
        (entry("tokens", shape=[29]), "not those of 29 tokens"),
        (entry("tokens", shape=["30"]), "for '30' tokens"),
        (entry("tokens", shape=[True]), "for True tokens"),
        (entry("tokens", shape=[]), "no session file"),
        (entry("k", data_offsets=[0, HUGE]), "not those of 30 tokens"),
        (entry("v", data_offsets=[0, 15360]), "not those of 30 tokens"),
        (lambda header: header.pop("v"), "not those of"),
        (lambda header: header.update(more=header["v"]), "not those of"),
        (lambda header: header.pop("__metadata__"), "no session file"),
    ],
)
def test_header_that_does_not_fit_is_refused(model, tmp_path, change, message):
    path = tmp_path / "text.session"
    with model.session() as session:
        session.forward(IDS, logits=None)
        session.save(path)
    path.write_bytes(rewritten(path, change))
    before = held_by(model.device)
    with pytest.raises(SessionFileError, match=message) as caught:
        model.restore_session(path)
    assert path.name in str(caught.value)
    assert held_by(model.device) == before


def test_a_session_of_a_model_of_another_kind_is_said_to_be_one(model, tmp_path):
    shape = tiny_hybrids.Hybrid()
    path = tiny_hybrids.write(tmp_path / "hybrid.gguf", shape, tiny_hybrids.random_tensors(shape))
    with Model.load(path, model.device) as hybrid:
        for one, other in ((model, hybrid), (hybrid, model)):
            with one.session(max_seq=32) as session:
                session.forward([1, 2, 3], logits=None)
                session.save(tmp_path / "text.session")
            with pytest.raises(SessionFileError, match=f"another model, '{one.name}'"):
                other.restore_session(tmp_path / "text.session")


def test_a_version_from_later_on_is_refused_whatever_the_model_is(model, tmp_path):
    path = tmp_path / "text.session"
    with model.session() as session:
        session.forward(IDS, logits=None)
        session.save(path)
    path.write_bytes(rewritten(path, metadata(version="4", model="of another kind")))
    with pytest.raises(SessionFileError, match=r"version '4' .* reads '1' of F16 keys"):
        model.restore_session(path)


def test_a_file_of_8_bits_in_the_older_layout_is_refused(model, tmp_path):
    path = tmp_path / "text.session"
    with model.session(kv_dtype="q8") as session:
        session.forward(IDS, logits=None)
        session.save(path)
    model.restore_session(path).close()
    path.write_bytes(rewritten(path, metadata(version="1")))
    with pytest.raises(
        SessionFileError, match=r"version '1' .* reads '2' of U8 keys: feed the text"
    ):
        model.restore_session(path)


def test_damaged_file_is_refused_and_leaves_nothing(model, tmp_path):
    path = tmp_path / "text.session"
    with model.session() as session:
        session.forward(IDS, logits=None)
        session.save(path)
    raw = path.read_bytes()
    before = held_by(model.device)
    length = int.from_bytes(raw[:8], "little")
    tokens = 8 + length + json.loads(raw[8 : 8 + length])["tokens"]["data_offsets"][0]
    for damaged in (
        b"",
        raw[:7],
        raw[:50],
        raw[:-1],
        raw + b"\0",
        b"\xff" * 8 + raw[8:],
        (1 << 40).to_bytes(8, "little") + raw[8:],
        bytes(8) + raw[8:],
        raw[:8] + b"[" * length + raw[8 + length :],
        raw[:8] + b"\xff" * length + raw[8 + length :],
        raw[:tokens] + (257).to_bytes(4, "little") + raw[tokens + 4 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(SessionFileError):
            model.restore_session(path)
        assert held_by(model.device) == before
    with pytest.raises(FileNotFoundError):
        model.restore_session(tmp_path / "none.session")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="max_seq = 29: the saved text has 30 tokens"):
        model.restore_session(path, max_seq=29)
    model.restore_session(path).close()


def test_session_of_another_model_is_refused(model, device, tmp_path, tensors):
    with model.session() as session:
        session.forward(IDS, logits=None)
        session.save(tmp_path / "text.session")
    other = write(tmp_path / "other.gguf", TINY, random_tensors(TINY, seed=1), byte_vocabulary())
    with Model.load(other, device) as another:
        assert another.fingerprint != model.fingerprint
        with pytest.raises(SessionFileError, match="another model"):
            another.restore_session(tmp_path / "text.session")
    # The same weights in another file are the same model.
    moved = write(tmp_path / "moved.gguf", TINY, tensors, byte_vocabulary())
    with Model.load(moved, device) as again, again.restore_session(tmp_path / "text.session") as s:
        assert s.tokens == IDS


def test_closed_session_has_no_copies_and_no_files(model, tmp_path):
    session = model.session()
    session.close()
    for call in (session.copy, lambda: session.save(tmp_path / "x")):
        with pytest.raises(ValueError, match="the session is closed"):
            call()
    assert os.listdir(tmp_path) == ["tiny.gguf"]


# How probable a text is


def softmax_log(logits: Any, ids: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1))
    return shifted[np.arange(len(ids)), ids] - total


def test_log_probabilities_match_the_definition(model, tensors):
    expected = softmax_log(reference_logits(TINY, tensors, IDS)[:-1], IDS[1:])
    with model.session(kv_dtype="f32") as session:
        for chunk in (1, 7, 128):
            session.rewind(0)
            found = session.log_probabilities(IDS, chunk=chunk)
            assert found.dtype == np.float64
            assert math.isnan(found[0])
            assert relative_error(found[1:], expected) < 1e-5
            assert session.tokens == IDS
        # In two parts: the first of the second part follows the text.
        session.rewind(0)
        parts = [session.log_probabilities(IDS[:9]), session.log_probabilities(IDS[9:])]
        assert relative_error(np.concatenate(parts)[1:], expected) < 1e-5
        session.rewind(9)
        assert relative_error(session.log_probabilities(IDS[9:]), expected[8:]) < 1e-5


def test_perplexity_of_ids_and_of_a_text(model, tensors):
    expected = softmax_log(reference_logits(TINY, tensors, IDS)[:-1], IDS[1:])
    seen: list[tuple[int, int]] = []
    found = model.perplexity(IDS, kv_dtype="f32", progress=lambda *args: seen.append(args))
    assert found.n_tokens == 29
    assert abs(found.log_likelihood - expected.sum()) < 1e-4 * abs(expected.sum())
    assert abs(found.perplexity / np.exp(-expected.mean()) - 1) < 1e-4
    assert seen == [(30, 30)]
    text = bytes(token % 64 + 32 for token in IDS).decode()
    ids = model.tokenizer.encode(text)
    assert model.perplexity(text) == model.perplexity(ids)


def test_perplexity_of_a_long_text_goes_window_by_window(model, tensors):
    seen: list[tuple[int, int]] = []
    found = model.perplexity(
        IDS, window=12, kv_dtype="f32", progress=lambda *args: seen.append(args)
    )
    parts = [IDS[:12], IDS[12:24], IDS[24:]]
    expected = [softmax_log(reference_logits(TINY, tensors, p)[:-1], p[1:]).sum() for p in parts]
    assert found.n_tokens == 27
    assert abs(found.log_likelihood - sum(expected)) < 1e-4 * abs(sum(expected))
    assert seen == [(12, 30), (24, 30), (30, 30)]


@pytest.mark.parametrize("add_bos", [True, 1, False, 0, None])
def test_perplexity_of_a_text_begins_where_the_file_says(device, tmp_path, tensors, add_bos):
    bos = 7
    words = byte_vocabulary() | {
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.add_bos_token": add_bos,
    }
    path = write(tmp_path / "bos.gguf", TINY, tensors, words)
    text = "Alice was beginning to get very tired"
    with Model.load(path, device) as model:
        ids = model.tokenizer.encode(text)
        assert len(ids) == 37
        for window in (None, 15):
            given = [bos, *ids] if add_bos else ids
            parts = [given[at : at + (window or 99)] for at in range(0, len(given), window or 99)]
            if add_bos:
                parts = [[bos, *part[1:]] for part in parts]
            expected = [
                softmax_log(reference_logits(TINY, tensors, p)[:-1], p[1:]).sum() for p in parts
            ]
            found = model.perplexity(text, window=window, kv_dtype="f32")
            assert found.n_tokens == sum(len(part) - 1 for part in parts)
            assert abs(found.log_likelihood - sum(expected)) < 1e-4 * abs(sum(expected))
        # Tokens are taken as they are.
        assert model.perplexity([bos, *ids]).n_tokens == 37
        assert model.perplexity(ids).n_tokens == 36
        if add_bos:
            assert model.perplexity("A").n_tokens == 1
            assert model.perplexity(text) == model.perplexity([bos, *ids])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "0 tokens has no perplexity"),
        ([1], {}, "1 tokens has no perplexity"),
        ([1, 2, 3], {"window": 1}, "predicts nothing"),
        ([1, 2, 3], {"window": 601}, r"1\.\.600"),
        ([1, 999], {}, "token 999 at 1"),
    ],
)
def test_perplexity_of_what_has_none_is_refused(model, ids, options, message):
    with pytest.raises(ValueError, match=message):
        model.perplexity(ids, **options)


# Where the time goes


def test_profile_tells_each_step(model, caplog):
    with model.session() as session:
        assert session.profile is None
    caplog.set_level(logging.INFO, "oxibonsai.model")
    with model.session(profile=True) as session:
        session.forward(IDS, chunk=16)
        list(session.generate(6, lookahead=4, ignore_eos=True))
        profile = session.profile
        assert profile is not None
        kinds = [(run.kind, run.n_tokens) for run in profile.runs]
        assert kinds == [
            ("prefill", 16),
            ("head", 16),
            ("prefill", 14),
            ("head", 14),
            ("choice", 1),
            *[("decode", 1)] * 6,
        ]
        assert profile.of("choice")[0].weight_bytes == 0
        for run in profile.runs:
            assert run.encode > 0
            assert run.device > 0
            assert run.bandwidth == run.weight_bytes / run.device
        weights = model.weights
        decode = profile.of("decode")[0]
        # Tied: the head reads all of the embedding, and one row of it is read for the token.
        row = weights.embedding.nbytes // TINY.vocab
        assert decode.weight_bytes == weights.nbytes + row
        assert decode.dispatches == profile.of("decode")[-1].dispatches > 5 * TINY.n_layers
        total = profile.total("decode")
        assert total.n_tokens == 6
        assert total.encode <= total.wall
        assert total.weight_bytes == 6 * decode.weight_bytes
        assert session.device_time == profile.runs[-1].device
        assert repr(profile) == "<Profile of 2 prefill, 6 decode, 2 head, 1 choice runs>"
        assert len(caplog.records) == 11
        assert "decode of 1: wall" in caplog.messages[-1]
        assert "dispatches" in caplog.messages[-1]
        profile.clear()
        assert not profile.runs
