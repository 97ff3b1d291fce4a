"""The options of generation: what the user gives, what the file recommends, scores of tokens."""

from __future__ import annotations

import argparse
from typing import Any

from oxibonsai.cli.terminal import note
from oxibonsai.model import Model, ScoredToken, Tokenizer
from oxibonsai.model.generation.filedefaults import NAMES, recommended

__all__ = ["add_sampling", "sampling", "score_line", "tell_idle"]


def add_sampling(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    """Add the options of SamplingSettings, of the end, of log probabilities and of speculation.

    `temperature` is what sampling() takes where neither the user nor the file has one.
    """
    parser.set_defaults(fallback_temperature=temperature)
    group = parser.add_argument_group(
        "generation",
        "Where an option is left out, what the file recommends (general.sampling.*) is taken, then "
        "what stands in parentheses.",
    )
    for flag, kind, metavar, text in (
        ("--temperature", float, "T", f"divides the logits; 0 is greedy ({temperature:g})"),
        ("--top-k", int, "K", "keep the K most probable tokens; 0 keeps all (0)"),
        ("--top-p", float, "P", "keep the fewest that reach this probability, in (0, 1] (1)"),
        ("--min-p", float, "P", "keep those this probable beside the best, in [0, 1] (0)"),
        ("--repetition-penalty", float, "R", "divides logits of tokens that came; 1 is off (1)"),
        ("--presence-penalty", float, "X", "subtracted from logits of tokens that came (0)"),
        ("--frequency-penalty", float, "X", "subtracted once for each time that one came (0)"),
        ("--penalty-window", int, "N", "last tokens that penalties count; -1: all (64)"),
        ("--seed", int, "S", "of the noise; a seed gives one text (drawn)"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="added to the logit of a token; -inf forbids it; repeatable",
    )
    group.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="print the log probability of each token, and of the N most probable, to standard "
        "error; 0 to 32",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; repeatable; $'\\n' is the end of a line in most shells",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="go on past tokens that end a text"
    )
    group.add_argument(
        "--draft-tokens",
        type=int,
        default=0,
        metavar="N",
        help="guess up to N tokens from the text so far, where that is faster (0)",
    )


def _bias(text: str) -> tuple[int, float]:
    token, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(token), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a token's id and a number, such as 42=-1.5 or 42=-inf"
        ) from None


def sampling(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Return the arguments of Session.stream for the options, and say what the file gave."""
    names = (*NAMES, "presence_penalty", "frequency_penalty", "seed")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if not all(args.stop):
        raise ValueError("a --stop is empty: it would end every text at once")
    taken = recommended(model, given, lambda message: note(f"[{message}]"))
    if taken:
        listed = ", ".join(f"{n.replace('_', ' ')} {_number(v)}" for n, v in taken.items())
        note(f"[sampling as {model.path} recommends: {listed}]")
    settings = {"temperature": args.fallback_temperature, **taken, **given}
    return {
        **settings,
        "logit_bias": dict(args.logit_bias),
        "draft_tokens": args.draft_tokens,
        "stop": args.stop,
        "ignore_eos": args.ignore_eos,
    }


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def tell_idle(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Say which of the options that were given a greedy choice does not ask for.

    Parameters
    ----------
    args : Namespace
        The options.
    options : dict
        What sampling() made of them.
    """
    if options["temperature"] != 0:
        return
    # Who asks for a greedy choice by name expects one text, as a seed promises it.
    names = ("top_k", "top_p", "min_p") + (() if args.temperature is not None else ("seed",))
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    given = [name for name in names if getattr(args, name) not in (None, off.get(name))]
    idle = [f"--{name.replace('_', '-')}" for name in given]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        note(
            f"[the temperature is 0, which is greedy: {', '.join(idle)} {verb} no effect; "
            "--temperature T samples]"
        )


def score_line(scored: ScoredToken, tokenizer: Tokenizer) -> str:
    """Return a line that tells how probable a token was, and the most probable ones."""
    pairs = [(scored.token, scored.log_probability), *scored.best]
    first, *others = (
        f"{p:9.4f} {tokenizer.token_bytes(token).decode(errors='replace')!r}" for token, p in pairs
    )
    return f"{first}  |{' '.join(others)}" if others else first
