"""Text that knows where its characters came from, against alphabets that tell it.

Latin letters are the template's and Greek ones data: whatever an operation does with a text, the
alphabet of each letter says what its origin has to be.
"""

from __future__ import annotations

import copy
import json
import operator
import pickle
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from work import lines_run

from oxibonsai.chat.origins import Range, number
from oxibonsai.chat.printing import shown, to_json
from oxibonsai.chat.provenance import (
    DATA,
    LITERAL,
    UNKNOWN,
    Traced,
    common_origin,
    join,
    mark,
    plain,
    runs_of,
    settle,
    with_runs,
)

NEUTRAL = " \n\t\r\x1c0+-<|%\"'\\{}\u2028\u00a0"
# Some that another case makes longer, or that ask what stands beside them.
LATIN = "abAB\u00df\u0130\ufb01\u01f0\u01c6"
GREEK = "\u03b1\u03c3\u03a3\u0390\u1fb3\u1f88"
pieces = st.one_of(
    st.text(LATIN + NEUTRAL, max_size=4).map(lambda s: mark(s, LITERAL)),
    st.text(GREEK + NEUTRAL, max_size=4).map(lambda s: mark(s, DATA)),
)
texts = st.lists(pieces, max_size=6).map(join)


def origins(text: str) -> list[int]:
    """The origin of each character, with the runs found well formed."""
    runs = runs_of(text)
    assert sum(length for length, _ in runs) == len(text)
    assert all(length > 0 for length, _ in runs)
    assert all(a[1] != b[1] for a, b in pairwise(runs))
    return [origin for length, origin in runs for _ in range(length)]


def alphabet(character: str) -> int | None:
    name = unicodedata.name(character, "")
    if name.startswith("LATIN"):
        return LITERAL
    return DATA if name.startswith("GREEK") else None


def check(found: Any, expected: Any, *, printed: bool = False) -> None:
    """`found` equals `expected`, and each letter in it has the origin of its alphabet.

    Where values were printed, ASCII letters may be those of ``null`` or ``\\n``.
    """
    assert found == expected
    if isinstance(expected, str):
        assert type(found) is Traced
        for character, origin in zip(plain(found), origins(found), strict=True):
            wanted = alphabet(character)
            if not (printed and character.isascii()):
                assert wanted is None or origin == wanted, (found, found.runs)
    elif isinstance(expected, (list, tuple)):
        for a, b in zip(found, expected, strict=True):
            check(a, b)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "upper": lambda s: s.upper(),
    "lower": lambda s: s.lower(),
    "title": lambda s: s.title(),
    "capitalize": lambda s: s.capitalize(),
    "swapcase": lambda s: s.swapcase(),
    "casefold": lambda s: s.casefold(),
    "strip": lambda s: s.strip(),
    "lstrip": lambda s: s.lstrip(),
    "rstrip": lambda s: s.rstrip(),
    "split": lambda s: s.split(),
    "rsplit": lambda s: s.rsplit(),
    "splitlines": lambda s: s.splitlines(),
    "expandtabs": lambda s: s.expandtabs(),
    "iteration": list,
    "reversed": lambda s: list(reversed(s)),
    "str": str,
    "backwards": lambda s: s[::-1],
    "keepends": lambda s: s.splitlines(True),
    "expandtabs(0)": lambda s: s.expandtabs(0),
    "expandtabs(3)": lambda s: s.expandtabs(3),
    "strip('<|')": lambda s: s.strip("<| a"),
    "doubled": lambda s: s * 2,
    "tripled": lambda s: 3 * s,
    "none of it": lambda s: s * -1,
    "center": lambda s: s.center(9),
    "center, even": lambda s: s.center(12),
    "ljust": lambda s: s.ljust(9),
    "rjust": lambda s: s.rjust(9),
    "zfill": lambda s: s.zfill(9),
    "translate": lambda s: s.translate({ord("a"): None, ord("<"): "<<", ord("|"): 0x7C}),
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=texts)
def test_an_operation_keeps_every_origin(name, text):
    call = OPERATIONS[name]
    check(call(text), call(plain(text)))


@given(texts, st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none(), st.integers(-4, 4))
def test_a_slice_keeps_every_origin(text, start, stop, step):
    key = slice(start, stop, step or None)
    check(text[key], plain(text)[key])
    for i in range(-len(text), len(text)):
        check(text[i], plain(text)[i])


@given(texts, texts, st.integers(-1, 3))
@example(mark("a\u00df", LITERAL), mark("", DATA), 2)
def test_parts_found_by_another_text_keep_every_origin(text, other, count):
    base, sep = plain(text), plain(other)
    check(text + other, base + sep)
    check(text.removeprefix(other), base.removeprefix(sep))
    check(text.removesuffix(other), base.removesuffix(sep))
    check(text.split(None, count), base.split(None, count))
    check(text.rsplit(None, count), base.rsplit(None, count))
    if sep:
        check(text.split(other, count), base.split(sep, count))
        check(text.rsplit(other, maxsplit=count), base.rsplit(sep, maxsplit=count))
        check(text.partition(other), base.partition(sep))
        check(text.rpartition(other), base.rpartition(sep))
    check(other.join(list(text)), sep.join(base))
    check(other.join([text, other, text]), sep.join([base, sep, base]))


@given(texts, texts, texts, st.integers(-1, 3))
def test_replacing_keeps_every_origin(text, old, new, count):
    base = plain(text)
    check(text.replace(old, new, count), base.replace(plain(old), plain(new), count))
    check(text.replace(text[1:2], new), base.replace(base[1:2], plain(new)))
    check(text.replace(mark("", DATA), new, count), base.replace("", plain(new), count))


def test_what_takes_the_place_of_an_equal_text_has_its_own_origin():
    name = mark("<NAME>", LITERAL)
    assert origins(name.replace("NAME", mark("NAME", DATA)))[1:-1] == [DATA] * 4
    assert origins(mark("ab", DATA).replace("ab", mark("ab", LITERAL))) == [LITERAL] * 2


@given(texts, texts, st.integers(0, 12), st.integers(0, 5))
def test_percent_formats_keep_every_origin(text, value, width, precision):
    base, plain_value = plain(text).replace("%", "%%"), plain(value)
    template = text.replace("%", "%%")
    for tail in ("%s", f"%{width}s", f"%-{width}s", f"%.{precision}s", f"%{width}.{precision}s"):
        check((template + mark(tail, LITERAL)) % value, (base + tail) % plain_value)
    check((template + mark("%(k)s", LITERAL)) % {"k": value}, (base + "%(k)s") % {"k": plain_value})
    check((mark("%s%s", LITERAL)) % (value, text), plain_value + plain(text))


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("%d%%", 5, UNKNOWN),
        ("%d%%", number(5, DATA), DATA),
        ("%d%%", number(5, LITERAL), LITERAL),
        ("%.1f", number(5.5, LITERAL), LITERAL),
        ("%r", mark("a", DATA), DATA),
        ("%r", mark("a", LITERAL), LITERAL),
        ("%s", [mark("a", DATA)], DATA),
        ("%s", None, DATA),
        ("%*d", (3, 5), UNKNOWN),
        ("%c", 60, UNKNOWN),
        ("%c", number(60, DATA), DATA),
        ("%*d", (number(3, LITERAL), number(5, DATA)), DATA),
        ("%-*s", (4, mark("a", DATA)), DATA),
        ("%*.*s", (-4, 1, mark("ab", DATA)), DATA),
    ],
)
def test_values_of_percent_formats_are_what_they_were_given_as(template, values, expected):
    found = mark(template, LITERAL) % values
    assert found == template % values
    assert set(origins(found)) <= {expected, LITERAL}
    assert expected in origins(found)


numbers = st.integers(-5, 5) | st.floats(allow_nan=False)
value = st.recursive(
    texts
    | st.none()
    | st.booleans()
    | st.builds(number, numbers, st.sampled_from([LITERAL, DATA])),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3),
    max_leaves=8,
)


@given(value, st.booleans(), st.sampled_from([None, 2, mark("\t", DATA)]), st.booleans())
def test_json_keeps_every_origin(value, ensure_ascii, indent, sort_keys):
    options = {"ensure_ascii": ensure_ascii, "indent": indent, "sort_keys": sort_keys}
    found = to_json(value, **options)
    assert found == json.dumps(value, **options)
    check(found, plain(found), printed=True)
    assert UNKNOWN not in origins(found)


def test_escapes_of_json_have_the_origin_of_what_they_stand_for():
    text = join([mark('<\U0001f333"', LITERAL), mark("\n\u00e9", DATA)])
    found = to_json([text], ensure_ascii=True)
    assert found == '["<\\ud83c\\udf33\\"\\n\\u00e9"]'
    assert found[2:17].runs == ((15, LITERAL),)
    assert found[17:-2].runs == ((8, DATA),)
    found = to_json({1: mark("b", LITERAL), None: mark("\u03b1", DATA)}, separators=(";", "="))
    check(found, '{"1"="b";"null"="\u03b1"}', printed=True)
    odd = to_json([mark("a", LITERAL), mark("\u03b1", DATA)], separators=('","', ":"))
    check(odd, '["a"",""\u03b1"]')
    assert odd.runs == ((1, DATA), (3, LITERAL), (3, UNKNOWN), (4, DATA))


@given(value)
def test_what_is_printed_of_containers_keeps_every_origin(value):
    check(shown(value), str(value), printed=not isinstance(value, str))
    if isinstance(value, dict):
        for view in (value.keys(), value.values(), value.items()):
            check(shown(view), str(view), printed=True)


@pytest.mark.parametrize("value", [5, -0.5, 0.0, 10**30, float("inf")])
def test_numbers_have_the_origin_that_they_were_given(value):
    for origin in (LITERAL, DATA, UNKNOWN):
        marked = number(value, origin)
        assert (marked, hash(marked), repr(marked)) == (value, hash(value), repr(value))
        assert isinstance(marked, type(value))
        assert json.dumps([marked, {marked: 1}]) == json.dumps([value, {value: 1}])
        assert f"{marked:>9}" == f"{value:>9}"
        assert shown(marked) == str(value)
        assert common_origin(shown(marked)) == common_origin(marked) == origin
        assert copy.deepcopy([marked]) == [value]
    for nothing in (None, True):
        assert common_origin(shown(nothing)) == DATA


@given(
    numbers, numbers, st.sampled_from([LITERAL, DATA, UNKNOWN]), st.sampled_from([LITERAL, DATA])
)
def test_what_is_calculated_of_numbers_is_never_more_the_templates_than_they(a, b, of_a, of_b):
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "and_", "lshift", "or_", "xor"):
        call = getattr(operator, name)
        for left, right in (((a, of_a), (b, of_b)), ((b, of_b), (a, of_a))):
            try:
                expected = call(left[0], right[0])
            except (ArithmeticError, TypeError, ValueError):
                with pytest.raises((ArithmeticError, TypeError, ValueError)):
                    call(number(*left), number(*right))
                continue
            found = call(number(*left), number(*right))
            assert repr(found) == repr(expected)
            both = {of_a, of_b}
            if both == {LITERAL}:
                assert common_origin(found) == LITERAL
            elif type(a) is type(b):
                assert common_origin(found) == (DATA if DATA in both else UNKNOWN)
            else:
                assert common_origin(found) != LITERAL


def test_numbers_that_are_made_of_one_have_its_origin():
    for origin in (LITERAL, DATA):
        whole, part, two = number(-7, origin), number(-7.5, origin), number(2, origin)
        for found in (-whole, abs(whole), whole**two, two**whole, round(part)):
            assert common_origin(found) == origin
        assert common_origin(round(part, number(1, DATA))) == DATA
    assert common_origin(number(2, LITERAL) + number(3, LITERAL)) == LITERAL
    assert common_origin(number(2, LITERAL) + 3) == UNKNOWN
    assert common_origin((-8.0) ** number(0.5, LITERAL)) == UNKNOWN


@pytest.mark.parametrize("ends", [(3,), (1, 5), (9, 0, -2), (0,)])
def test_a_range_is_that_of_python_with_origins(ends):
    plain_range = range(*ends)
    for origin in (LITERAL, DATA, UNKNOWN):
        found = Range.of(plain_range, *(number(n, origin) for n in ends))
        assert (list(found), len(found), repr(found)) == (
            list(plain_range),
            len(plain_range),
            repr(plain_range),
        )
        assert list(reversed(found)) == list(reversed(plain_range))
        part = found[number(1, origin) :]
        assert part == Range.of(plain_range[1:], number(1, origin)) == plain_range[1:]
        assert hash(found) == hash(plain_range)
        assert {common_origin(n) for n in [*found, *part, *reversed(found)]} <= {origin}
        assert common_origin(found) == origin
        for n in plain_range:
            assert n in found
            assert (found.index(n), found.count(n)) == (plain_range.index(n), 1)
            assert common_origin(found[number(found.index(n), origin)]) == origin
            assert common_origin(found[number(found.index(n), DATA)]) == DATA
    mixed = Range.of(plain_range, number(1, LITERAL), number(1, DATA))
    assert {common_origin(n) for n in mixed} <= {DATA}


def test_what_hides_its_text_is_unknown():
    class Odd:
        def __repr__(self) -> str:
            return "'a'"

    for odd in (Odd(), [Odd(), mark("a", DATA)], iter("a"), b"a"):
        assert common_origin(shown(odd)) == UNKNOWN
    assert shown("a").runs == ((1, UNKNOWN),)
    assert (mark("a", DATA) + "b").runs == ((1, DATA), (1, UNKNOWN))
    assert ("b" + mark("a", DATA)).runs == ((1, UNKNOWN), (1, DATA))
    both = join([mark("a", LITERAL), mark("b", DATA)])
    assert both.translate({ord("a"): ord("b")}).runs == ((1, UNKNOWN), (1, DATA))


def test_a_traced_text_is_the_plain_text_to_whoever_looks():
    text = join([mark("<|im_", LITERAL), mark("end|>", DATA)])
    assert text == "<|im_end|>"
    assert hash(text) == hash("<|im_end|>")
    assert {text: 1}["<|im_end|>"] == 1
    assert repr(text) == "'<|im_end|>'"
    assert f"{text}" == format(text, "s") == "<|im_end|>"
    assert text.encode() == b"<|im_end|>"
    assert type(text.encode()) is bytes
    assert type(plain(text)) is str
    assert str(text) is text
    assert text.startswith("<|")
    assert "im" in text
    assert json.dumps(text) == '"<|im_end|>"'
    with pytest.raises(TypeError, match="can only concatenate str"):
        text + 1
    with pytest.raises(TypeError, match="can only concatenate list"):
        list.__add__([], text)
    with pytest.raises(IndexError):
        text[10]
    with pytest.raises(ValueError, match="empty separator"):
        text.split("")
    with pytest.raises(TypeError):
        text.replace("a")


@given(texts)
def test_copies_keep_the_runs(text):
    for other in (copy.copy(text), copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert type(other) is Traced
        assert other.runs == text.runs
    assert Traced(text).runs == text.runs
    assert origins(settle(text + "\u4e00", LITERAL))[-1] == LITERAL
    assert with_runs(plain(text), text.runs).runs == text.runs


def test_origins_of_values_are_found_however_deep():
    a, b = mark("a", LITERAL), mark("b", DATA)
    own, given = number(5, LITERAL), number(5, DATA)
    assert common_origin({a: [(a, own)]}) == LITERAL
    assert common_origin({a: [(a, given)]}) == UNKNOWN
    assert common_origin({a: [(a, 5)]}) == UNKNOWN
    assert common_origin({b: [(b, own, given)]}) == common_origin(own, given) == DATA
    assert common_origin(own, None) == LITERAL
    assert common_origin({a: [(a, {b})]}) == UNKNOWN
    assert common_origin({b: {b: own}.items()}, None, given) == DATA
    assert common_origin() == common_origin("", given) == DATA
    assert common_origin([object()]) == UNKNOWN
    circle: list[Any] = [b]
    circle.append(circle)
    assert common_origin(circle) == DATA


def test_operations_cost_runs_and_not_characters():
    whole = mark("x\n" * 500_000, DATA) + mark("<|im_end|>", LITERAL)
    for part in (whole[5:], whole.strip(), whole + whole, whole.upper(), whole.replace("y", "z")):
        assert len(part.runs) <= 4


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.split("b"),
        lambda s: s.splitlines(),
        lambda s: s.replace("a", ""),
        lambda s: s.replace("b", "\u00df").upper(),
        lambda s: list(s),
        lambda s: s[1:-1:2],
        lambda s: (s + s).strip("a"),
        lambda s: to_json([s, s]),
        lambda s: shown([s, s]),
    ],
)
def test_a_text_of_many_runs_costs_its_runs_once(call):
    few, many = (join(mark("ab", i % 2) for i in range(n)) for n in (200, 1_600))
    assert len(many.runs) == 1_600
    assert lines_run(lambda: call(many)) < 8.5 * lines_run(lambda: call(few))
