"""Recurrent states that are kept: which, where chunks end for them, and what is shared by them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model.engine.scheduler import Plan, Scheduler, Sequence, Stage
from oxibonsai.model.runtime.checkpointpool import CheckpointPool
from oxibonsai.model.runtime.pages import PAGE_SIZE, ROOT, PagePool, chain_key

ids = itertools.count()


def sequence(n_prompt: int, max_tokens: int, *, first: int = 0) -> Sequence:
    tokens = [first + i for i in range(n_prompt)]
    return Sequence(tokens, n_prompt, n_prompt + max_tokens - 1, (0, next(ids)))


class Bench:
    """A scheduler with pools, and what the engine does with the choices of a step."""

    def __init__(
        self, n_pages: int = 64, n_places: int = 8, spacing: int = 128, chunk: int = 128,
        max_sequences: int = 4, **settings: Any,
    ) -> None:  # fmt: skip
        self.checkpoints = CheckpointPool(n_places, spacing)
        self.pool = PagePool(n_pages, self.checkpoints.drop)
        self.scheduler = Scheduler(
            self.pool, max_sequences, chunk, checkpoints=self.checkpoints, **settings
        )

    def run(self, *sequences: Sequence) -> list[Plan]:
        for s in sequences:
            self.scheduler.add(s)
        plans = []
        while (plan := self.scheduler.plan()) is not None:
            plans.append(plan)
            self.choose(plan)
        return plans

    def choose(self, plan: Plan) -> None:
        chosen = [s for s, _ in plan.rows]
        if plan.chunk is not None:
            self.scheduler.index(plan.chunk.sequence, plan.chunk.stop)
            if plan.chunk.ends:
                chosen.append(plan.chunk.sequence)
        for s in chosen:
            if s.stage is Stage.ENDED:
                continue
            s.tokens.append(1000 + len(s.tokens))
            self.scheduler.index(s, s.position)
            if len(s.tokens) > s.last:
                self.scheduler.end(s)


def chunks_of(plans: list[Plan]) -> list[tuple[int, int]]:
    return [(p.chunk.start, p.chunk.stop) for p in plans if p.chunk is not None]


def keys_of(tokens: list[int]) -> list[bytes]:
    keys = [ROOT]
    for at in range(0, len(tokens) - PAGE_SIZE + 1, PAGE_SIZE):
        keys.append(chain_key(keys[-1], tokens[at : at + PAGE_SIZE]))
    return keys[1:]


def test_places_run_out_and_the_least_recently_used_state_goes() -> None:
    pool = CheckpointPool(2, 64)
    assert pool.n_kept == 0
    a, b = pool.allocate(b"a"), pool.allocate(b"b")
    assert {a, b} == {0, 1}
    assert pool.use(b"a") == a
    assert pool.allocate(b"c") == b
    assert (b"a" in pool, b"b" in pool, b"c" in pool) == (True, False, True)
    pool.drop(b"a")
    pool.drop(b"a")
    assert pool.n_kept == 1
    assert pool.allocate(b"d") == a
    with pytest.raises(ValueError, match="kept already"):
        pool.allocate(b"d")
    pool.forget_all()
    assert pool.n_kept == 0
    assert {pool.allocate(b"e"), pool.allocate(b"f")} == {0, 1}


def test_sizes_that_keep_nothing_right_are_refused() -> None:
    with pytest.raises(ValueError, match="n_places = -1"):
        CheckpointPool(-1, 64)
    for spacing in (0, 100, -64):
        with pytest.raises(ValueError, match=f"spacing = {spacing} must be a multiple of 64"):
            CheckpointPool(1, spacing)
    empty = CheckpointPool(0, 64)
    with pytest.raises(ValueError, match="n_places is 0"):
        empty.allocate(b"a")
    assert empty.next_boundary(10) is None
    assert not empty.is_boundary(64)


@given(
    n_places=st.integers(0, 4),
    actions=st.lists(st.tuples(st.sampled_from("aud f"), st.integers(0, 6)), max_size=60),
)
def test_what_is_kept_is_that_of_a_plain_model(
    n_places: int, actions: list[tuple[str, int]]
) -> None:
    pool = CheckpointPool(n_places, 64)
    kept: dict[bytes, int] = {}  # by use
    for action, n in actions:
        key = bytes([n])
        if action == "a" and n_places and key not in kept:
            place = pool.allocate(key)
            if len(kept) == n_places:
                assert place == kept.pop(next(iter(kept)))
            assert place not in kept.values()
            kept[key] = place
        elif action == "u" and key in kept:
            kept[key] = kept.pop(key)
            assert pool.use(key) == kept[key]
        elif action == "d":
            pool.drop(key)
            kept.pop(key, None)
        elif action == "f" and n == 0:
            pool.forget_all()
            kept.clear()
        assert pool.n_kept == len(kept)
        assert [bytes([k]) in pool for k in range(7)] == [bytes([k]) in kept for k in range(7)]
        assert all(0 <= place < n_places for place in kept.values())


def test_a_beginning_is_as_long_as_the_last_state_kept() -> None:
    pool = CheckpointPool(4, 128)
    keys = keys_of(list(range(700)))
    assert pool.longest(keys) == 0
    pool.allocate(keys[3])
    assert [pool.longest(keys[:n]) for n in range(11)] == [0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4]
    pool.allocate(keys[1])
    pool.allocate(keys[4])  # no multiple of the spacing
    assert [pool.longest(keys[:n]) for n in range(11)] == [0, 0, 2, 2, 4, 4, 4, 4, 4, 4, 4]


def test_chunks_end_where_states_are_kept() -> None:
    b = Bench(chunk=100, spacing=128)
    plans = b.run(sequence(300, 1))
    assert chunks_of(plans) == [(0, 100), (100, 128), (128, 200), (200, 256), (256, 300)]
    kept = [[s.position for s, _ in p.kept] for p in plans]
    assert [bool(k) for k in kept] == [False, False, True, False, True]
    assert b.checkpoints.n_kept == 2
    assert chunks_of(Bench(chunk=100, n_places=0).run(sequence(300, 1))) == [
        (0, 100), (100, 200), (200, 300),
    ]  # fmt: skip


def test_a_beginning_is_computed_once_up_to_the_last_state_kept() -> None:
    b = Bench()
    first, *others = (sequence(1000, 3) for _ in range(3))
    plans = b.run(first, *others)
    assert [s.n_shared for s in (first, *others)] == [0, 896, 896]
    assert sum(p.chunk.n_tokens for p in plans if p.chunk is not None) == 1000 + 2 * (1000 - 896)
    restored = [(s, place) for p in plans for s, place in p.restored]
    assert [s for s, _ in restored] == others
    kept = {place: PAGE_SIZE * 2 * (i + 1) for i, (_, place) in enumerate(kept_of(plans)[:7])}
    assert [kept[place] for _, place in restored] == [896, 896]
    assert (b.pool.n_used, b.checkpoints.n_kept) == (0, 7)


def kept_of(plans: list[Plan]) -> list[tuple[Sequence, int]]:
    return [pair for plan in plans for pair in plan.kept]


def test_a_state_is_kept_once_and_before_it_changes() -> None:
    b = Bench(n_places=8, spacing=64, chunk=64)
    plans = b.run(sequence(128, 70), sequence(128, 70))
    assert len(kept_of(plans)) == 3  # at 64, 128 and 192, which the second text has too
    for plan in plans:
        starts = dict(plan.rows)
        if plan.chunk is not None:
            starts[plan.chunk.sequence] = plan.chunk.start
        for s, _ in plan.kept:
            assert starts[s] % 64 == 0


# A text of 100 + 101 tokens has states at 64, 128 and 192.
@pytest.mark.parametrize(("deterministic", "shared"), [(False, 192), (True, 64)])
def test_a_second_turn_begins_with_the_last_state_kept(deterministic: bool, shared: int) -> None:
    b = Bench(spacing=64, deterministic=deterministic)
    first = sequence(100, 101)
    b.run(first)
    second = Sequence([*first.tokens, 7, 8], 203, 203, (0, next(ids)))
    plans = b.run(second)
    assert second.n_shared == shared
    assert chunks_of(plans)[0][0] == shared


def test_without_a_state_no_pages_are_taken() -> None:
    b = Bench(n_places=0)
    first, second = sequence(300, 1), sequence(300, 1)
    b.run(first, second)
    assert second.n_shared == 0


def test_a_state_whose_page_is_given_away_goes_with_it() -> None:
    b = Bench(n_pages=4, spacing=128)
    b.run(sequence(200, 1))
    assert (b.pool.n_cached, b.checkpoints.n_kept) == (3, 1)
    b.run(sequence(200, 1, first=5000))
    assert b.checkpoints.n_kept == 1  # that of the second text alone
    again = sequence(200, 1)
    b.run(again)
    assert again.n_shared == 0


def test_the_states_of_a_long_prompt_leave_the_place_of_the_last_ones() -> None:
    b = Bench(n_places=2, spacing=64, chunk=64)
    b.run(sequence(400, 1))
    assert b.checkpoints.n_kept == 2
    alike, shorter = sequence(390, 1), sequence(320, 1)
    b.run(alike)
    assert alike.n_shared == 384
    b.run(shorter)
    assert shorter.n_shared == 0  # 64 to 256 have gone, and one token at least is computed


def test_a_step_does_not_repeat_where_a_state_is_kept() -> None:
    b = Bench(spacing=128, chunk=64)
    b.scheduler.add(sequence(350, 4))
    plan = b.scheduler.plan()
    assert plan is not None
    plan = b.scheduler.repeat(plan)
    assert plan is not None
    assert plan.chunk is not None
    assert plan.chunk.stop == 128
    assert b.scheduler.repeat(plan) is None
    b.choose(plan)
    later = b.scheduler.plan()
    assert later is not None
    assert len(later.kept) == 1
    assert b.scheduler.repeat(later) is not None


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_running_text_repeats_up_to_a_state_to_keep(deterministic: bool) -> None:
    b = Bench(spacing=64, deterministic=deterministic)
    b.scheduler.add(sequence(60, 40))
    plan = b.scheduler.plan()
    assert plan is not None
    b.choose(plan)
    positions = []
    following = b.scheduler.plan()
    while following is not None:
        positions.append(following.rows[0][1])
        following = b.scheduler.repeat(following)
    assert positions == list(range(60, 99 if deterministic else 64))


def test_a_sequence_that_comes_back_brings_its_state_and_copies_none() -> None:
    b = Bench(n_pages=4, spacing=64)
    plans = b.run(sequence(100, 90), sequence(60, 60, first=300))
    assert any(plan.aside for plan in plans)
    for plan in plans:
        assert not any(s in plan.back for s, _ in plan.restored)
        # What is kept is in a slot before the step, not in the host's memory.
        assert not any(s in plan.joined for s, _ in plan.kept)
    assert b.pool.n_used == 0


def test_a_state_at_the_end_of_a_prompt_serves_the_next_one_at_once() -> None:
    b = Bench(spacing=128)
    first, second = sequence(256, 5), sequence(300, 1)
    plans = b.run(first, second)
    assert second.n_shared == 256
    (together,) = [plan for plan in plans if plan.restored]
    assert [s for s, _ in together.kept] == [first]
