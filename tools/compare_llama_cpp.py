"""Compare greedy continuations with llama.cpp's, token by token, and print the result as Markdown.

llama.cpp rounds activations to 8-bit integers, so that its logits are off by about 1 % of their
norm: where the two best tokens are nearer than that, its choice may be the other one. At the first
difference of a text the gap between the two tokens is set against the spread of the differences
between our logits and llama.cpp's there; one of more than three standard deviations is no near tie
and ends the program with status 1. Then llama.cpp is fed our text, and its choice at every position
is compared.

Ternary files are rewritten without loss to Q2_0 with groups of 64, which llama.cpp reads.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import oxibonsai
from oxibonsai import gguf, quant
from oxibonsai.model import Model

ROOT = Path(__file__).parent.parent
MODELS = (
    ROOT / "oxibonsai" / "data" / "alice-q1_0.gguf",
    ROOT / "tests" / "data" / "alice-tq2_0_g128.gguf",
)
PROMPTS = (
    "Alice was beginning to get very tired of sitting by her sister",
    "The Queen of Hearts",
    "Of Man's first disobedience, and the fruit",
    "Down, down, down. Would the fall never come to an end?",
    '"Curiouser and curiouser!" cried Alice',
    "To be, or not to be, that is the question:",
    "The Hatter opened his eyes very wide on hearing this;",
    "Once upon a time there was a king",
    "I",
    "What is the use of a book without pictures?\n\n",
)
LLAMA_READS = ("Q1_0", "Q2_0", "F32", "F16", "BF16", "Q8_0")

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Difference:
    """Where two texts part: the choices there and how the logits stand."""

    position: int
    ours: str
    theirs: str
    our_gap: float
    their_gap: float
    spread: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding that has this spread may turn the choice."""
        return self.our_gap <= 3 * self.spread


@dataclass(frozen=True)
class Comparison:
    """One prompt."""

    prompt: str
    n_tokens: int
    difference: Difference | None
    agreeing: int
    worst_gap: float


def readable(path: Path, folder: Path) -> Path:
    """Return `path`, or a copy in `folder` whose ternary tensors are Q2_0."""
    with gguf.open(path) as file:
        if all(t.format in LLAMA_READS for t in file.tensors.values()):
            return path
        tensors: list[tuple[str, Any]] = []
        for name, t in file.tensors.items():
            if t.format in LLAMA_READS:
                tensors.append((name, (file.tensor_data(name), t.shape, t.format)))
                continue
            rows = file.tensor_data(name).reshape(t.shape[0], -1)
            values = quant.dequantize(quant.QTensor(rows, (t.shape[0], t.shape[1]), str(t.format)))
            copy = quant.quantize(values, "Q2_0")
            if not np.array_equal(quant.dequantize(copy), values):
                raise SystemExit(f"{path}: {name} cannot be rewritten to Q2_0 without loss")
            tensors.append((name, copy))
        out = folder / f"{path.stem}-as-q2_0.gguf"
        gguf.write(out, {key: file.metadata.typed(key) for key in file.metadata}, tensors)
    return out


def greedy(model: Model, ids: list[int], n_tokens: int) -> tuple[list[int], Logits]:
    """Return our text, and the logits that each of its tokens was chosen from."""
    with model.session() as session:
        session.forward(ids, logits=None)
        text = list(session.generate(n_tokens))
    with model.session() as session:
        logits = session.forward(ids + text)
    assert logits is not None
    return text, logits[len(ids) - 1 : -1]


def their_greedy(llama: Any, ids: list[int], n_tokens: int) -> list[int]:
    llama.reset()
    text: list[int] = []
    for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
        if len(text) == n_tokens or llama.token_eos() == token:
            break
        text.append(int(token))
    return text


def their_logits(llama: Any, ids: list[int], text: list[int]) -> Logits:
    llama.reset()
    llama.eval(ids + text)
    found: Logits = np.array(llama.scores[len(ids) - 1 : len(ids) + len(text) - 1], np.float32)
    return found


def compare(model: Model, llama: Any, prompt: str, n_tokens: int) -> Comparison:
    ids = model.tokenizer.encode(prompt)
    if llama.tokenize(prompt.encode(), add_bos=False, special=False) != ids:
        raise SystemExit(f"the tokens of {prompt!r} differ")
    text, ours = greedy(model, ids, n_tokens)
    their_text = their_greedy(llama, ids, n_tokens)
    theirs = their_logits(llama, ids, text)
    if theirs.shape != ours.shape:
        raise SystemExit(f"{prompt!r}: logits of shape {theirs.shape}, ours are {ours.shape}")

    difference = None
    at = next((i for i, (a, b) in enumerate(zip(text, their_text, strict=False)) if a != b), None)
    if at is not None:
        a, b = text[at], their_text[at]
        difference = Difference(
            at,
            model.tokenizer.decode([a]),
            model.tokenizer.decode([b]),
            float(ours[at, a] - ours[at, b]),
            float(theirs[at, b] - theirs[at, a]),
            # Of a gap, the difference of two logits.
            float(np.std(ours[at] - theirs[at]) * 2**0.5),
        )
    elif len(text) != len(their_text):
        raise SystemExit(f"{prompt!r}: {len(text)} tokens to the end, theirs {len(their_text)}")
    choice = theirs.argmax(axis=1)
    row = np.arange(len(text))
    gaps = ours[row, text] - ours[row, choice]
    return Comparison(
        prompt, len(text), difference, int((choice == text).sum()), float(gaps.max(initial=0))
    )


def report(path: Path, results: list[Comparison]) -> bool:
    """Print one model's table; return whether every difference is a near tie."""
    print(f"### {path.name}\n")
    print("| prompt | tokens | equal until | choices agreeing | worst gap of a choice |")
    print("|---|---|---|---|---|")
    for r in results:
        until = "the end" if r.difference is None else f"token {r.difference.position}"
        print(
            f"| {r.prompt.strip()!r} | {r.n_tokens} | {until} | {r.agreeing} of {r.n_tokens} | "
            f"{r.worst_gap:.3f} |"
        )
    print()
    for r in results:
        if r.difference is not None:
            d = r.difference
            print(
                f"- {r.prompt.strip()!r}, token {d.position}: ours {d.ours!r}, theirs "
                f"{d.theirs!r}. Ours leads by {d.our_gap:.3f} in our logits, theirs by "
                f"{d.their_gap:.3f} in llama.cpp's; gaps differ there by {d.spread:.3f} (standard "
                f"deviation): {'a near tie.' if d.near_tie else 'NO near tie.'}"
            )
    print()
    return all(r.difference is None or r.difference.near_tie for r in results)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="*", help="default: the two demo models")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=64, help="length of each continuation")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many of the ten")
    args = parser.parse_args(arguments)
    import llama_cpp

    print(
        f"oxibonsai {oxibonsai.__version__} on {args.device}, llama-cpp-python "
        f"{version('llama-cpp-python')}, Python {platform.python_version()}, "
        f"{platform.machine()}; greedy, {args.tokens} tokens.\n"
    )
    good = True
    for path in args.models or MODELS:
        with tempfile.TemporaryDirectory() as folder, Model.load(path, args.device) as model:
            llama = llama_cpp.Llama(
                str(readable(path, Path(folder))),
                n_ctx=512,
                n_gpu_layers=0,
                logits_all=True,
                verbose=False,
            )
            results = [compare(model, llama, p, args.tokens) for p in PROMPTS[: args.prompts]]
            llama.close()
        good &= report(path, results)
    sys.exit(not good)


if __name__ == "__main__":
    main()
