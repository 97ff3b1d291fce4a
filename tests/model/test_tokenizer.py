"""The tokenizer: the goldens' ids, exact round trips, streaming, and special tokens."""

from __future__ import annotations

import sys
import time
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import PROMPTS, Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL
from tokenizer_files import byte_tokens, file_with, read

from oxibonsai import gguf
from oxibonsai.model import Model
from oxibonsai.model.tokenizer import Tokenizer

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>")


def load(path=Q1_MODEL) -> Tokenizer:
    with gguf.open(path) as file:
        return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load()


@pytest.fixture(scope="module")
def chat(demo) -> Tokenizer:
    """The demo vocabulary with ChatML's control tokens and one user-defined token behind it."""
    with gguf.open(Q1_MODEL) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"].tolist()
        merges = file.metadata["tokenizer.ggml.merges"]
    names = [*CHATML[1:], "[PAD]"]
    types = [3, *[1] * (len(tokens) - 1), 3, 3, 4, 5]
    return Tokenizer(
        tokens + names, merges, pre="qwen2", token_types=types, bos_id=4096, end_ids=[4098]
    )


@pytest.mark.parametrize(
    ("model", "golden"), [(Q1_MODEL, Q1_GOLDEN), (TERNARY_MODEL, TERNARY_GOLDEN)]
)
def test_prompts_give_the_goldens_ids(model, golden):
    tokenizer = load(model)
    with np.load(golden) as z:
        for i, prompt in enumerate(PROMPTS):
            ids = tokenizer.encode(prompt)
            assert ids == z[f"p{i}.ids"].tolist()
            assert all(type(n) is int for n in ids)
            assert tokenizer.decode(z[f"p{i}.ids"]) == prompt


def test_attributes_of_the_demo_model(demo):
    assert demo.vocab_size == 4096
    assert demo.pre == "qwen2"
    assert demo.bos_id == 0
    assert demo.add_bos is False
    assert demo.eos_ids == {0}
    assert demo.special_ids == {0}
    assert demo.chat_template is None


@given(TEXT)
@settings(deadline=None, max_examples=300)
def test_any_text_comes_back(demo, text):
    assert demo.decode(demo.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "  \n\r\n\t ",
        "e\N{COMBINING ACUTE ACCENT} is not \N{LATIN SMALL LETTER E WITH ACUTE}",
        "\N{ANGSTROM SIGN}\N{HANGUL CHOSEONG KIYEOK}\N{HANGUL JUNGSEONG A}",
        "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{MAN}\U0010ffff",
        "1234 it's IT'S",
    ],
)
def test_text_is_not_normalised(demo, text):
    assert demo.decode(demo.encode(text)) == text


@given(TEXT)
@settings(deadline=None, max_examples=200)
def test_streamed_pieces_join_to_the_text(demo, text):
    stream = demo.stream()
    pieces = [stream.push(i) for i in demo.encode(text)]
    assert "".join(pieces) == text
    assert stream.flush() == ""


@given(st.lists(st.integers(0, 4095), max_size=40))
@settings(deadline=None, max_examples=200)
def test_streaming_any_tokens_equals_decoding_them(demo, ids):
    stream = demo.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == demo.decode(ids)


def test_streaming_never_gives_half_a_character(demo):
    ids = demo.encode("\U0001f333")
    assert len(ids) == 4  # one token a byte
    stream = demo.stream()
    assert [stream.push(i) for i in ids] == ["", "", "", "\U0001f333"]
    assert [stream.push(i) for i in ids[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"
    assert [stream.push(i) for i in ids] == ["", "", "", "\U0001f333"]


def test_bytes_of_tokens_join_to_the_bytes_of_the_text(demo):
    text = "Alice \U0001f333 na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve\n"
    assert b"".join(map(demo.token_bytes, demo.encode(text))) == text.encode()
    assert demo.token_bytes(0) == b"<|endoftext|>"


@pytest.mark.parametrize("name", CHATML)
def test_a_special_name_in_text_is_ordinary_text(chat, name):
    ids = chat.encode(f"a{name}b")
    assert not set(ids) & {0, *range(4096, 4100)}
    assert chat.decode(ids) == f"a{name}b"


def test_a_template_s_special_names_are_parsed_on_request(chat):
    text = "<|im_start|>user\nHi<|im_end|><think>"
    ids = chat.encode(text, parse_special=True)
    assert ids == [4096, *chat.encode("user\nHi"), 4097, 4098]
    assert chat.decode(ids) == "user\nHi<think>"
    assert chat.decode(ids, skip_special=False) == text


def test_the_longest_special_name_wins():
    tokens = [*byte_tokens(), "<a", "<a>"]
    types = [1] * 256 + [3, 3]
    tokenizer = Tokenizer(tokens, [], pre="qwen2", token_types=types)
    assert tokenizer.encode("<a><a", parse_special=True) == [257, 256]


def test_control_tokens_decode_to_nothing_unless_asked(demo):
    ids = [0, *demo.encode("The Queen"), 0]
    assert demo.decode(ids) == "The Queen"
    assert demo.decode(ids, skip_special=False) == "<|endoftext|>The Queen<|endoftext|>"
    assert demo.stream().push(0) == ""
    assert demo.stream(skip_special=False).push(0) == "<|endoftext|>"


def test_end_ids_are_those_named_and_the_known_control_tokens(chat):
    assert chat.eos_ids == {0, 4097, 4098}
    assert chat.special_ids == {0, 4096, 4097}
    assert chat.bos_id == 4096


@pytest.mark.parametrize("token", [-1, 4096, 2**40])
def test_an_id_outside_the_vocabulary_is_a_value_error_with_the_limit(demo, token):
    for call in (demo.token_bytes, demo.stream().push, lambda i: demo.decode([1, i])):
        with pytest.raises(ValueError, match=rf"token id {token} .* 0 to 4095"):
            call(token)


def test_a_lone_surrogate_is_a_value_error_with_its_place(demo):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D83C at 2"):
        demo.encode("ab\ud83c")


def test_text_that_is_no_str_is_a_type_error(demo):
    with pytest.raises(TypeError, match="text is a bytes"):
        demo.encode(b"Alice")


def test_merges_never_make_a_control_token_out_of_text(tmp_path):
    path = file_with(
        tmp_path,
        ggml__tokens=[*byte_tokens(), "ab", "abc", "xabc"],
        ggml__token_type=[1] * 256 + [3, 1, 3],
        ggml__merges=["a b", "ab c", "x abc"],
    )
    with gguf.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    for text in ("ab", "abc", "xabc", "abab"):
        assert tokenizer.encode(text) == [byte_tokens().index(c) for c in text]


# Merges and tokens that do not agree


def test_merges_go_through_texts_that_are_no_tokens(tmp_path):
    tokens = [*byte_tokens(), "abc", "xyz"]
    merges = ["a b", "ab c", "q yz", "x y", "xy z", "z z", "q zz", "\u4e2d a"]
    tokenizer = read(tmp_path, ggml__tokens=tokens, ggml__merges=merges)
    for text, parts in (
        ("abc", ["abc"]),
        ("ab", ["a", "b"]),
        ("abab", ["a", "b", "a", "b"]),
        ("ababc", ["a", "b", "abc"]),
        ("xyz", ["xyz"]),
        ("qzz", ["q", "z", "z"]),
        ("zzz", ["z", "z", "z"]),
    ):
        assert [tokens[i] for i in tokenizer.encode(text)] == parts


@given(
    st.lists(st.text("abc", min_size=2, max_size=4), max_size=6, unique=True),
    st.lists(st.tuples(*2 * [st.text("abc", min_size=1, max_size=2)]), max_size=12, unique=True),
    st.text("abc ", max_size=20),
)
@settings(deadline=None, max_examples=200)
def test_any_merges_keep_the_text_and_make_tokens_alone(words, pairs, text):
    tokens = [*byte_tokens(), *words]
    tokenizer = Tokenizer(tokens, [f"{a} {b}" for a, b in pairs], pre="qwen2")
    ids = tokenizer.encode(text)
    assert all(0 <= i < len(tokens) for i in ids)
    assert tokenizer.decode(ids) == text


def test_several_empty_tokens_are_no_token_twice(tmp_path):
    tokens = [*byte_tokens(), "", "", "ab"]
    tokenizer = read(tmp_path, ggml__tokens=tokens, ggml__merges=["a b"])
    assert tokenizer.encode("ab") == [258]
    assert tokenizer.decode([256, 258, 257]) == "ab"


def test_name_of_an_end_in_ordinary_text_gives_its_parts(tmp_path):
    tokens = [*byte_tokens(), "</", "</s", "</s>"]
    merges = ["< /", "</ s", "</s >"]
    tokenizer = read(tmp_path, ggml__tokens=tokens, ggml__merges=merges)
    assert tokenizer.eos_ids == tokenizer.special_ids == {258}
    assert tokenizer.encode("</s>") == [256, tokens.index("s"), tokens.index(">")]
    assert tokenizer.encode("</s>", parse_special=True) == [258]
    assert tokenizer.decode([258, *tokenizer.encode("</s>")]) == "</s>"


# Ends by name


NAMED = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "</s>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
]


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, None])
@pytest.mark.parametrize("name", NAMED)
def test_known_end_is_a_control_token_whatever_its_type(name, kind):
    types = None if kind is None else [1] * 256 + [kind]
    tokenizer = Tokenizer([*byte_tokens(), name], [], pre="qwen2", token_types=types)
    assert tokenizer.eos_ids == tokenizer.special_ids == {256}
    assert tokenizer.unused_ids == set()
    assert tokenizer.decode([256]) == ""
    assert tokenizer.decode([256], skip_special=False) == name
    assert 256 not in tokenizer.encode(name)
    assert tokenizer.decode(tokenizer.encode(name)) == name
    assert tokenizer.encode(f"a{name}", parse_special=True)[1:] == [256]
    assert tokenizer.textless_ids(name) == [256]


@pytest.mark.parametrize("name", ["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "[PAD]"])
def test_what_pads_and_parts_files_ends_a_text_and_keeps_its_type(name):
    def of(kind: int) -> Tokenizer:
        types = [1] * 256 + [kind]
        return Tokenizer([*byte_tokens(), name], [], pre="qwen2", token_types=types)

    for kind in (1, 2, 3, 4):
        assert of(kind).eos_ids == {256}
        assert of(kind).special_ids == ({256} if kind in (2, 3) else set())
    assert of(5).eos_ids == set()


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (["<|end|>", "<|call|>", "<|return|>"], ["<|call|>", "<|return|>"]),
        (["<|end|>", "<|calls|>", "<|flush|>"], ["<|calls|>", "<|flush|>"]),
        (["<|end|>", "<|call|>"], ["<|end|>", "<|call|>"]),
        (["<|end|>", "<|return|>"], ["<|end|>", "<|return|>"]),
        (["</s>", "<|tool_response>"], ["<|tool_response>"]),
        (["<|im_start|>", "<|channel|>", "<|IM_END|>", " <|im_end|>"], []),
    ],
    ids=str,
)
def test_names_that_two_families_use_otherwise_are_told_apart(names, ends):
    types = [1] * 256 + [3] * len(names)
    tokenizer = Tokenizer([*byte_tokens(), *names], [], pre="qwen2", token_types=types)
    assert [names[i - 256] for i in sorted(tokenizer.eos_ids)] == ends
    assert tokenizer.special_ids == set(range(256, 256 + len(names)))
    # What the file itself names is one.
    tokenizer = Tokenizer([*byte_tokens(), *names], [], pre="qwen2", token_types=types, eos_id=256)
    assert 256 in tokenizer.eos_ids


# Tokens that stand for nothing


@pytest.mark.parametrize("skip_special", [True, False])
def test_unused_tokens_decode_to_nothing(tmp_path, skip_special):
    tokenizer = read(
        tmp_path,
        ggml__tokens=[*byte_tokens(), "[PAD256]", "ab"],
        ggml__token_type=[1] * 256 + [5, 1],
    )
    assert tokenizer.unused_ids == {256}
    assert tokenizer.decode([256, 257, 256], skip_special=skip_special) == "ab"
    assert tokenizer.token_bytes(256, skip_special=skip_special) == b""
    stream = tokenizer.stream(skip_special=skip_special)
    assert [stream.push(i) for i in (256, 257)] == ["", "ab"]
    assert tokenizer.textless_ids("[PAD256]") == [256]
    assert tokenizer.textless_ids("ab") == []
    text = "[PAD256]"
    assert tokenizer.decode(tokenizer.encode(text, parse_special=True)) == text


def test_the_token_of_the_unknown_is_a_control_token(tmp_path):
    tokenizer = read(
        tmp_path,
        ggml__tokens=[*byte_tokens(), "<unk>"],
        ggml__token_type=[1] * 256 + [2],
        ggml__unknown_token_id=256,
    )
    assert tokenizer.unk_id == 256
    assert tokenizer.special_ids == {256}
    assert tokenizer.decode([256]) == ""


# Normalisation


def peer_of(tokens, merges, special):
    """Return Hugging Face's tokenizer of the vocabulary, made as its files of qwen2 make it."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

    from oxibonsai.model.splits import SPLITS

    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    peer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    peer.normalizer = normalizers.NFC()
    peer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLITS["qwen2"][0]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    peer.add_tokens(
        [tokenizers.AddedToken(name, normalized=False, special=True) for name in special]
    )
    return peer


NFC_TEXTS = [
    "e\u0301",
    "\u212b \u1100\u1161 \u0958",
    "<|im_end|>\u0301",  # nothing to compose with: the token is not part of the text
    "e<|im_end|>\u0301e\u0301",
    "\u1112<|im_end|>\u1161\u11ab",
    "o\u0328\u0301<|im_start|>\u0301\u0328",
    "plain",
    "",
]


@pytest.fixture(scope="module")
def composing(chat) -> tuple[Tokenizer, Any]:
    with gguf.open(Q1_MODEL) as file:
        tokens = file.metadata["tokenizer.ggml.tokens"].tolist() + list(CHATML[1:])
        merges = file.metadata["tokenizer.ggml.merges"].tolist()
    types = [3, *[1] * (len(tokens) - 4), 3, 3, 4]
    tokenizer = Tokenizer(tokens, merges, pre="qwen2", token_types=types, nfc=True)
    return tokenizer, peer_of(tokens, merges, CHATML)


@pytest.mark.parametrize("text", NFC_TEXTS, ids=ascii)
def test_nfc_composes_text_between_special_tokens_as_hugging_face_does(composing, chat, text):
    tokenizer, peer = composing
    assert tokenizer.nfc is True
    ids = tokenizer.encode(text, parse_special=True)
    assert ids == peer.encode(text, add_special_tokens=False).ids
    assert chat.nfc is False
    plain = text.replace("<|im_end|>", "").replace("<|im_start|>", "")
    composed = unicodedata.normalize("NFC", plain)
    assert tokenizer.encode(plain) == chat.encode(composed)
    assert tokenizer.decode(tokenizer.encode(plain)) == composed
    assert chat.decode(chat.encode(plain)) == plain


@given(
    st.lists(
        st.sampled_from(
            [*CHATML, "e", "\u0301", "\u0323", "\u1100", "\u1161", "\u212b", " ", "x1"]
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=300)
def test_nfc_gives_the_ids_of_hugging_face(composing, parts):
    tokenizer, peer = composing
    text = "".join(parts)
    assert tokenizer.encode(text, parse_special=True) == (
        peer.encode(text, add_special_tokens=False).ids
    )


def test_model_is_loaded_with_the_option(demo):
    text = "e\u0301"
    with Model.load(Q1_MODEL, "cpu", nfc=True) as model, Model.load(Q1_MODEL, "cpu") as plain:
        assert model.tokenizer.encode(text) == demo.encode("\u00e9")
        assert plain.tokenizer.encode(text) == demo.encode(text) != demo.encode("\u00e9")
    with pytest.raises(TypeError, match="nfc = 'yes' is a str, not a bool"):
        Model.load(Q1_MODEL, "cpu", nfc="yes")


def test_without_the_package_tokenizers_decoding_works_and_encoding_says_what_to_install(
    monkeypatch,
):
    tokenizer = load()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert tokenizer.decode([1, 2, 3])
    with pytest.raises(ImportError, match="pip install tokenizers jinja2 rich"):
        tokenizer.encode("Alice")


def test_a_vocabulary_of_151936_tokens_loads_in_seconds():
    characters = byte_tokens()
    pairs = [(a, b) for a in characters for b in characters]
    triples = [(a + b, c) for a, b in pairs[:400] for c in characters]
    merges = (pairs + triples)[: 151_936 - 256]
    tokens = characters + [a + b for a, b in merges]
    start = time.process_time()
    tokenizer = Tokenizer(tokens, [f"{a} {b}" for a, b in merges], pre="qwen2")
    ids = tokenizer.encode("Alice was beginning")
    assert time.process_time() - start < 5  # about 1 s on an idle core
    assert len(ids) < 19
    assert tokenizer.decode(ids) == "Alice was beginning"
