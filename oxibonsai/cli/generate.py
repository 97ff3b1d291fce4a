"""``oxibonsai generate``: continue a text."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from oxibonsai.cli.options import add_model, add_session, load
from oxibonsai.cli.sampling import add_sampling, sampling, score_line
from oxibonsai.model import ScoredToken

__all__ = ["add_options", "run"]

DEFAULT_PROMPT = "Alice was beginning to get very tired of sitting by her sister"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument(
        "--prompt", default=DEFAULT_PROMPT, metavar="TEXT", help="the text to continue"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="the most to generate (64)"
    )
    add_sampling(parser, temperature=0.0)
    parser.add_argument("--quiet", action="store_true", help="print no speeds at the end")
    add_session(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    if args.max_tokens < 0:
        raise ValueError(f"--max-tokens {args.max_tokens} must be 0 or more")
    started = time.perf_counter()
    with load(args) as model:
        device = model.device
        loaded = time.perf_counter()
        tokenizer = model.tokenizer
        ids = tokenizer.encode(args.prompt)
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
        if not ids:
            raise ValueError("the prompt is empty: give at least one character")
        with model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session:
            options = sampling(args, model)
            session.check_options(args.max_tokens, n_best=args.logprobs or 0, **options)
            prompt_started = time.perf_counter()
            session.forward(ids, logits=None)
            fed = time.perf_counter()
            scores: list[ScoredToken] = []
            tokens = (
                session.generate(args.max_tokens, **options)
                if args.logprobs is None
                else _noted(
                    session.generate_scored(args.max_tokens, n_best=args.logprobs, **options),
                    scores,
                )
            )
            out.write(args.prompt)
            out.flush()
            text = tokenizer.stream()
            count = 0
            interrupted = False
            try:
                for token in tokens:
                    count += 1
                    out.write(text.push(token))
                    out.flush()
            except KeyboardInterrupt:
                interrupted = True
            finally:
                # Also before an error: what was generated is the user's.
                out.write(text.flush() + "\n")
                out.flush()
            done = time.perf_counter()
            for scored in scores:
                print(score_line(scored, tokenizer), file=sys.stderr)
        if not args.quiet:
            print(
                f"[{model.name} on {device.name} ({device.driver}): "
                f"loaded in {loaded - started:.2f} s, "
                f"prompt {_rate(len(ids), fed - prompt_started)}, "
                f"generated {_rate(count, done - fed)}]",
                file=sys.stderr,
            )
        return 130 if interrupted else 0


def _noted(tokens: Iterator[ScoredToken], scores: list[ScoredToken]) -> Iterator[int]:
    for scored in tokens:
        scores.append(scored)
        yield scored.token


def _rate(tokens: int, seconds: float) -> str:
    speed = f" at {tokens / seconds:.1f} tokens/s" if tokens and seconds > 0 else ""
    return f"{tokens} token{'' if tokens == 1 else 's'}{speed}"
