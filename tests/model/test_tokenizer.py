"""The tokenizer: the goldens' ids, exact round trips, streaming, and special tokens."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import PROMPTS, Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL

from oxibonsai import gguf
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


def byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def file_with(tmp_path, **changes):
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": byte_tokens(),
        "tokenizer.ggml.merges": gguf.ValueType.STRING([]),
    }
    metadata |= {f"tokenizer.{k.replace('__', '.')}": v for k, v in changes.items()}
    path = tmp_path / "m.gguf"
    gguf.write(path, {k: v for k, v in metadata.items() if v is not None}, [])
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; only 'gpt2'"),
        ({"ggml__model": None}, r"tokenizer\.ggml\.model is None"),
        ({"ggml__model": 3}, r"tokenizer\.ggml\.model is a int, not str"),
        ({"ggml__pre": "gpt-4o"}, r"tokenizer\.ggml\.pre is 'gpt-4o'; known are qwen2"),
        ({"ggml__pre": None}, r"tokenizer\.ggml\.pre is 'default'"),
        ({"ggml__tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"ggml__merges": [1, 2]}, r"tokenizer\.ggml\.merges is missing or no array of strings"),
        ({"ggml__token_type": [1] * 255}, r"token_type has shape \(255,\) for 256 tokens"),
        ({"ggml__bos_token_id": 256}, r"special token id 256 is outside the vocabulary of 256"),
        ({"ggml__eot_token_id": 999}, r"special token id 999 is outside"),
    ],
)
def test_a_file_with_another_tokenizer_is_refused_by_name(tmp_path, changes, message):
    with (
        gguf.open(file_with(tmp_path, **changes)) as file,
        pytest.raises(gguf.GGUFError, match=message) as caught,
    ):
        Tokenizer.from_gguf(file)
    assert str(file.path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__tokens": [*byte_tokens(), "a"]}, r"1 of 257 tokens appear twice"),
        ({"ggml__tokens": byte_tokens()[:-1]}, r"no token for 1 of 256 bytes, first 0xad"),
        ({"ggml__merges": ["a b"]}, r"do not agree.*`ab` out of vocabulary"),
        ({"ggml__merges": ["ab"]}, r"merge 0 is 'ab'"),
        ({"ggml__merges": ["a b c"]}, r"merge 0 is 'a b c'"),
    ],
)
def test_a_vocabulary_that_would_lose_text_is_refused_at_the_first_text(tmp_path, changes, message):
    with gguf.open(file_with(tmp_path, **changes)) as file:
        tokenizer = Tokenizer.from_gguf(file)
    with pytest.raises(gguf.GGUFError, match=message):
        tokenizer.encode("ab")


def test_merges_cannot_make_a_control_token_out_of_text(tmp_path):
    path = file_with(
        tmp_path,
        ggml__tokens=[*byte_tokens(), "ab"],
        ggml__token_type=[1] * 256 + [3],
        ggml__merges=["a b"],
    )
    with gguf.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    with pytest.raises(gguf.GGUFError, match="`ab` out of vocabulary"):
        tokenizer.encode("ab")


def test_fields_of_a_chat_model_are_read(tmp_path):
    path = file_with(
        tmp_path,
        ggml__bos_token_id=1,
        ggml__eos_token_id=2,
        ggml__eot_token_id=3,
        ggml__add_bos_token=True,
        chat_template="{{ messages }}",
    )
    with gguf.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.bos_id == 1
    assert tokenizer.add_bos is True
    assert tokenizer.eos_ids == {2, 3}
    assert tokenizer.special_ids == {1, 2, 3}
    assert tokenizer.chat_template == "{{ messages }}"


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
