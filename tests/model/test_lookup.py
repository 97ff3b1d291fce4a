"""The index of a text's n-grams, against a search through the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai.model.generation.lookup import LONGEST, PromptLookup


def suffix(a: list[int], b: list[int]) -> int:
    """Return how many tokens the ends of two texts have in common."""
    n = 0
    while n < min(len(a), len(b)) and a[-1 - n] == b[-1 - n]:
        n += 1
    return n


def matches(text: list[int]) -> list[tuple[int, int]]:
    """Return (length, end) of every earlier place that ends as the text does."""
    found = [(min(suffix(text[:end], text), LONGEST), end) for end in range(1, len(text))]
    return [(n, end) for n, end in found if n]


@pytest.mark.parametrize("text", [[], [5], [1, 2, 3]])
def test_text_that_repeats_nothing_has_no_draft(text):
    lookup = PromptLookup(text)
    assert lookup.length == 0
    assert lookup.next_token is None
    assert lookup.draft(4) == []


def test_draft_is_what_followed_the_last_time():
    lookup = PromptLookup([1, 2, 7, 8, 9, 1, 2])
    assert lookup.length == 2
    assert lookup.next_token == 7
    assert lookup.draft(3) == [7, 8, 9]


def test_longer_match_goes_before_a_later_one():
    assert PromptLookup([1, 2, 3, 7, 5, 3, 8, 1, 2, 3]).draft(1) == [7]


def test_later_one_of_equal_matches_counts():
    assert PromptLookup([4, 2, 7, 5, 2, 8, 9, 2]).draft(1) == [8]


def test_match_that_is_followed_outlives_a_later_shorter_one():
    block = list(range(10, 30))
    # The block's 15..17 come again nearer to the end, with another token behind.
    lookup = PromptLookup([*block, 99, 15, 16, 17, 50, 98, *block[:8]])
    assert lookup.length == 8
    assert lookup.draft(2) == [18, 19]


def test_draft_behind_the_end_of_the_text_repeats_the_period():
    assert PromptLookup([3, 1, 2, 1, 2]).draft(7) == [1, 2, 1, 2, 1, 2, 1]
    assert PromptLookup([6, 6]).draft(5) == [6] * 5


def test_tokens_of_32_bits_are_told_apart():
    top = 2**32 - 1
    assert PromptLookup([0, top, 5, 1, top - 1, 6, 0, top]).draft(1) == [5]


@given(st.lists(st.integers(0, 3), max_size=120))
def test_match_is_real_and_no_shorter_than_an_n_gram_can_tell(text):
    lookup = PromptLookup(text)
    known = matches(text)
    if not known:
        assert lookup.length == 0
        return
    # N-grams of three tokens tell matches up to that length; a longer one may be missed.
    assert min(lookup.length, 3) == min(max(known)[0], 3)
    following = {tuple(text[end : end + 6]) for n, end in known if n == lookup.length}
    draft = lookup.draft(6)
    assert len(draft) == 6
    assert any(tuple(draft[: len(f)]) == f for f in following)


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(0, 2), max_size=60))
def test_followed_text_is_as_one_indexed_anew(old, new):
    lookup = PromptLookup(old)
    for text in (new, new + old, new[: len(new) // 2]):
        lookup.follow(text)
        fresh = PromptLookup(text)
        assert len(lookup) == len(text)
        assert (lookup.length, lookup.draft(8)) == (fresh.length, fresh.draft(8))
