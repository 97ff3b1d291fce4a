"""The forms in which a text is generated: tokens, scored tokens, text, asynchronously."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from oxibonsai.model.arguments import check_names, function
from oxibonsai.model.choices import ScoredToken
from oxibonsai.model.generation.asynchronous import in_thread
from oxibonsai.model.generation.generation import Generation, GenerationOptions, LogitsCallback
from oxibonsai.model.generation.settings import Allowed, AllowedCallback
from oxibonsai.model.generation.speculation import Speculation
from oxibonsai.model.generation.stopping import FinishReason, Stop
from oxibonsai.model.protocols import LoadedModel
from oxibonsai.model.timeline import Timeline

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GenerationForms"]

_OPTIONS: Final = tuple(sorted(GenerationOptions.__optional_keys__))


class GenerationForms:
    """What generates on a text; `Session` is one.

    Parameters
    ----------
    timeline : Timeline
        The text.
    model : LoadedModel
        Whose tokens it has.
    """

    def __init__(self, timeline: Timeline, model: LoadedModel) -> None:
        self._timeline = timeline
        self._loaded = model
        self._speculations: dict[int, Speculation] = {}
        self._finish_reason: FinishReason | None = None
        self._stepping = threading.Lock()  # held while a step of agenerate() runs

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last generation ended.

        "stop": an end of text or a stop sequence came. "length": max_tokens did. "context": the
        text fills max_seq. None before the first generation, while one runs, and after one that was
        left early or ended with an exception.
        """
        return self._finish_reason

    def _finish(self, reason: FinishReason | None) -> None:
        self._finish_reason = reason

    def generate(
        self,
        max_tokens: int = 64,
        temperature: float | None = 0.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_window: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        choice: int | None = None,
        allowed: Allowed | AllowedCallback | None = None,
        ignore_eos: bool = False,
        stop: Stop = None,
        logits_callback: LogitsCallback | None = None,
        lookahead: int | None = None,
        draft_tokens: int = 0,
    ) -> Iterator[int]:
        """Yield tokens that continue what was fed; each is in the context when it is yielded.

        You may stop iterating at any time: the context then ends with the last yielded token.
        The iterator ends at an end of text or a stop sequence, after max_tokens, or where the text
        fills the context (max_seq): `finish_reason` says which.

        Each option of sampling changes nothing where it is left out. They apply in the order mask,
        bias, penalties, temperature, top-k, top-p (over what top-k kept), min-p.

        Parameters
        ----------
        max_tokens : int
            The maximum to yield.
        temperature : float
            Divides the logits; 0 takes the largest one (the lowest id of equal ones).
        top_k : int, optional
            Keeps the k largest logits; 0 keeps all.
        top_p : float, optional
            Keeps the fewest most probable tokens whose probabilities reach top_p, in (0, 1].
        min_p : float, optional
            Keeps tokens at least min_p times as probable as the most probable one, in [0, 1].
        repetition_penalty : float, optional
            Divides positive and multiplies negative logits of tokens in the window; 1 is off.
        presence_penalty : float, optional
            Subtracted from the logits of tokens in the window.
        frequency_penalty : float, optional
            Subtracted once for each time that a token is in the window.
        penalty_window : int, optional
            How many of the last tokens the penalties count, the prompt's included; -1: all. 64
            where left out.
        logit_bias : mapping of int to float, optional
            Added to the logits of tokens; -inf forbids one.
        seed : int, optional
            Of the noise, 0 to 2^64 - 1; left out, one is drawn. Equal logits, settings and seeds
            give equal texts on every device, however many steps are in flight.
        choice : int, optional
            Which of several texts of one seed; 0 where left out.
        allowed : iterable of int, bool [vocab] or callable, optional
            The tokens that may be chosen, or a mask of them. A callable is given the tokens so far,
            the prompt's included, before each choice, and returns one or the other, or None for
            all; one step is in flight at a time then.
        ignore_eos : bool
            Continue past tokens that end a text (EOS, EOT). By default generation stops before one.
        stop : str or iterable of str and lists of int, optional
            Texts and token sequences that end the generation. Tokens that may begin one are held
            back; those of a complete one are neither yielded nor in the context. A token in whose
            middle a stop text begins belongs to it; `stream` yields the characters before it. A
            text that is the name of a control token, such as "<|im_start|>", stops at it; one that
            holds such a name beside other text, where the tokens spell that out.
        logits_callback : callable, optional
            Called with the float32 [vocab] logits before each token is chosen. It may change them
            in place; the choice, and its log probability, is made from the result. One step is in
            flight at a time then.
        lookahead : int, optional
            Steps in flight, 1 to 16, so that the device never waits for the host. Default: 16, or 1
            on the cpu device, which runs on the host's threads and gains nothing. Models with
            recurrent layers have 2 at most, each of which takes the memory of a state.
        draft_tokens : int
            The most tokens, up to 31, that are guessed from an earlier place where the text went on
            like this, to verify them in one step. It measures what that costs and does it only
            where it pays. 0: never. The tokens are those of the plain steps, but for ties within
            rounding on a device whose products of several tokens round differently. Not with
            callables, which have a say before each choice; with recurrent layers it does nothing.

        Returns
        -------
        iterator of int
            The tokens.

        Raises
        ------
        SessionFullError
            Where the context is full already, so that no token can come.
        TypeError
            For an argument of another type; at the call, before anything has run.
        ValueError
            If nothing was fed, an argument is out of its range, or every logit is NaN, -inf or not
            allowed; but for the last, at the call.
        """
        return self._generation(
            max_tokens,
            temperature,
            {
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": presence_penalty,
                "frequency_penalty": frequency_penalty,
                "penalty_window": penalty_window,
                "logit_bias": logit_bias,
                "seed": seed,
                "choice": choice,
                "allowed": allowed,
                "ignore_eos": ignore_eos,
                "stop": stop,
                "logits_callback": logits_callback,
                "lookahead": lookahead,
                "draft_tokens": draft_tokens,
            },
        ).tokens()

    def generate_scored(
        self,
        max_tokens: int = 64,
        temperature: float | None = 0.0,
        *,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[ScoredToken]:
        """Yield the tokens of generate() with their log probabilities.

        Parameters
        ----------
        max_tokens : int
            As of generate().
        temperature : float
            As of generate(). It does not change log probabilities, nor does any other option.
        n_best : int
            How many of the most probable tokens come with each, 0 to 32.
        **options
            The other parameters of generate().

        Returns
        -------
        iterator of ScoredToken
            The tokens, each with `log_probability` and, the most probable first, `best`.

        Raises
        ------
        SessionFullError, TypeError, ValueError
            As of generate().
        """
        return self._generation(
            max_tokens, temperature, options, scores=True, n_best=n_best, more=("n_best",)
        ).scored()

    def stream(
        self,
        max_tokens: int = 64,
        temperature: float | None = 0.0,
        *,
        on_token: Callable[[ScoredToken], object] | None = None,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """Yield the text of generate() in pieces of whole characters.

        No piece contains a stop text or the beginning of one.

        Parameters
        ----------
        max_tokens : int
            As of generate().
        temperature : float
            As of generate().
        on_token : callable, optional
            Called with each token of the text, as generate_scored() yields it, before its piece.
        n_best : int
            As of generate_scored(), for `on_token`, without which it must be 0.
        **options
            The other parameters of generate().

        Returns
        -------
        iterator of str
            The pieces, which joined are the text.

        Raises
        ------
        SessionFullError, TypeError, ValueError
            As of generate().
        """
        function("on_token", on_token)
        generation = self._generation(
            max_tokens,
            temperature,
            options,
            text=True,
            scores=on_token is not None,
            n_best=n_best,
            more=("on_token", "n_best"),
        )
        if n_best and on_token is None:
            raise ValueError(
                f"n_best = {n_best}: nobody would see them; give on_token, which is called with "
                "each token and the most probable ones, or leave n_best out"
            )
        return generation.text(on_token)

    def agenerate(
        self,
        max_tokens: int = 64,
        temperature: float | None = 0.0,
        **options: Unpack[GenerationOptions],
    ) -> AsyncIterator[int]:
        """Yield the tokens of generate() to ``async for``.

        A separate thread waits for the device. A cancelled task ends when the running step has
        finished; the session stays usable. One task at a time uses a session: RuntimeError, where a
        step of another one runs.

        Parameters
        ----------
        max_tokens : int
            As of generate().
        temperature : float
            As of generate().
        **options
            The other parameters of generate().

        Returns
        -------
        asynchronous iterator of int
            The tokens.

        Raises
        ------
        SessionFullError, TypeError, ValueError
            As of generate().
        """
        tokens = self._generation(max_tokens, temperature, options).tokens()
        return in_thread(tokens, self._stepping)

    def check_options(
        self,
        max_tokens: int,
        temperature: float | None = 0.0,
        *,
        n_best: int = 0,
        **options: Unpack[GenerationOptions],
    ) -> None:
        """Raise what stream() would raise for its arguments, before a prompt is fed.

        Parameters
        ----------
        max_tokens : int
            As of stream().
        temperature : float or None
            As of stream().
        n_best : int
            As of stream().
        **options
            As of stream().

        Raises
        ------
        TypeError
            For an argument of another type.
        ValueError
            For an argument out of its range.
        """
        self._generation(
            max_tokens,
            temperature,
            options,
            fed=False,
            text=True,
            n_best=n_best,
            more=("n_best",),
        )

    def _generation(
        self,
        max_tokens: int,
        temperature: float | None,
        options: GenerationOptions,
        *,
        fed: bool = True,
        text: bool = False,
        scores: bool = False,
        n_best: int = 0,
        more: tuple[str, ...] = (),
    ) -> Generation:
        """Make a generation of a user's options; `more` are those that the form takes itself."""
        check_names(options, ("max_tokens", "temperature", *more, *_OPTIONS), "generation")
        return Generation(
            self._timeline,
            self._loaded,
            max_tokens,
            temperature,
            fed=fed,
            text=text,
            scores=scores,
            n_best=n_best,
            speculations=self._speculations,
            finished=self._finish,
            **options,
        )
