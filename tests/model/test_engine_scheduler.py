"""The scheduler, without a device: order, room, sharing, and what is counted."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model.engine.scheduler import Plan, Scheduler, Sequence, Stage
from oxibonsai.model.runtime.pages import PAGE_SIZE, PagePool, pages_of

ids = itertools.count()


def sequence(n_prompt: int, max_tokens: int, *, priority: int = 0, first: int = 0) -> Sequence:
    tokens = [first + i for i in range(n_prompt)]
    return Sequence(tokens, n_prompt, n_prompt + max_tokens - 1, (-priority, next(ids)))


def choose(scheduler: Scheduler, plan: Plan) -> None:
    """Do what the engine does with the choices of a step."""
    chosen = [s for s, _ in plan.rows]
    if plan.chunk is not None:
        scheduler.index(plan.chunk.sequence, plan.chunk.stop)
        if plan.chunk.ends:
            chosen.append(plan.chunk.sequence)
    for s in chosen:
        if s.stage is Stage.ENDED:
            continue
        s.tokens.append(1000 + len(s.tokens))
        scheduler.index(s, s.position)
        if len(s.tokens) > s.last:
            scheduler.end(s)


def run(scheduler: Scheduler) -> list[Plan]:
    plans = []
    while (plan := scheduler.plan()) is not None:
        plans.append(plan)
        choose(scheduler, plan)
    return plans


def test_a_prompt_runs_in_chunks_beside_the_tokens_of_others() -> None:
    scheduler = Scheduler(PagePool(64), 4, 128)
    scheduler.add(sequence(3, 100))
    assert scheduler.plan() is not None
    scheduler.add(sequence(300, 2, first=500))
    chunks = []
    for _ in range(3):
        plan = scheduler.plan()
        assert plan is not None
        assert len(plan.rows) == 1
        assert plan.chunk is not None
        chunks.append((plan.chunk.start, plan.chunk.stop, plan.chunk.ends))
    assert chunks == [(0, 128, False), (128, 256, False), (256, 300, True)]
    plan = scheduler.plan()
    assert plan is not None
    assert len(plan.rows) == 2


def test_one_prompt_fills_at_a_time_in_the_order_of_priority_and_arrival() -> None:
    scheduler = Scheduler(PagePool(64), 8, 64)
    late, early, urgent = sequence(64, 1), sequence(64, 1), sequence(64, 1, priority=1)
    early.rank, late.rank = sorted((early.rank, late.rank))
    for s in (late, early, urgent):
        scheduler.add(s)
    order = []
    for _ in range(3):
        plan = scheduler.plan()
        assert plan is not None
        assert plan.chunk is not None
        order.append(plan.chunk.sequence)
        choose(scheduler, plan)
    assert order == [urgent, early, late]


def test_no_more_than_max_sequences_run() -> None:
    scheduler = Scheduler(PagePool(64), 2, 64)
    for _ in range(5):
        scheduler.add(sequence(4, 4))
    most = 0
    for plan in run(scheduler):
        most = max(most, len(plan.rows) + (plan.chunk is not None))
    assert most == 2


def test_what_can_never_fit_is_refused_with_the_limit() -> None:
    scheduler = Scheduler(PagePool(2), 2, 64)
    scheduler.check(100, 28, 128)
    with pytest.raises(ValueError, match="pass max_seq = 128"):
        scheduler.check(100, 29, 128)
    with pytest.raises(ValueError, match="need 3 pages, the engine has 2"):
        scheduler.check(100, 40, 1000)
    scheduler.check(100, 29, 1000)  # the last token needs no place


def test_the_youngest_goes_aside_and_comes_back_before_a_younger_one() -> None:
    pool = PagePool(4)
    scheduler = Scheduler(pool, 4, 128)
    first, second = sequence(100, 90), sequence(60, 60, first=300)
    third = sequence(10, 2, first=600)
    for s in (first, second, third):
        scheduler.add(s)
    seen: list[str] = []
    while (plan := scheduler.plan()) is not None:
        for s, pages in plan.aside:
            assert s is second
            assert len(pages) == pages_of(s.position)
            seen.append("aside")
        if second in plan.back:
            seen.append("back")
        if third in plan.joined:
            seen.append("third")
        choose(scheduler, plan)
    assert seen.index("aside") < seen.index("back") < seen.index("third")
    assert pool.n_used == 0


def test_a_filling_prompt_gives_way_to_an_older_sequence_and_goes_on_where_it_was() -> None:
    pool = PagePool(5)
    scheduler = Scheduler(pool, 4, 64)
    old, young = sequence(63, 100), sequence(190, 1, first=300)
    scheduler.add(old)
    choose_plan(scheduler)
    choose_plan(scheduler)  # it takes its second page
    scheduler.add(young)
    chunks = [(p.chunk.start, p.chunk.stop) for p in run(scheduler) if p.chunk is not None]
    assert chunks == [(0, 64), (64, 128), (128, 190)]
    assert pool.n_used == 0


def test_the_size_of_a_chunk_is_asked_for_before_each() -> None:
    sizes = iter([128, 64, 64, 32, 32, 32, 128, 128])
    scheduler = Scheduler(PagePool(64), 2, 128, next_chunk=lambda: next(sizes))
    scheduler.add(sequence(400, 1))
    chunks = [(p.chunk.start, p.chunk.stop) for p in run(scheduler) if p.chunk is not None]
    starts = [0, 128, 192, 256, 288, 320, 352, 384]
    assert chunks == list(zip(starts, [*starts[1:], 400], strict=True))


def test_a_step_is_no_repetition_where_the_size_of_chunks_changes() -> None:
    sizes = [64]
    scheduler = Scheduler(PagePool(64), 2, 64, next_chunk=lambda: sizes[0])
    scheduler.add(sequence(400, 1))
    plan = scheduler.plan()
    assert plan is not None
    plan = scheduler.repeat(plan)
    assert plan is not None
    sizes[0] = 32
    assert scheduler.repeat(plan) is None
    plan = scheduler.plan()
    assert plan is not None
    assert plan.chunk is not None
    assert (plan.chunk.start, plan.chunk.stop) == (128, 160)


def choose_plan(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan()
    assert plan is not None
    choose(scheduler, plan)
    return plan


def test_a_shared_beginning_is_computed_once_up_to_a_page() -> None:
    pool = PagePool(64)
    scheduler = Scheduler(pool, 4, 128)
    for _ in range(3):
        scheduler.add(sequence(1000, 3))
    computed = sum(p.chunk.n_tokens for p in run(scheduler) if p.chunk is not None)
    assert computed == 1000 + 2 * (1000 % PAGE_SIZE)
    assert pool.n_used == 0


# Of three full pages, one holds a prompt alone.
@pytest.mark.parametrize(("deterministic", "shared"), [(False, 192), (True, 64)])
def test_a_second_turn_shares_full_pages_and_those_of_prompts_alone_where_deterministic(
    deterministic: bool, shared: int
) -> None:
    scheduler = Scheduler(PagePool(64), 4, 128, deterministic=deterministic)
    first = sequence(100, 101)
    scheduler.add(first)
    run(scheduler)
    second = Sequence([*first.tokens, 7, 8], 203, 203, (0, next(ids)))
    scheduler.add(second)
    run(scheduler)
    assert second.n_shared == shared


@pytest.mark.parametrize(("n_prompt", "shared"), [(65, 0), (66, 64), (129, 128), (193, 128)])
def test_deterministic_computes_no_token_alone_that_a_session_would_not(
    n_prompt: int, shared: int
) -> None:
    scheduler = Scheduler(PagePool(64), 4, 128, deterministic=True)
    scheduler.add(sequence(256, 1))
    run(scheduler)
    second = sequence(n_prompt, 1)
    scheduler.add(second)
    run(scheduler)
    assert second.n_shared == shared


def test_a_step_repeats_until_a_page_a_prompt_or_an_end_changes_it() -> None:
    scheduler = Scheduler(PagePool(4), 4, 64)
    scheduler.add(sequence(200, 4))
    plan = scheduler.plan()
    assert plan is not None
    repeated = scheduler.repeat(plan)
    assert repeated is not None
    assert repeated.chunk is not None
    assert repeated.chunk.start == 64
    repeated = scheduler.repeat(repeated)
    assert repeated is not None
    assert scheduler.repeat(repeated) is None  # the next chunk is the last
    plan = choose_plan(scheduler)
    assert scheduler.repeat(plan) is None  # the sequence has joined
    plan = choose_plan(scheduler)
    assert [at for _, at in plan.rows] == [200]
    repeated = scheduler.repeat(plan)
    assert repeated is not None
    choose(scheduler, repeated)
    repeated = scheduler.repeat(repeated)
    assert repeated is not None
    assert [at for _, at in repeated.rows] == [202]
    assert scheduler.repeat(repeated) is None  # max_tokens


def test_a_step_does_not_repeat_past_its_pages() -> None:
    scheduler = Scheduler(PagePool(2), 4, 64)
    scheduler.add(sequence(62, 60))
    choose_plan(scheduler)
    plan: Plan | None = choose_plan(scheduler)
    positions = []
    while plan is not None:
        positions.append(plan.rows[0][1])
        plan = scheduler.repeat(plan)
    assert positions == [62, 63]


request = st.tuples(st.integers(1, 150), st.integers(1, 100), st.integers(0, 2), st.booleans())


@given(
    requests=st.lists(request, min_size=1, max_size=8),
    n_pages=st.integers(4, 9),
    max_sequences=st.integers(1, 4),
    chunk=st.sampled_from([1, 16, 64, 100]),
    seed=st.integers(0, 2**32),
)
def test_every_sequence_ends_and_every_page_comes_back(
    requests: list[tuple[int, int, int, bool]],
    n_pages: int,
    max_sequences: int,
    chunk: int,
    seed: int,
) -> None:
    pool = PagePool(n_pages)
    scheduler = Scheduler(pool, max_sequences, chunk)
    pending = [
        sequence(n, more, priority=priority, first=0 if alike else 300)
        for n, more, priority, alike in requests
    ]
    everyone = list(pending)
    cancelled: set[int] = set()
    ran = {id(s): 0 for s in everyone}
    chance = random.Random(seed)
    for _ in range(3000):
        if pending and chance.random() < 0.5:
            s = pending.pop()
            scheduler.check(s.n_prompt, s.last - s.n_prompt + 1, 1000)
            scheduler.add(s)
        if chance.random() < 0.05:
            s = chance.choice(everyone)
            if s not in pending:
                scheduler.end(s)
                cancelled.add(id(s))
        plan = scheduler.plan()
        if plan is None:
            assert not scheduler.busy
            if not pending:
                break
            continue
        active = scheduler.running
        assert len(active) <= max_sequences
        # A page is somebody's alone, or full and the beginning of all its users.
        owned = [page for s in active for page in s.pages]
        for page in set(owned):
            assert pool.users(page) == owned.count(page)
        assert pool.n_used == len(set(owned))
        for s, at in plan.rows:
            assert ran[id(s)] == at < len(s.pages) * PAGE_SIZE
            ran[id(s)] += 1
            # What it writes is its own.
            assert pool.users(s.pages[at // PAGE_SIZE]) == 1
        if plan.chunk is not None:
            c = plan.chunk
            assert c.n_tokens <= chunk
            if c.sequence in plan.joined and c.sequence not in plan.back:
                assert c.start == c.sequence.n_shared
            else:
                assert c.start == ran[id(c.sequence)]
            ran[id(c.sequence)] = c.stop
        lowest = min((s.rank for s in scheduler.aside), default=None)
        if lowest is not None:
            assert all(s.rank < lowest for s in plan.joined)
        choose(scheduler, plan)
    else:
        raise AssertionError("it does not end")
    for s in everyone:
        assert s.stage is Stage.ENDED
        assert id(s) in cancelled or len(s.tokens) == s.last + 1
    assert pool.n_used == 0
