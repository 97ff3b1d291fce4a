"""Prepare the demo models' corpus: clean three public-domain texts and train the tokenizer.

Writes ``tokenizer.json`` and ``tokens.bin`` (uint16 token ids) into the output folder.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read(path: Path) -> str:
    """Return a text with plain newlines."""
    text = path.read_bytes().decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def alice(text: str) -> str:
    """Return Alice in Wonderland, one line a paragraph."""
    text = text[text.index("CHAPTER I") : text.index("THE END")]
    paragraphs = (re.sub(r"\s+", " ", p).strip() for p in re.split(r"\n\s*\n", text))
    kept = (p for p in paragraphs if p and not re.fullmatch(r"[\s*]+", p))
    return "\n\n".join(kept).replace("`", "'")


def as_you_like_it(text: str) -> str:
    """Return As You Like It from its first scene."""
    start = text.find("SCENE\tOliver")
    text = re.sub(r"[\t ]+", " ", text[max(start, 0) :])
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def paradise_lost(text: str) -> str:
    """Return Paradise Lost from its first line."""
    text = text[text.index("Of Man's first disobedience") :]
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer with Qwen2's split into words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "texts", type=Path, help="folder with alice29.txt, asyoulik.txt and plrabn12.txt"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="output folder")
    args = parser.parse_args()

    texts = [
        alice(read(args.texts / "alice29.txt")),
        as_you_like_it(read(args.texts / "asyoulik.txt")),
        paradise_lost(read(args.texts / "plrabn12.txt")),
    ]
    tokenizer = train_tokenizer(texts)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = [end]
    for text in texts:
        ids += [*tokenizer.encode(text).ids, end]
    np.array(ids, dtype=np.uint16).tofile(args.out / "tokens.bin")
    print(f"{len(texts)} texts, {len(ids)} tokens, vocabulary of {tokenizer.get_vocab_size()}")


if __name__ == "__main__":
    main()
