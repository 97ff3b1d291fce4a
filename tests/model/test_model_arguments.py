"""Arguments of models and sessions, and unknown options: refused at the call, by name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from refusals import refused, shown
from tiny_models import Tiny, byte_vocabulary, random_tensors, write

from oxibonsai.model import Engine, Model, Session

TINY = Tiny(n_layers=1, vocab=257)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    with Model.load(write(path, TINY, random_tensors(TINY), byte_vocabulary()), "cpu") as model:
        yield model


@pytest.fixture
def session(model: Model) -> Iterator[Session]:
    with model.session() as session:
        session.forward([1, 2], logits=None)
        yield session


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with model.engine(1, max_seq=64) as engine:
        yield engine


@pytest.mark.parametrize("value", [1, 0, "no", None, np.ones(2)], ids=shown)
def test_profile_is_a_bool(model, session, tmp_path, value):
    refused(model.session, "profile", value, TypeError)
    session.save(tmp_path / "text")
    refused(
        partial(model.restore_session, tmp_path / "text"),
        "profile",
        value,
        TypeError,
    )
    with model.session(profile=np.False_) as other:
        assert other.profile is None


@pytest.mark.parametrize("value", [5, "f", [print]], ids=shown)
def test_progress_is_a_function(model, session, value):
    for call in (session.forward, session.verify, session.log_probabilities, model.perplexity):
        refused(partial(call, [1, 2]), "progress", value, TypeError)
    assert session.tokens == [1, 2]


@pytest.mark.parametrize(
    ("value", "error"),
    [(5, ValueError), (np.zeros(3), ValueError), (["all"], ValueError), ("none", ValueError)],
    ids=shown,
)
def test_logits_is_a_word_or_none(session, value, error):
    refused(partial(session.forward, [1]), "logits", value, error)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("window", 2.5, TypeError),
        ("window", True, TypeError),
        ("window", "64", TypeError),
        ("window", 0, ValueError),
        ("window", -3, ValueError),
        ("window", 1, ValueError),
        ("window", 65, ValueError),
        ("kv_dtype", np.zeros(3), ValueError),
        ("chunk", 0, ValueError),
    ],
    ids=shown,
)
def test_perplexity_refuses_an_argument_before_it_computes(model, name, value, error):
    def never(*_: int) -> None:
        raise AssertionError

    for text in ([1, 2, 3], "a text"):
        refused(
            partial(model.perplexity, text, progress=never),
            name,
            value,
            error,
        )


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("type42", 5, TypeError),
        ("type42", b"Q2_0", TypeError),
        ("type42", np.zeros(3), TypeError),
        ("type42", "Q1_0", ValueError),
        ("activations", 5, ValueError),
        ("activations", np.zeros(3), ValueError),
        ("activations", "int4", ValueError),
        ("device", 5, TypeError),
        ("device", b"cpu", TypeError),
        ("device", "\ud800", ValueError),
        ("device", "cpu\0:1", ValueError),
        ("nfc", 1, TypeError),
    ],
    ids=shown,
)
def test_load_refuses_an_argument_before_it_reads(model, tmp_path, name, value, error):
    refused(partial(Model.load, model.path), name, value, error)
    refused(partial(Model.load, tmp_path / "none"), name, value, error)


INTERNAL = ("text", "fed", "scores", "speculations", "finished", "more", "top_x", "timeline")


@pytest.mark.parametrize("name", INTERNAL)
def test_an_option_that_there_is_not_is_refused_with_those_that_there_are(session, engine, name):
    for call in (session.stream, session.generate_scored, session.agenerate):
        with pytest.raises(TypeError, match=f"'{name}' is no option of generation; there are"):
            call(5, **{name: True})
    with pytest.raises(TypeError, match=f"'{name}' is no option of generation"):
        session.check_options(5, **{name: True})
    with pytest.raises(TypeError, match=name):
        session.generate(5, **{name: True})
    for call in (engine.submit, engine.stream, lambda p, **o: engine.generate_batch([p], **o)):
        with pytest.raises(TypeError, match=f"'{name}' is no option of Engine.submit") as caught:
            call([1], **{name: True})
        listed = str(caught.value).split("there are ")[1].split(", ")
        assert {"stop", "priority", "allowed", "n_best", "top_k", "block", "timeout"} <= {*listed}
        assert len(listed) == len({*listed})
    with pytest.raises(TypeError) as caught:
        session.stream(5, **{name: True})
    for option in ("temperature", "stop", "draft_tokens", "seed", "on_token", "n_best"):
        assert option in str(caught.value)


def test_scores_that_nobody_would_see_are_refused(session):
    with pytest.raises(ValueError, match=r"n_best = 2: .*on_token"):
        session.stream(5, n_best=2)
    seen: list[Any] = []
    list(session.stream(3, n_best=2, on_token=seen.append, ignore_eos=True))
    assert [len(token.best) for token in seen] == [2, 2, 2]
    list(session.stream(1, n_best=0))
