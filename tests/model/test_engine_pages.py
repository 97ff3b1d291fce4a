"""The pool of pages: counts, and the index of what full pages hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model.runtime.pages import PAGE_SIZE, ROOT, PagePool, chain_key, pages_of


def test_a_page_is_counted_from_the_first_position_on() -> None:
    assert [pages_of(n) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]


def test_a_key_depends_on_every_token_and_on_all_pages_before() -> None:
    page = list(range(PAGE_SIZE))
    key = chain_key(ROOT, page)
    assert key == chain_key(ROOT, list(page))
    assert key != chain_key(key, page)
    assert key != chain_key(ROOT, [*page[:-1], 0])


def test_a_pool_needs_a_page() -> None:
    with pytest.raises(ValueError, match="n_pages = 0"):
        PagePool(0)


def test_pages_run_out_and_come_back() -> None:
    pool = PagePool(2)
    pages = [pool.allocate(), pool.allocate()]
    assert sorted(p for p in pages if p is not None) == [0, 1]
    assert pool.allocate() is None
    assert pool.n_used == 2
    pool.release([0, 1])
    assert (pool.n_used, pool.n_cached, pool.n_available) == (0, 0, 2)
    with pytest.raises(ValueError, match="page 0 has no user"):
        pool.release([0])
    with pytest.raises(ValueError, match="page 1 is free"):
        pool.retain(1)
    with pytest.raises(ValueError, match="nobody's"):
        pool.register(1, b"key")


def test_a_shared_page_is_free_when_its_last_user_goes() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    assert page == 0
    pool.register(page, b"key")
    pool.retain(page)
    assert pool.users(page) == 2
    pool.release([page])
    assert pool.allocate() is None
    pool.release([page])
    assert pool.n_cached == 1
    assert pool.find(b"key") == page
    assert pool.allocate() == page  # taken from the cache
    assert pool.find(b"key") is None


def test_the_end_of_a_text_goes_before_its_beginning_and_the_older_text_first() -> None:
    pool = PagePool(4)
    texts = [[pool.allocate(), pool.allocate()] for _ in range(2)]
    for text in texts:
        for page in text:
            assert page is not None
            pool.register(page, bytes([page]))
    for text in texts:
        pool.release(page for page in text if page is not None)
    order = [pool.allocate() for _ in range(4)]
    assert order == [texts[0][1], texts[0][0], texts[1][1], texts[1][0]]


def test_of_two_pages_that_hold_the_same_the_first_is_indexed() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(), pool.allocate()
    assert first is not None
    assert second is not None
    pool.register(first, b"key")
    pool.register(second, b"key")
    assert pool.find(b"key") == first
    pool.release([first, second])
    assert (pool.n_cached, pool.n_available) == (1, 2)


def test_a_forgotten_index_frees_what_it_kept() -> None:
    pool = PagePool(2)
    used, kept = pool.allocate(), pool.allocate()
    assert used is not None
    assert kept is not None
    pool.register(used, b"used")
    pool.register(kept, b"kept")
    pool.release([kept])
    pool.forget_all()
    assert (pool.find(b"used"), pool.find(b"kept")) == (None, None)
    assert (pool.n_used, pool.n_cached, pool.n_available) == (1, 0, 1)


@given(st.lists(st.tuples(st.sampled_from("arsxf"), st.integers(0, 7)), max_size=60))
def test_counts_are_those_of_a_plain_model(actions: list[tuple[str, int]]) -> None:
    pool = PagePool(4)
    users: Counter[int] = Counter()
    keys: dict[bytes, int] = {}
    for action, n in actions:
        if action == "a":
            page = pool.allocate()
            if page is None:
                assert sum(1 for p in users if users[p]) == 4
            else:
                assert not users[page]
                keys = {k: p for k, p in keys.items() if p != page}
                users[page] = 1
        elif action == "r" and users[n % 4]:
            key = bytes([n])
            if key not in keys and n % 4 not in keys.values():
                keys[key] = n % 4
            pool.register(n % 4, key)
        elif action == "s" and (users[n % 4] or n % 4 in keys.values()):
            pool.retain(n % 4)
            users[n % 4] += 1
        elif action == "x" and users[n % 4]:
            pool.release([n % 4])
            users[n % 4] -= 1
        elif action == "f" and n == 0:
            pool.forget_all()
            keys = {}
        used = {p for p in range(4) if users[p]}
        assert pool.n_used == len(used)
        assert pool.n_cached == len(set(keys.values()) - used)
        assert [pool.users(p) for p in range(4)] == [users[p] for p in range(4)]
        assert {
            k: pool.find(bytes([k])) for k in range(8) if pool.find(bytes([k])) is not None
        } == {k[0]: p for k, p in keys.items()}
