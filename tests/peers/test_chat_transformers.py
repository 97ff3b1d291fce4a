"""The texts and ids of Hugging Face transformers' apply_chat_template, from the same vocabulary.

Where names of control tokens are in what users wrote, transformers reads them as tokens; there the
ids are those of transformers' text with these names as plain text.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from chat_conversations import conversation, expected_ids
from chat_templates import (
    CONTROL,
    SPECIAL_TOKENS,
    TEMPLATES,
    USER_DEFINED,
    tokenizer,
    vocabulary,
)
from peers import import_peer

from oxibonsai.chat import ChatTemplate

CONVERSATIONS = 50_000


def without_special_tokens() -> Any:
    """The vocabulary in Hugging Face tokenizers, with the split that transformers gives Qwen2."""
    tokenizers = import_peer("tokenizers")
    regex = import_peer("transformers.models.qwen2.tokenization_qwen2").PRETOKENIZE_REGEX
    metadata = vocabulary()
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=merges))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    return bpe


@pytest.fixture(scope="module")
def peer() -> Any:
    """The same vocabulary in transformers."""
    tokenizers = import_peer("tokenizers")
    transformers = import_peer("transformers")
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=without_special_tokens())
    for names, special in ((CONTROL, True), (USER_DEFINED, False)):
        made.add_tokens(
            [tokenizers.AddedToken(n, normalized=False, special=special) for n in names],
            special_tokens=special,
        )
    return made


def ids_of(peer: Any) -> dict[str, int]:
    return {name: peer.convert_tokens_to_ids(name) for name in (*CONTROL, *USER_DEFINED)}


def test_the_vocabularies_are_the_same(peer):
    tokens = vocabulary()["tokenizer.ggml.tokens"]
    assert ids_of(peer) == {name: tokens.index(name) for name in (*CONTROL, *USER_DEFINED)}
    assert len(peer) == len(tokens)


@pytest.mark.parametrize("style", TEMPLATES)
def test_ids_are_those_of_transformers(peer, style):
    ours = tokenizer()
    source, special_tokens = TEMPLATES[style], SPECIAL_TOKENS[style]
    template = ChatTemplate(source, ours, special_tokens=special_tokens, name=style)
    for name, text in special_tokens.items():
        setattr(peer, name, text)
    ids = ids_of(peer)
    bare = without_special_tokens()

    def encode(text: str) -> list[int]:
        return list(bare.encode(text).ids)

    count = -(-CONVERSATIONS // len(TEMPLATES))
    n_equal = n_others = 0
    for seed in range(count):
        given = conversation(random.Random(f"{style} {seed}"))
        at = f"{style} {seed}"
        texts = []
        for each in (given.plain(), given.plain().twin()):
            options = each.given() | special_tokens
            texts.append(
                peer.apply_chat_template(
                    each.messages, chat_template=source, tokenize=False, **options
                )
            )
        assert template.render(given.messages, **given.given()) == texts[0], at
        found = template.encode(given.messages, **given.given())
        expected, others = expected_ids(*texts, ids, encode)
        assert found == expected, at
        n_others += others
        if not others:
            n_equal += 1
            whole = peer(texts[0], add_special_tokens=False)["input_ids"]
            assert found == whole, at
    assert n_equal > count / 5
    assert n_others > count / 5
