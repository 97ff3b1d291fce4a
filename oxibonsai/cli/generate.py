"""``oxibonsai generate``: continue a text."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from oxibonsai.cli.inputs import has_input, read_file, read_input, without_last_newline
from oxibonsai.cli.options import add_model, add_nfc, add_session, fewest_tokens, load, room
from oxibonsai.cli.parsing import file_name
from oxibonsai.cli.progress import Progress
from oxibonsai.cli.sampling import add_sampling, sampling, score_line, tell_idle
from oxibonsai.cli.terminal import Tamer, is_terminal, note
from oxibonsai.model import Model, ScoredToken

__all__ = ["add_options", "run"]

DEFAULT_PROMPT = "Alice was beginning to get very tired of sitting by her sister"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    prompt = parser.add_argument_group(
        "prompt",
        "Without --prompt and --file, text that comes over a pipe or from a file on standard input "
        "is the prompt, and else the beginning of Alice in Wonderland. Of a file, and of standard "
        "input, the end of the last line is no part of the prompt.",
    )
    source = prompt.add_mutually_exclusive_group()
    source.add_argument(
        "--prompt", metavar="TEXT", help='the text to continue; "-" reads standard input'
    )
    source.add_argument(
        "-f",
        "--file",
        type=file_name,
        metavar="FILE",
        help='a file, in UTF-8, with the text to continue; "-" reads standard input',
    )
    prompt.add_argument(
        "--special",
        "--parse-special",
        action="store_true",
        help="read the names of special tokens in the prompt, such as <|im_start|>, as tokens; "
        "without it they are text",
    )
    add_nfc(prompt)
    prompt.add_argument("--no-echo", action="store_true", help="do not print the prompt")
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
    prompt = _prompt(args)
    started = time.perf_counter()
    with load(args) as model:
        loaded = time.perf_counter()
        with model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session:
            fewest = fewest_tokens(session, prompt)
            if fewest > session.max_seq:
                raise ValueError(
                    f"the prompt's tokens, at least {fewest}, do not fit: "
                    f"{room(session, args.max_seq)}"
                )
            ids = _encode(model, prompt, special=args.special)
            if len(ids) > session.max_seq:
                raise ValueError(
                    f"the prompt's {len(ids)} tokens do not fit: {room(session, args.max_seq)}"
                )
            options = sampling(args, model)
            session.check_options(args.max_tokens, n_best=args.logprobs or 0, **options)
            tell_idle(args, options)
            show = _Show(out)
            if not args.no_echo:
                show(prompt)
            scores: list[ScoredToken] = []
            full = len(ids) == session.max_seq and args.max_tokens > 0
            times = [time.perf_counter()]
            interrupted = False
            progress = Progress()
            try:
                session.forward(ids, logits=None, progress=progress)
                times.append(time.perf_counter())
                pieces: Iterator[str] = iter(())
                if not full:
                    pieces = session.stream(
                        args.max_tokens,
                        on_token=None if args.logprobs is None else scores.append,
                        n_best=args.logprobs or 0,
                        **options,
                    )
                for piece in pieces:
                    show(piece)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                progress.close()
                # Also before an error: what was generated is the user's.
                show("\n")
            times.append(time.perf_counter())
            for scored in scores:
                note(score_line(scored, model.tokenizer))
            if not interrupted and (full or session.finish_reason == "context"):
                note(f"[the context is full: {room(session, args.max_seq)}]")
            count = session.position - len(ids)
        if not args.quiet and count >= 0 and len(times) == 3:
            device = model.device
            begun, fed, done = times
            note(
                f"[{model.name} on {device.name} ({device.driver}): "
                f"loaded in {loaded - started:.2f} s, "
                f"prompt {_rate(len(ids), fed - begun)}, "
                f"generated {_rate(count, done - fed)}]"
            )
        return 130 if interrupted else 0


def _prompt(args: argparse.Namespace) -> str:
    """Return the text that the options name."""
    if args.prompt == "-" or args.file == Path("-") or (_is_left_out(args) and has_input()):
        return without_last_newline(read_input())
    if args.file is not None:
        return without_last_newline(read_file(args.file, "--file"))
    return DEFAULT_PROMPT if args.prompt is None else str(args.prompt)


def _is_left_out(args: argparse.Namespace) -> bool:
    return args.prompt is None and args.file is None


def _encode(model: Model, prompt: str, *, special: bool) -> list[int]:
    ids = model.tokenizer.prompt_ids(prompt, parse_special=special)
    if not ids:
        raise ValueError("the prompt is empty: give at least one character")
    return ids


class _Show:
    """Writes text at once, to a terminal without what steers it."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._tamer = Tamer() if is_terminal(out) else None

    def __call__(self, text: str) -> None:
        self._out.write(text if self._tamer is None else self._tamer.push(text))
        self._out.flush()


def _rate(tokens: int, seconds: float) -> str:
    speed = f" at {tokens / seconds:.1f} tokens/s" if tokens and seconds > 0 else ""
    return f"{tokens} token{'' if tokens == 1 else 's'}{speed}"
