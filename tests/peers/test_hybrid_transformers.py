"""The logits of Hugging Face transformers' Qwen3_5ForCausalLM in float64 from the same weights.

The weights are exactly representable: transformers gets the values of the blocks, not what was
quantised. It takes a prompt in chunks of 64 by the UT transform, and never token by token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from cases import relative_error
from numpy.typing import NDArray
from peers import import_peer
from qwen35_transformers import logits_there
from tiny_hybrids import Hybrid, random_tensors, reference_logits, write
from tiny_models import Tensors

from oxibonsai import metal
from oxibonsai.model import Model, Session

RECURRENT, ATTENTION = False, True
PATTERN = (RECURRENT, RECURRENT, RECURRENT, ATTENTION)


def hybrid(attention: tuple[bool, ...] = PATTERN, **fields: Any) -> Hybrid:
    """Return a shape with these layers, and with two key heads and four value heads of 64."""
    fields = {"key_heads": 2, "value_heads": 4, "rope_theta": 1e7, **fields}
    return Hybrid(len(attention), attention=attention, **fields)


@dataclass(frozen=True)
class Case:
    """A model for both, and a text of random tokens."""

    tiny: Hybrid
    format_name: str = "Q2_0"
    formats: Mapping[str, str] = field(default_factory=dict)
    tied: bool = True
    n_tokens: int = 70

    @functools.cached_property
    def tensors(self) -> Tensors:
        return random_tensors(
            self.tiny, self.format_name, formats=self.formats, tied=self.tied, seed=8
        )

    @functools.cached_property
    def ids(self) -> list[int]:
        rng = np.random.default_rng(self.tiny.vocab)
        found: list[int] = rng.integers(0, self.tiny.vocab, self.n_tokens).tolist()
        return found

    @functools.cached_property
    def peer_logits(self) -> NDArray[np.float64]:
        """The logits of every position that transformers computes."""
        return logits_there(self.tiny, self.tensors, self.ids)

    @functools.cached_property
    def cost_of_halves(self) -> float:
        """The error of exact arithmetic with keys and values that are rounded to halves."""

        def rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
            return x.astype(np.float16).astype(np.float64)

        def attention(q: Any, k: Any, v: Any) -> NDArray[np.float64]:
            return exact(q, rounded(k), rounded(v))

        exact = reference.attention
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reference, "attention", attention)
            found = reference_logits(self.tiny, self.tensors, self.ids)
        return relative_error(found, self.peer_logits)

    def write(self, folder: Path) -> Path:
        return write(folder / "tiny.gguf", self.tiny, self.tensors)


GATES = {"ssm_alpha": "BF16", "ssm_beta": "BF16"}
CASES = {
    "as 27B in small": Case(
        hybrid(PATTERN * 2, hidden=256, n_heads=6, n_kv_heads=1, value_heads=6)
    ),
    "five recurrent layers before one": Case(hybrid((RECURRENT,) * 5 + (ATTENTION,))),
    "one layer of each kind": Case(hybrid((RECURRENT, ATTENTION), vocab=99), tied=False),
    "attention first": Case(hybrid((ATTENTION, RECURRENT, RECURRENT), vocab=55)),
    "in turns": Case(hybrid((RECURRENT, ATTENTION) * 3)),
    "a pattern without a period": Case(
        hybrid((RECURRENT, ATTENTION, ATTENTION, RECURRENT, RECURRENT, RECURRENT, ATTENTION))
    ),
    "twelve layers": Case(hybrid(PATTERN * 3, vocab=131), n_tokens=150),
    **{
        f"{values} value heads on {keys} of {dim}": Case(
            hybrid(key_heads=keys, value_heads=values, key_dim=dim, value_dim=dim),
            tied=(keys + values) % 3 != 0,
        )
        for keys, values, dim in (
            *((1, 1, 64), (1, 4, 32), (4, 4, 128), (3, 6, 64), (2, 8, 64), (2, 2, 256)),
            (16, 48, 32),
        )
    },
    **{
        f"keys of {keys}, values of {values}": Case(hybrid(key_dim=keys, value_dim=values))
        for keys, values in ((64, 128), (128, 32))
    },
    **{f"a convolution of {width}": Case(hybrid(conv=width), n_tokens=37) for width in (2, 3, 8)},
    **{
        f"{rotary} of {dim} rotated, {heads} heads on {kv}": Case(
            hybrid(head_dim=dim, rotary=rotary, n_heads=heads, n_kv_heads=kv, vocab=33)
        )
        for dim, rotary, heads, kv in (
            *((64, 64, 4, 4), (128, 32, 4, 1), (128, 128, 2, 2), (256, 64, 6, 1), (256, 64, 2, 2)),
        )
    },
    **{
        f"{name}, {'tied' if tied else 'untied'}": Case(
            hybrid(hidden=256, inter=512, key_dim=128, value_dim=128, vocab=257),
            name,
            tied=tied,
        )
        for name in ("Q1_0", "TQ2_0_g128", "Q2_0_g128", "PQ2_0", "PTQ1_0", "TQ2_0", "F16", "F32")
        for tied in (True, False)
    },
    "gates in BF16, embedding and head apart": Case(
        hybrid(vocab=1001, eps=1e-5, rope_theta=1e4),
        "Q1_0",
        {**GATES, "norm": "F16", "token_embd": "F16", "output": "Q8_0"},
        tied=False,
    ),
    "gates in BF16, weights in PTQ1_0": Case(
        hybrid(hidden=384, value_heads=6, n_heads=6), "PTQ1_0", GATES
    ),
}
LONG = {
    "2000 tokens": Case(hybrid(context=2048), n_tokens=2000),
    "1337 tokens, six heads on two": Case(
        hybrid(value_heads=6, key_dim=128, value_dim=128, context=2048),
        formats=GATES,
        n_tokens=1337,
    ),
    "513 tokens, attention between": Case(
        hybrid((RECURRENT, ATTENTION, RECURRENT), context=1024),
        "Q1_0",
        n_tokens=513,
        tied=False,
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of small products wait for one another longer than they compute."""
    torch = import_peer("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = CASES[request.param]
    return found


@pytest.fixture(scope="module", params=LONG)
def long(request: pytest.FixtureRequest) -> Case:
    found: Case = LONG[request.param]
    return found


def at_once(session: Session, ids: list[int]) -> NDArray[np.float32]:
    found = session.forward(ids)
    assert found is not None
    return found


def token_by_token(session: Session, ids: list[int]) -> NDArray[np.float32]:
    return np.array([session.forward([i], logits="last") for i in ids])


def in_parts(session: Session, ids: list[int]) -> NDArray[np.float32]:
    """Parts of other lengths: single tokens, a few, and more than a chunk of transformers."""
    found, at = [], 0
    rng = np.random.default_rng(len(ids))
    while at < len(ids):
        n = int(rng.choice([1, 2, 3, 5, 8, 17, 64, 65, 100]))
        found.append(at_once(session, ids[at : at + n]))
        at += n
    return np.concatenate(found)


def check(found: NDArray[np.float32], case: Case, kv_dtype: str) -> None:
    expected = case.peer_logits
    assert found.shape == expected.shape == (case.n_tokens, case.tiny.vocab)
    error = relative_error(found, expected)
    if kv_dtype == "f16":
        # Behind an attention that comes first, halves alone cost that much.
        assert error <= max(1e-3, 1.05 * case.cost_of_halves if error > 1e-3 else 0)
        return
    assert error <= 1e-5
    # What a query reads of a state may nearly cancel, and the norm of the head magnifies then what
    # rounding left.
    errors = [relative_error(y, r) for y, r in zip(found, expected, strict=True)]
    assert max(errors) <= 1e-4, f"at position {int(np.argmax(errors))}"


@pytest.mark.parametrize("case", [*CASES, *LONG])
def test_float64_here_is_that_of_transformers(case: str) -> None:
    """The reference of the other tests of hybrids."""
    one = {**CASES, **LONG}[case]
    found = reference_logits(one.tiny, one.tensors, one.ids)
    assert relative_error(found, one.peer_logits) < 1e-13


@pytest.mark.parametrize("feed", [at_once, token_by_token, in_parts], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_logits_are_those_of_transformers(
    device: metal.Device,
    tmp_path: Path,
    case: Case,
    kv_dtype: Any,
    feed: Callable[[Session, list[int]], NDArray[np.float32]],
) -> None:
    with (
        Model.load(case.write(tmp_path), device) as model,
        model.session(kv_dtype=kv_dtype) as session,
    ):
        assert model.weights.tied == case.tied
        found = feed(session, case.ids)
    check(found, case, kv_dtype)


@pytest.mark.parametrize("chunk", [1, 7, 64, 2048])
@pytest.mark.parametrize("kv_dtype", ["f32", "f16"])
def test_logits_of_long_texts_are_those_of_transformers(
    device: metal.Device, tmp_path: Path, long: Case, chunk: int, kv_dtype: Any
) -> None:
    with (
        Model.load(long.write(tmp_path), device) as model,
        model.session(kv_dtype=kv_dtype, chunk=chunk) as session,
    ):
        found = at_once(session, long.ids)
    check(found, long, kv_dtype)
