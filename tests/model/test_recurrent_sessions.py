"""Sessions with a recurrent state: whatever happened to a text, its bits are those of a fresh one.

On the cpu device the models run with activations of int8: chunks of 8 tokens and more then round
in other places than single tokens, so that a state tells how its text was cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hybrid_texts import Cuts, assert_same, fresh_rows, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_hybrids import Hybrid, random_tensors, write

from oxibonsai import metal
from oxibonsai.model import Model, Session, SessionFileError
from oxibonsai.model.protocols import MAX_STATES_IN_FLIGHT
from oxibonsai.model.runtime import cache
from oxibonsai.model.runtime.cache import KVCache
from oxibonsai.model.runtime.recurrent import RING, RecurrentStates

pytestmark = pytest.mark.large

SHAPE = Hybrid(context=400)
RNG = np.random.default_rng(11)
TEXT = RNG.integers(0, SHAPE.vocab, SHAPE.context).tolist()


@pytest.fixture(scope="module")
def loaded(
    opened_device: metal.Device, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    path = write(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", SHAPE, random_tensors(SHAPE))
    activations: Any = "int8" if opened_device.driver == "cpu" else None
    with Model.load(path, opened_device, activations=activations) as model:
        yield model


@pytest.fixture
def model(loaded: Model, device: metal.Device) -> Model:
    """The model; `device` sees to it that the test's sessions leave nothing."""
    return loaded


def feed(session: Session, cuts: Cuts, n: int, chunk: int) -> None:
    # Other tokens than those that lay there before.
    session.forward(RNG.integers(0, SHAPE.vocab, n).tolist(), logits=None, chunk=chunk)
    cuts.feed(n, chunk)


def check(model: Model, session: Session, cuts: Cuts, **options: Any) -> None:
    """Assert that a session goes on as a fresh one does, and leave it as it was."""
    at = session.position
    assert at == cuts.length
    if at:
        ids = session.tokens
        assert_same(rows_of(session), fresh_rows(model, ids, cuts, **options))
        session.rewind(at)


@pytest.mark.device("cpu")  # others may round a chunk as they round single tokens
def test_the_cut_of_a_text_shows_in_its_bits(model):
    one, other = Cuts(), Cuts()
    one.feed(40, 40)
    other.feed(40, 5)
    rows = [fresh_rows(model, TEXT[:40], cuts) for cuts in (one, other)]
    assert rows[0][0].tobytes() != rows[1][0].tobytes()


@pytest.mark.parametrize("position", [0, 1, 5, 13, 16, 17, 32, 39, 55, 64, 65, 69, 70])
def test_rewinding_gives_the_bits_of_a_fresh_run(model, position):
    with model.session(checkpoint_every=20, max_checkpoints=2) as session:
        cuts = Cuts()
        feed(session, cuts, 40, 16)
        feed(session, cuts, 24, 64)
        list(session.generate(6, ignore_eos=True))
        cuts.feed(6, 1)
        session.rewind(position)
        cuts.rewind(position)
        check(model, session, cuts)
        # And with other tokens behind it.
        feed(session, cuts, 10, 9)
        check(model, session, cuts)


def test_states_of_tokens_that_were_dropped_are_not_taken(model):
    with model.session(checkpoint_every=10, max_checkpoints=8) as session:
        cuts = Cuts()
        feed(session, cuts, 56, 10)
        list(session.generate(4, ignore_eos=True))
        assert {15, 25, 35, 45} & {kept.position for kept in session.checkpoints} == set()
        session.rewind(15)
        cuts.rewind(15)
        assert [kept.position for kept in session.checkpoints] == [10]
        feed(session, cuts, 45, 45)
        for position in (57, 40):  # in the ring before, and at a checkpoint before
            session.rewind(position)
            cuts.rewind(position)
            feed(session, cuts, 3, 3)  # at once: for logits, the last step would run again
            check(model, session, cuts)


def test_a_checkpoint_gives_its_logits_without_a_step(model):
    with model.session(profile=True) as session:
        cuts = Cuts()
        feed(session, cuts, 40, 16)
        list(session.generate(8, ignore_eos=True))
        assert [kept.position for kept in session.checkpoints] == [40]
        session.rewind(40)
        cuts.rewind(40)
        profile = session.profile
        assert profile is not None
        n_runs = len(profile.of("prefill")), len(profile.of("decode"))
        seen = []
        for _ in session.generate(1, logits_callback=lambda row: seen.append(row.copy())):
            break
        assert len(profile.of("prefill")) == n_runs[0]
        assert len(profile.of("decode")) == n_runs[1] + 1
        assert_same(seen, fresh_rows(model, session.tokens[:40], cuts)[:1])


@pytest.mark.parametrize("most", [0, 8])
@pytest.mark.parametrize("how", ["all", "verify", "log_probabilities", "restored"])
def test_logits_behind_a_rewind_do_not_depend_on_checkpoints(model, tmp_path, how, most):
    with model.session(chunk=40) as fresh:
        expected = fresh.forward(TEXT[:40], "last")
        assert expected is not None
    session = model.session(chunk=40, max_checkpoints=most)
    try:
        if how == "verify":
            session.verify(TEXT[:40])
        elif how == "log_probabilities":
            session.log_probabilities(TEXT[:40])
        else:
            session.forward(TEXT[:40], "all")
        if how == "restored":
            session.save(tmp_path / "text")
            session.close()
            session = model.restore_session(tmp_path / "text", max_checkpoints=most)
        list(session.generate(2, ignore_eos=True))
        assert [kept.position for kept in session.checkpoints] == [40] * bool(most)
        session.rewind(40)
        assert rows_of(session, 1)[0].tobytes() == expected.tobytes()
    finally:
        session.close()


@pytest.mark.parametrize("lookahead", [1, 2, 16])
def test_a_stop_sequence_drops_more_tokens_than_the_ring_holds(model, lookahead):
    with model.session(checkpoint_every=16) as session:
        cuts = Cuts()
        feed(session, cuts, 50, 16)
        with session.copy() as twin:
            follows = list(twin.generate(RING + 6, ignore_eos=True))
        given = list(session.generate(40, ignore_eos=True, stop=[follows[2:]], lookahead=lookahead))
        assert session.finish_reason == "stop"
        # The sequence may have begun earlier.
        assert given == follows[: len(given)]
        assert len(given) <= 2
        cuts.feed(len(given), 1)
        check(model, session, cuts)
        feed(session, cuts, 9, 9)
        check(model, session, cuts)


class Failing:
    """A recording whose submissions run, leave no state as it was, and then fail."""

    def __init__(self, commands: metal.Commands, session: Session) -> None:
        self._commands = commands
        self._session = session

    def wait(self, **keep: Any) -> None:
        self._commands.wait()
        states = self._session._decoder.states
        assert states is not None
        for slot in range(RING):
            states.ring.write(slot, np.full(states.ring.slot_size, np.nan, np.float32))
        raise metal.ExecutionError("the test says so")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._commands, name)


@pytest.mark.parametrize("act", ["feed", "generate", "replay"])
def test_after_a_step_that_failed_the_text_is_made_again(model, monkeypatch, act):
    with model.session(checkpoint_every=16) as session:
        cuts = Cuts()
        feed(session, cuts, 50, 10)
        list(session.generate(5, ignore_eos=True))
        cuts.feed(5, 1)
        if act == "replay":
            session.rewind(47)
            cuts.rewind(47)
        decoder = session._decoder
        recorded: Callable[..., Any] = decoder._recorded
        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_recorded", lambda step: Failing(recorded(step), session))
            with pytest.raises(metal.ExecutionError, match="says so"):
                session.forward(TEXT[:20], chunk=10) if act == "feed" else rows_of(session)
        assert session.position == cuts.length
        check(model, session, cuts)


@pytest.mark.parametrize("error", [metal.ExecutionError("the test says so"), KeyboardInterrupt()])
def test_a_rewind_that_failed_leaves_the_text(model, monkeypatch, error):
    with model.session(checkpoint_every=16) as session:
        cuts = Cuts()
        feed(session, cuts, 40, 16)
        decoder = session._decoder
        move: Callable[[int], None] = decoder._move

        def fail(position: int) -> None:
            if position == 20:
                raise error
            move(position)

        with monkeypatch.context() as patch:
            patch.setattr(decoder, "_move", fail)
            with pytest.raises(type(error)):
                session.rewind(20)
        assert session.position == 40
        check(model, session, cuts)
        session.rewind(20)
        cuts.rewind(20)
        check(model, session, cuts)


def assert_states(model: Model, session: Session, cuts: Cuts) -> None:
    """Assert that the states that a session knows of are those of a fresh one."""
    states, ids = session._decoder.states, session.tokens
    assert states is not None
    with model.session(max_checkpoints=0) as fresh:
        start = 0
        for end in cuts.ends:
            fresh.forward(ids[start:end], logits=None, chunk=end - start)
            theirs = fresh._decoder.states
            assert theirs is not None
            if states.has(end):
                assert states.read(end).tobytes() == theirs.read(end).tobytes()
            start = end


@pytest.mark.parametrize(
    ("act", "chunk"), [("feed", 8), ("feed", 5), ("replay", 5), ("generate", 5)]
)
def test_an_interrupt_behind_a_step_leaves_no_state_of_a_wrong_name(model, monkeypatch, act, chunk):
    with model.session(max_checkpoints=0) as session:
        cuts = Cuts()
        feed(session, cuts, 16, 16)
        feed(session, cuts, 24, chunk)
        if act == "replay":
            session.rewind(30)  # from 26 on, whose slot it takes
            cuts.rewind(30)
        decoder = session._decoder
        assert decoder.states is not None

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if act == "generate":
                patch.setattr(decoder.states.log, "add", interrupt)
            else:
                patch.setattr(decoder, "_measure", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.forward(TEXT[:chunk], chunk=chunk) if act == "feed" else rows_of(session)
        assert session.position == cuts.length
        assert_states(model, session, cuts)
        # At once: for logits, the last step would run again.
        feed(session, cuts, 10, 10)
        check(model, session, cuts)


@pytest.mark.parametrize("most", [0, 1, 3, 8])
def test_checkpoints_are_few_and_dense_near_the_end(model, most):
    with model.session(checkpoint_every=8, max_checkpoints=most) as session:
        session.forward(TEXT[:300], logits=None, chunk=4)
        found = session.checkpoints
        assert len(found) == most
        assert all(kept.nbytes == 4 * (model.config.slot_size + SHAPE.vocab) for kept in found)
        positions = [kept.position for kept in found]
        assert positions == sorted(set(positions))
        if most:
            assert positions[-1] >= 288
            assert all(position % 8 == 0 for position in positions)
        if most == 8:
            gaps = np.diff(positions)
            assert gaps[-1] == 8
            assert gaps[0] >= 3 * gaps[-1]


def tokens_run(session: Session) -> int:
    assert session.profile is not None
    runs = (*session.profile.of("prefill"), *session.profile.of("decode"))
    return sum(run.n_tokens for run in runs)


def test_a_rewind_runs_few_tokens_again(model):
    with model.session(checkpoint_every=32, profile=True) as session:
        session.forward(TEXT[:300], logits=None, chunk=16)
        for position, most in ((299, 32), (270, 32), (130, 128)):
            session.rewind(position)
            before = tokens_run(session)
            session.forward(TEXT[:1], logits=None)
            assert 1 < tokens_run(session) - before <= most + 1


def test_a_device_without_memory_for_checkpoints_does_without(model, monkeypatch):
    asked = []

    def refuse(states: Any) -> Any:
        asked.append(states)
        raise metal.BufferCreationError("the test says so")

    with model.session(checkpoint_every=8) as session:
        cuts = Cuts()
        feed(session, cuts, 20, 5)
        assert [kept.position for kept in session.checkpoints] == [10]
        monkeypatch.setattr(type(session._decoder.states), "_allocate", refuse)
        feed(session, cuts, 30, 5)
        assert [kept.position for kept in session.checkpoints] == [40]
        session.rewind(31)
        cuts.rewind(31)
        check(model, session, cuts)
        with model.session(checkpoint_every=8) as other:
            other.forward(TEXT[:50], chunk=10)
            assert other.checkpoints == []
        assert len(asked) == 2  # once by each: asking takes time


def test_steps_in_flight_are_no_more_than_the_ring_holds(model, caplog):
    with model.session() as session:
        session.forward(TEXT[:20], logits=None)
        most = 0
        for _ in session.generate(20, ignore_eos=True, lookahead=16):
            most = max(most, session._decoder.in_flight)
        assert most <= MAX_STATES_IN_FLIGHT
        with caplog.at_level(logging.WARNING, "oxibonsai.model"):
            list(session.generate(3, draft_tokens=4))
        assert "draft_tokens = 4 does nothing: what a draft leaves in the recurrent state" in (
            caplog.text
        )


def test_copies_have_their_own_states_and_checkpoints(model):
    with model.session(checkpoint_every=10) as session:
        cuts = Cuts()
        feed(session, cuts, 60, 12)
        with session.copy() as twin:
            assert twin.checkpoints == session.checkpoints != []
            theirs = Cuts(cuts.ends)
            session.rewind(0)
            feed(session, Cuts(), 60, 60)
            twin.rewind(33)
            theirs.rewind(33)
            check(model, twin, theirs)


def test_a_file_holds_the_state_and_the_steps(model, tmp_path):
    path = tmp_path / "text"
    with model.session(kv_dtype="f32") as session:
        cuts = Cuts()
        feed(session, cuts, 40, 16)
        list(session.generate(5, ignore_eos=True))
        cuts.feed(5, 1)
        session.save(path)
    header, arrays = read_safetensors(path)
    assert header["version"] == "3"
    assert arrays["steps"].tolist() == [[16, 2], [8, 1], [1, 5]]
    assert arrays["recurrent"].shape == (model.config.slot_size,)
    assert arrays["k"].shape == (2, SHAPE.n_kv_heads, 45, SHAPE.head_dim)
    with model.restore_session(path) as session:
        for position in (45, 44, 29):
            session.rewind(position)
            cuts.rewind(position)
            check(model, session, cuts, kv_dtype="f32")


def test_a_restored_text_takes_checkpoints_as_it_is_told(model, tmp_path):
    with model.session() as session:
        session.forward(TEXT[:40], logits=None)
        session.save(tmp_path / "text")
    with model.restore_session(tmp_path / "text", checkpoint_every=8, max_checkpoints=1) as session:
        assert session.checkpoints == []
        session.forward(TEXT[:1], logits=None)
        assert [kept.position for kept in session.checkpoints] == [40]
        session.forward(TEXT[:20], logits=None, chunk=4)
        assert [kept.position for kept in session.checkpoints] == [57]


@pytest.mark.parametrize("kv_dtype", ["f16", "f32", "q8"])
def test_a_deterministic_text_does_not_depend_on_its_chunks(model, kv_dtype):
    found = []
    for chunk in (1, 5, 20):
        with model.session(deterministic=True, kv_dtype=kv_dtype) as session:
            session.forward(TEXT[:20], logits=None, chunk=chunk)
            found.append(rows_of(session))
            session.rewind(13)
            found.append(rows_of(session))
    assert_same(found[0], found[2])
    assert_same(found[0], found[4])
    assert_same(found[1], found[3])
    assert_same(found[1], found[5])


def test_the_states_are_in_the_warning_of_memory(model, monkeypatch):
    told = []
    monkeypatch.setattr(cache, "warn_of_working_set", lambda *args, **kw: told.append(args[1:]))
    with model.session() as session:
        session.forward(TEXT[:257], logits=None)
    kv = 2 * KVCache.nbytes_of(model.config, "f16", 256)
    ring = 4 * RING * model.config.slot_size
    (first, what, _), (grown, *_) = told
    assert first == kv + ring
    assert what.endswith("the K/V cache and the recurrent states take")
    assert grown == 2 * KVCache.nbytes_of(model.config, "f16", SHAPE.context)


def test_a_device_whose_buffers_hold_no_ring_is_told_what_can_run(model, monkeypatch):
    limit = model.device.info.max_buffer_length
    monkeypatch.setattr(RecurrentStates, "nbytes_of", staticmethod(lambda config, n: n * limit))
    message = f"{RING} recurrent states .* take another device, or a smaller model"
    with pytest.raises(metal.BufferCreationError, match=message):
        model.session()


def test_an_empty_text_is_saved(model, tmp_path):
    with model.session() as session:
        session.save(tmp_path / "text")
    with model.restore_session(tmp_path / "text") as session:
        assert session.position == 0
        cuts = Cuts()
        feed(session, cuts, 20, 10)
        check(model, session, cuts)


@pytest.mark.parametrize(
    "runs", [[[1, 9]], [[5, 1], [5, 1], [1, 1]], [[10, 0], [1, 10]], [[4097, 1]], [[0, 5], [10, 1]]]
)
def test_a_log_of_other_steps_is_refused(model, tmp_path, runs):
    path = tmp_path / "text"
    with model.session() as session:
        session.forward(TEXT[:5], logits=None, chunk=5)
        session.forward(TEXT[:5], logits=None, chunk=1)
        session.save(path)
    _, arrays = read_safetensors(path)
    assert arrays["steps"].tolist() == [[5, 1], [1, 5]]
    if len(runs) == 2:
        whole = path.read_bytes()
        at = whole.index(np.array([[5, 1], [1, 5]], "<u4").tobytes())
        path.write_bytes(whole[:at] + np.array(runs, "<u4").tobytes() + whole[at + 16 :])
        with pytest.raises(SessionFileError, match="its steps are not those of 10 tokens"):
            model.restore_session(path)
        return
    text = path.read_bytes().replace(b'"shape": [2, 2]', f'"shape": [{len(runs)}, 2]'.encode())
    path.write_bytes(text)
    with pytest.raises(SessionFileError, match="its arrays are not those of 10 tokens"):
        model.restore_session(path)


def test_checkpoints_are_checked(model):
    with pytest.raises(ValueError, match="checkpoint_every = 0 must lie in 1"):
        model.session(checkpoint_every=0)
    with pytest.raises(ValueError, match="max_checkpoints = -1 must lie in 0"):
        model.session(max_checkpoints=-1)
    with pytest.raises(TypeError, match="max_checkpoints"):
        model.session(max_checkpoints=1.5)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the metadata and the arrays of a session file."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    about = header.pop("__metadata__")
    kinds = {"F32": "<f4", "F16": "<f2", "U32": "<u4", "U8": "<u1"}
    arrays = {}
    for name, entry in header.items():
        first, end = (8 + length + at for at in entry["data_offsets"])
        arrays[name] = np.frombuffer(whole[first:end], kinds[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return about, arrays


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(1, 70), st.sampled_from([1, 3, 8, 16, 33, 64])),
        st.tuples(st.just("generate"), st.integers(1, 12), st.sampled_from([1, 2, 16])),
        st.tuples(st.just("leave"), st.integers(1, 5), st.sampled_from([1, 2, 16])),
        st.tuples(st.just("rewind"), st.integers(0, 399), st.just(0)),
        st.tuples(st.just("copy"), st.just(0), st.just(0)),
        st.tuples(st.just("save"), st.just(0), st.just(0)),
        st.tuples(st.just("fail"), st.integers(2, 40), st.sampled_from([1, 8])),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.device("cpu", "cuda")  # many tokens for one that is interpreted
@settings(max_examples=40)
@given(acts=ACTS, every=st.sampled_from([1, 7, 64]), most=st.sampled_from([0, 1, 3]))
def test_any_schedule_gives_the_bits_of_a_fresh_run(model, tmp_path, acts, every, most):
    session = model.session(checkpoint_every=every, max_checkpoints=most)
    cuts = Cuts()
    try:
        for act, n, how in acts:
            room = session.max_seq - session.position - 4
            if act == "feed" and n <= room:
                feed(session, cuts, n, how)
            elif act == "generate" and session.position and n <= room:
                list(session.generate(n, ignore_eos=True, lookahead=how))
                cuts.feed(n, 1)
            elif act == "leave" and session.position and 3 * n <= room:
                # Steps are in flight, and a token is held, when nobody asks for more.
                tokens = session.generate(3 * n, ignore_eos=True, lookahead=how)
                for _ in range(n):
                    next(tokens)
                cuts.feed(n, 1)
            elif act == "rewind" and n <= session.position:
                session.rewind(n)
                cuts.rewind(n)
            elif act == "copy":
                twin = session.copy()
                session.close()
                session = twin
            elif act == "save":
                session.save(tmp_path / "text")
                session.close()
                session = model.restore_session(tmp_path / "text")
            elif act == "fail" and n <= room:

                def stop(done: int, total: int) -> None:
                    raise KeyboardInterrupt

                with pytest.raises(KeyboardInterrupt):
                    session.forward(TEXT[:n], logits=None, chunk=how, progress=stop)
        check(model, session, cuts)
    finally:
        session.close()
