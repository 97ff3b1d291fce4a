"""What files say of their tokenizer, in the words of several writers."""

from __future__ import annotations

import numpy as np
import pytest
from model_files import Q1_MODEL
from tokenizer_files import byte_tokens, file_with, read

from oxibonsai import gguf
from oxibonsai.model.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; only 'gpt2'"),
        ({"ggml__model": None}, r"tokenizer\.ggml\.model is None"),
        ({"ggml__model": 3}, r"tokenizer\.ggml\.model is a int, not str"),
        ({"ggml__pre": "gpt-4o"}, r"tokenizer\.ggml\.pre is 'gpt-4o'; known are qwen2"),
        ({"ggml__pre": 3}, r"tokenizer\.ggml\.pre is a int, not str"),
        ({"ggml__tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"ggml__merges": [1, 2]}, r"tokenizer\.ggml\.merges is missing or no array of strings"),
        ({"ggml__token_type": [1] * 255}, r"token_type has shape \(255,\) for 256 tokens"),
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
        ({"ggml__merges": ["ab"]}, r"merge 0 is 'ab'"),
        ({"ggml__merges": ["a b c"]}, r"merge 0 is 'a b c'"),
    ],
)
def test_a_vocabulary_that_would_lose_text_is_refused_at_the_first_text(tmp_path, changes, message):
    with gguf.open(file_with(tmp_path, **changes)) as file:
        tokenizer = Tokenizer.from_gguf(file)
    with pytest.raises(gguf.GGUFError, match=message):
        tokenizer.encode("ab")


@pytest.mark.parametrize("none", [-1, 2**32 - 1], ids=repr)
@pytest.mark.parametrize(
    ("key", "attribute"),
    [("bos", "bos_id"), ("eos", "eos_id"), ("padding", "pad_id"), ("unknown", "unk_id")],
)
def test_an_id_of_none_or_outside_is_none(tmp_path, key, attribute, none, caplog):
    value = gguf.ValueType.I32(none) if none < 0 else gguf.ValueType.U32(none)
    tokenizer = read(tmp_path, **{f"ggml__{key}_token_id": value})
    assert getattr(tokenizer, attribute) is None
    assert not tokenizer.special_ids
    tokenizer = read(tmp_path, **{f"ggml__{key}_token_id": gguf.ValueType.U64(5)})
    assert getattr(tokenizer, attribute) == 5
    assert not caplog.records
    for outside in (256, 99999, 2**40):
        caplog.clear()
        value = gguf.ValueType.U64(outside)
        tokenizer = read(tmp_path, **{f"ggml__{key}_token_id": value})
        assert getattr(tokenizer, attribute) is None
        assert not tokenizer.special_ids
        assert not tokenizer.eos_ids
        [record] = caplog.records
        assert record.levelname == "WARNING"
        assert (
            f"m.gguf: tokenizer.ggml.{key}_token_id: special token id {outside} is outside the "
            "vocabulary of 256: it is taken as none"
        ) in record.getMessage()


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (np.array([1, 2], np.int32), {1, 2}),
        (np.array([-1, 3], np.int8), {3}),
        (np.array([2**32 - 1, 3], np.uint32), {3}),
        (gguf.ValueType.I32([]), set()),
        (7, {7}),
    ],
    ids=str,
)
@pytest.mark.parametrize("key", ["eos_token_ids", "eos_token_id", "eot_token_id", "eom_token_id"])
def test_ends_are_one_id_or_many(tmp_path, key, value, ids):
    assert read(tmp_path, **{f"ggml__{key}": value}).eos_ids == ids


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1.0], np.float32), "no ids of tokens"),
        (np.array([True]), "no ids of tokens"),
        (True, "no ids of tokens"),
        ("a", "is a str, not int or ndarray"),
    ],
    ids=str,
)
def test_ends_that_are_no_ids_are_refused_by_key(tmp_path, value, message):
    with pytest.raises(gguf.GGUFError, match=message):
        read(tmp_path, ggml__eos_token_ids=value)


@pytest.mark.parametrize("key", ["eos_token_ids", "eos_token_id", "eot_token_id", "eom_token_id"])
def test_ends_outside_the_vocabulary_are_left_out_with_one_warning(tmp_path, key, caplog):
    tokenizer = read(tmp_path, **{f"ggml__{key}": np.array([256, 3, -2, -1, 255], np.int64)})
    assert tokenizer.eos_ids == {3, 255}
    assert tokenizer.eos_id == (3 if key == "eos_token_id" else None)
    [record] = caplog.records
    assert f"tokenizer.ggml.{key}: special token id 256, -2 is" in record.getMessage()


@pytest.mark.parametrize("kind", [gguf.ValueType.U8, gguf.ValueType.I32, gguf.ValueType.U64])
def test_add_bos_is_a_bool_or_an_integer(tmp_path, kind):
    for value in (0, 1):
        tokenizer = read(tmp_path, ggml__add_bos_token=kind(value), ggml__bos_token_id=3)
        assert tokenizer.add_bos is bool(value)
    with pytest.raises(gguf.GGUFError, match=r"add_bos_token is a float, not bool or int"):
        read(tmp_path, ggml__add_bos_token=1.0)


def test_no_beginning_is_added_where_there_is_none(tmp_path):
    tokenizer = read(tmp_path, ggml__add_bos_token=True, ggml__bos_token_id=2**32 - 1)
    assert tokenizer.add_bos is False
    assert read(tmp_path, ggml__add_bos_token=True).add_bos is False


@pytest.mark.parametrize(
    "name",
    ["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan"],
)
def test_names_of_one_split_give_the_same_ids(name):
    with gguf.open(Q1_MODEL) as file:
        demo = Tokenizer.from_gguf(file)
        tokens, merges = (file.metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges"))
        tokenizer = Tokenizer(tokens, merges, pre=name)
    for text in ("It's 1234 o'clock!\n\n  \tx", "a\u0301 \u4e2d\u6587 '\u017f"):
        assert tokenizer.encode(text) == demo.encode(text)


@pytest.mark.parametrize("pre", [None, "default", ""])
def test_a_file_without_a_split_has_that_of_llama_cpp(tmp_path, pre, caplog):
    tokens = [*byte_tokens(), "12", "123", "ab", "\u0120a", "!!", "\u0120!", "\u0120\u0120"]
    merges = ["1 2", "12 3", "a b", "\u0120 a", "! !", "\u0120 !", "\u0120 \u0120"]
    tokenizer = read(tmp_path, ggml__pre=pre, ggml__tokens=tokens, ggml__merges=merges)
    assert tokenizer.pre == "default"
    assert "m.gguf: tokenizer.ggml.pre is missing" in caplog.text
    for text, parts in (
        ("1234", ["123", "4"]),  # three digits at a time, where qwen2 takes them one by one
        (" ab!!", ["\u0120", "ab", "!!"]),
        (" !!", ["\u0120", "!!"]),  # the space stays apart from what follows it
        ("  a", ["\u0120", "\u0120a"]),
    ):
        assert [tokens[i] for i in tokenizer.encode(text)] == parts
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64], ids=lambda d: d.__name__
)
def test_types_of_tokens_are_integers_of_any_width(tmp_path, dtype):
    types = np.array([1] * 256 + [3, 4, 5, 1, 1], dtype)  # and more than there are tokens
    tokenizer = read(tmp_path, ggml__tokens=[*byte_tokens(), "<a>", "<b>", "<c>"])
    assert tokenizer.special_ids == set()
    tokenizer = read(
        tmp_path, ggml__tokens=[*byte_tokens(), "<a>", "<b>", "<c>"], ggml__token_type=types
    )
    assert (tokenizer.special_ids, tokenizer.unused_ids) == ({256}, {258})
    assert tokenizer.encode("<a><b><c>", parse_special=True)[:2] == [256, 257]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_], ids=lambda d: d.__name__)
def test_types_of_tokens_that_are_no_integers_are_refused(tmp_path, dtype):
    with pytest.raises(
        gguf.GGUFError, match=r"token_type has shape \(256,\) .* an integer for each"
    ):
        read(tmp_path, ggml__token_type=np.ones(256, dtype))


def test_fields_of_a_chat_model_are_read(tmp_path):
    path = file_with(
        tmp_path,
        ggml__bos_token_id=1,
        ggml__eos_token_id=2,
        ggml__eot_token_id=3,
        ggml__padding_token_id=4,
        ggml__unknown_token_id=5,
        ggml__add_bos_token=True,
        chat_template="{{ messages }}",
    )
    with gguf.open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.bos_id == 1
    assert tokenizer.add_bos is True
    assert tokenizer.eos_ids == {2, 3}
    assert tokenizer.special_ids == {1, 2, 3}
    assert (tokenizer.pad_id, tokenizer.unk_id) == (4, 5)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.chat_templates == {}


def test_named_templates_are_read(tmp_path):
    named = {"chat_template__tool_use": "{{ tools }}", "chat_template__rag": "{{ documents }}"}
    with gguf.open(file_with(tmp_path, chat_template="{{ messages }}", **named)) as file:
        tokenizer = Tokenizer.from_gguf(file)
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.chat_templates == {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    path = file_with(tmp_path, chat_template__tool_use=5)
    with (
        gguf.open(path) as file,
        pytest.raises(gguf.GGUFError, match=r"tokenizer\.chat_template\.tool_use is a int"),
    ):
        Tokenizer.from_gguf(file)
