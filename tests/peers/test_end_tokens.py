"""The tokens that end a text: llama.cpp's end of generation, for every token of a file.

llama.cpp goes by names too, whatever the type of the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import qwen3
from peers import import_peer
from tiny_models import EOS, Tiny, byte_vocabulary, random_tensors, write

from oxibonsai import gguf
from oxibonsai.model.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)
ENDS = (
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    *("<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<turn|>", "<|tool_response>"),
    *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~["),
)
"""Names with which a turn, a call or a text ends."""
FILE_ENDS = (
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
)
"""Names of what pads, or stands between files and repositories, where models complete code."""
OTHERS = (
    "<|im_start|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<|end_header_id|>",
    "<|eot",
    "im_end",
)


def llama_ends(path: Path) -> set[int]:
    """Return llama.cpp's end-of-generation tokens."""
    llama_cpp = import_peer("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    n = llama_cpp.llama_vocab_n_tokens(vocab)
    found = {i for i in range(n) if llama_cpp.llama_vocab_is_eog(vocab, i)}
    model.close()
    return found


def our_ends(path: Path) -> frozenset[int]:
    with gguf.open(path) as file:
        return Tokenizer.from_gguf(file).eos_ids


def write_vocabulary(
    path: Path, added: Mapping[str, int], metadata: Mapping[str, Any] | None = None
) -> Path:
    """Write a byte model with further tokens and their types, and a first id of the end."""
    found = byte_vocabulary()
    found["tokenizer.ggml.tokens"][EOS] = "<the end>"
    found["tokenizer.ggml.tokens"] += added
    found["tokenizer.ggml.token_type"] += added.values()
    tiny = Tiny(n_layers=1, vocab=len(found["tokenizer.ggml.tokens"]))
    return write(path, tiny, random_tensors(tiny), {**found, **(metadata or {})})


@pytest.mark.parametrize("name", ENDS)
def test_a_known_name_ends_a_text_whatever_its_type(tmp_path, name):
    for kind in (NORMAL, CONTROL, USER_DEFINED, UNUSED):
        path = write_vocabulary(tmp_path / "a.gguf", {name: kind})
        assert our_ends(path) == llama_ends(path) == {EOS, EOS + 1}, kind


@pytest.mark.parametrize("name", FILE_ENDS)
def test_what_parts_files_ends_a_text_where_it_is_used(tmp_path, name):
    for kind in (NORMAL, CONTROL, USER_DEFINED):
        path = write_vocabulary(tmp_path / "a.gguf", {name: kind})
        assert our_ends(path) == llama_ends(path) == {EOS, EOS + 1}, kind
    # llama.cpp takes a row that no text uses, such as "[PAD]", for an end as well.
    path = write_vocabulary(tmp_path / "a.gguf", {name: UNUSED})
    assert our_ends(path) == {EOS}
    assert llama_ends(path) == {EOS, EOS + 1}


@pytest.mark.parametrize(
    "names",
    [
        ("<|end|>", "<|return|>"),
        ("<|end|>", "<|return|>", "<|call|>"),
        ("<|end|>", "<|calls|>", "<|flush|>"),
        ENDS,
        (*ENDS, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    ],
    ids=" ".join,
)
def test_names_beside_each_other(tmp_path, names):
    path = write_vocabulary(tmp_path / "a.gguf", dict.fromkeys(names, CONTROL))
    assert our_ends(path) == llama_ends(path)


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
def test_other_names_end_nothing(tmp_path, kind):
    path = write_vocabulary(tmp_path / "a.gguf", dict.fromkeys(OTHERS, kind))
    assert our_ends(path) == llama_ends(path) == {EOS}


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
@pytest.mark.parametrize("eos", ["<|endoftext|>", "<|im_end|>", "<|im_start|>"])
def test_chatml_with_each_end(tmp_path, kind, eos):
    names = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": kind}
    path = write_vocabulary(
        tmp_path / "a.gguf",
        names,
        {"tokenizer.ggml.eos_token_id": EOS + 1 + list(names).index(eos)},
    )
    assert our_ends(path) == llama_ends(path)
    assert {EOS + 1, EOS + 3} <= our_ends(path)


@pytest.mark.parametrize("key", ["eot_token_id", "eom_token_id"])
def test_further_ids_of_the_file(tmp_path, key):
    names = {"<a>": CONTROL, "<b>": NORMAL, "<c>": USER_DEFINED}
    for i in range(3):
        path = write_vocabulary(tmp_path / "a.gguf", names, {f"tokenizer.ggml.{key}": EOS + 1 + i})
        assert our_ends(path) == llama_ends(path) == {EOS, EOS + 1 + i}


def test_a_list_of_ids(tmp_path):
    path = write_vocabulary(
        tmp_path / "a.gguf",
        {"<a>": CONTROL, "<b>": NORMAL, "<c>": CONTROL},
        {"tokenizer.ggml.eos_token_ids": gguf.ValueType.I32([EOS, EOS + 2, EOS + 3])},
    )
    # llama.cpp reads the one id alone.
    assert llama_ends(path) == {EOS}
    assert our_ends(path) == {EOS, EOS + 2, EOS + 3}


def test_a_vocabulary_that_names_no_end_has_none(tmp_path):
    path = write_vocabulary(tmp_path / "a.gguf", {}, {"tokenizer.ggml.eos_token_id": None})
    assert our_ends(path) == set()
    assert llama_ends(path) == {11}  # the end of another vocabulary


def test_qwen3(qwen3_file):
    data = qwen3.tokenizer_json()
    ids = {added["content"]: added["id"] for added in data["added_tokens"]}
    found = our_ends(qwen3_file)
    assert found == llama_ends(qwen3_file)
    # Beside what transformers stops at: what ends files, and a tag of HTML that is a token here.
    assert found - {ids[name] for name in ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")} == {
        *(ids["<|endoftext|>"], ids["<|im_end|>"], data["model"]["vocab"]["</s>"])
    }
