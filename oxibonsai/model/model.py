"""A model: its shape, weights on a device, and tokenizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from oxibonsai.gguf import GGUFFile
from oxibonsai.metal import Device, MetalGraph
from oxibonsai.model.architectures import ModelWeights
from oxibonsai.model.arguments import flag, function, integer_in, one_of, token_ids
from oxibonsai.model.chunks import check_chunk
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.engine import Engine
from oxibonsai.model.generation.filedefaults import FileSampling
from oxibonsai.model.generation.scoring import Perplexity
from oxibonsai.model.generation.settings import SamplingOptions
from oxibonsai.model.loading import fingerprint, load
from oxibonsai.model.names import shown_name
from oxibonsai.model.protocols import ACTIVATIONS, Activations
from oxibonsai.model.runtime.cache import KVCache, KVDtype, check_kv_dtype
from oxibonsai.model.runtime.textstates import CHECKPOINT_EVERY, MAX_CHECKPOINTS
from oxibonsai.model.session import Session
from oxibonsai.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Model"]

_DEFAULT_MAX_SEQ = 2048
"""Of engines, which allocate it, and the tokens of a window of perplexity()."""


class Model:
    """A model on a device, made by ``Model.load``.

    Parameters
    ----------
    file : GGUFFile
        The open file, which the model closes.
    config : ModelConfig
        The shape.
    graph : MetalGraph
        The device's graph that holds the weights.
    weights : ModelWeights
        The weights on the device.
    activations : {"float32", "half", "int8"}
        The type that prompts are multiplied in.
    nfc : bool
        As of load().

    Attributes
    ----------
    path : str
        The file.
    config, graph, weights, activations, nfc
        As given.
    name : str
        The model's name in the file, else the file's. A name such as "Hf", that of the folder which
        a converter read, is none.
    """

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        graph: MetalGraph,
        weights: ModelWeights,
        activations: Activations = "float32",
        *,
        nfc: bool = False,
    ) -> None:
        self.path = file.path
        self.config = config
        self.graph = graph
        self.weights = weights
        self.activations = activations
        self.nfc = nfc
        self.name = shown_name(file.metadata, self.path)
        self._file = file
        self._closed = False

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: Device | str | None = None,
        *,
        type42: str | None = None,
        activations: Activations | None = None,
        nfc: bool = False,
    ) -> Model:
        """Load a GGUF file of an architecture in ``oxibonsai.model.architectures``.

        Weights past what a metal device recommends as working set log a warning with the numbers.

        Parameters
        ----------
        path : str or path-like
            The file; its matrices in any format of ``oxibonsai.formats``.
        device : Device or str, optional
            Where it runs; the default device where left out.
        type42 : {"Q2_0", "Q2_0_g128", "TQ2_0_g128"}, optional
            What tensor type 42 means, for files in which the data does not say.
        activations : {"float32", "half", "int8"}, optional
            What the matrices are multiplied with where many tokens run as one batch: a prompt, and
            what log_probabilities() and perplexity() are given. half rounds the activations of 64
            tokens or more to halves, for matrices of 1 and 2 bits, and what attention over K/V in
            f16 multiplies, with any matrices. It is for GPUs alone, where models without recurrent
            layers have it by default: an error of 2e-4 of each product, less than that of K/V in
            f16. It is left out where
            deterministic, where K/V are f32, where verify() scores tokens and where an engine's
            step generates too. int8 rounds the activations of 8 tokens or more to 8 bits in blocks
            of 16, on the cpu device alone; it is faster with most processors and formats. All that
            is generated stays float32.
        nfc : bool
            Whether the tokenizer composes text to Unicode's NFC before it splits it, as Hugging
            Face's tokenizers of qwen3 do. Files do not say so, and llama.cpp does not do it.

        Returns
        -------
        Model
            The loaded model; close() it, or use it in a with statement.

        Raises
        ------
        GGUFError
            For a file that is damaged, of another architecture, with tensors that are missing,
            unknown, of another shape or of an unsupported type, or with more tokens than rows of
            the embedding.
        DeviceNotFoundError, BufferCreationError
            If there is no such device, or not enough memory on it.
        ValueError, EncodingError
            For other activations, and for those that the device has no kernels for.
        TypeError
            For an argument of another type.
        """
        nfc = flag("nfc", nfc)
        one_of("activations", activations, ACTIVATIONS, none=True)
        loaded = load(path, device, type42=type42, activations=activations)
        return cls(*loaded, nfc=nfc)

    @property
    def device(self) -> Device:
        """Where the model runs."""
        return self.graph.device

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; needs the extra ``oxibonsai[model]`` to encode.

        ValueError, where the model is closed.
        """
        self._check_open()
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self._file, nfc=self.nfc, n_rows=self.config.vocab_size)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text; none where the file has no tokenizer."""
        if "tokenizer.ggml.model" not in self._file.metadata:
            return frozenset()
        return self.tokenizer.eos_ids

    @cached_property
    def sampling_defaults(self) -> SamplingOptions:
        """Arguments of ``Session.generate`` that the file recommends (``general.sampling.*``).

        Chat takes them where the user gives none, and generate() does not. A value that means
        nothing is not among them; a warning is logged.
        """
        return self.file_sampling.options()

    @cached_property
    def file_sampling(self) -> FileSampling:
        """What `sampling_defaults` is read from; for Chat and the commands."""
        return FileSampling(self._file.metadata, self.path)

    def session(
        self,
        max_seq: int | None = None,
        kv_dtype: KVDtype = "f16",
        *,
        chunk: int | None = None,
        profile: bool = False,
        deterministic: bool = False,
        checkpoint_every: int = CHECKPOINT_EVERY,
        max_checkpoints: int = MAX_CHECKPOINTS,
    ) -> Session:
        """Return a new text on this model.

        Parameters
        ----------
        max_seq : int, optional
            Positions that the KV cache may grow to, at most the model's context_length. Left out,
            the context_length, or as many as the device can hold where that is less.
            Memory is taken as the text grows.
        kv_dtype : {"f16", "f32", "q8"}
            Elements of the KV cache. Rounding K and V changes the logits of the demo model by about
            4e-4 of their norm in half and 4e-3 in q8, where each key or value of a head has a unit
            of its own and takes 9/16 of the bytes of half; q8 needs a head_dim that is a multiple
            of 32.
        chunk : int, optional
            Tokens of a prompt that run in one submission, 1 to 4096. Another size rounds in other
            places; 1 gives the bits of generation. Left out, each chunk has 512 tokens on a GPU
            with memory of its own (cuda, which measures no rate) and 128 elsewhere, or on Metal 64
            or 32 where that would take more than a second at the rate that the device has measured
            so far; always 128 where deterministic.
        profile : bool
            Whether `Session.profile` keeps, and the logger ``oxibonsai.model`` tells at level INFO,
            where the time of each step goes.
        deterministic : bool
            Whether each token of a prompt is computed as it is alone, from float32, so that its
            bits do not depend on the chunk: slower on a GPU. An engine that is deterministic
            gives the texts of such sessions.
        checkpoint_every : int
            Tokens between two checkpoints of the recurrent state, of a model with recurrent layers;
            others need none. A rewind runs no more than about so many tokens again, as long as
            there is a checkpoint near its end.
        max_checkpoints : int
            Checkpoints that are kept, 0 to 4096, with the memory of one state each; it is taken as
            they come. Where there are more, those are kept that lie densely near the end of the
            text and thinly far from it. With 0, a rewind runs the text again from the beginning.

        Returns
        -------
        Session
            An empty text.

        Raises
        ------
        ValueError
            For a value out of its range.
        BufferCreationError
            Where a cache of max_seq positions could not be made on the device.
        """
        self._check_open()
        if max_seq is None:
            max_seq = self._most_positions(kv_dtype)
        return Session(
            self,
            max_seq,
            kv_dtype,
            chunk,
            profile,
            deterministic=deterministic,
            checkpoint_every=checkpoint_every,
            max_checkpoints=max_checkpoints,
        )

    def engine(
        self,
        max_sequences: int = 8,
        *,
        max_seq: int | None = None,
        n_pages: int | None = None,
        kv_dtype: KVDtype = "f16",
        chunk: int | None = None,
        deterministic: bool = False,
        max_waiting: int = 1024,
        checkpoint_every: int | None = None,
        max_checkpoints: int | None = None,
    ) -> Engine:
        """Return what runs many texts at a time on this model.

        Parameters
        ----------
        max_sequences : int
            Texts that run at a time, 1 to 256; more wait.
        max_seq : int, optional
            The most tokens of a text, prompt included. Left out, 2048 or the context_length,
            whichever is less: its pages are allocated at once.
        n_pages : int, optional
            Pages of 64 positions in the K/V cache, which all texts share. Left out, as many as
            max_sequences texts of max_seq tokens take, or as the device's buffers hold. All of
            them are allocated at once.
        kv_dtype : {"f16", "f32", "q8"}
            As of session().
        chunk : int, optional
            Tokens of a prompt that run in one step, beside a token of each running text; 1 to 4096.
            Left out, as of session().
        deterministic : bool
            Whether a text does not depend on what else runs: with the same K/V elements it is then
            that of a session with the same chunk.
        max_waiting : int
            Requests that may wait; see ``Engine.submit``.
        checkpoint_every : int, optional
            Of a model with recurrent layers: texts that begin alike share their beginning up to a
            multiple of so many tokens. A multiple of 64; with `deterministic`, of the chunk. Left
            out, 256, or a chunk where that is more, but no more than a quarter of max_seq.
        max_checkpoints : int, optional
            Of a model with recurrent layers: the most states that are kept for that; the least
            recently used goes, and 0 shares nothing. Left out, 8, or max_sequences where that is
            more. All are allocated at once, with the memory of one state each.

        Returns
        -------
        Engine
            The engine; close() it, or use it in a with statement.

        Raises
        ------
        ValueError
            For a value out of its range.
        BufferCreationError
            Where the pages do not fit on the device.
        """
        self._check_open()
        if max_seq is None:
            max_seq = min(_DEFAULT_MAX_SEQ, self.config.context_length)
        return Engine(
            self,
            max_sequences,
            max_seq,
            n_pages,
            kv_dtype,
            chunk,
            deterministic=deterministic,
            max_waiting=max_waiting,
            checkpoint_every=checkpoint_every,
            max_checkpoints=max_checkpoints,
        )

    def restore_session(
        self,
        path: str | os.PathLike[str],
        *,
        max_seq: int | None = None,
        chunk: int | None = None,
        profile: bool = False,
        checkpoint_every: int = CHECKPOINT_EVERY,
        max_checkpoints: int = MAX_CHECKPOINTS,
    ) -> Session:
        """Return a session from a file that ``Session.save`` wrote; it goes on where that one was.

        Parameters
        ----------
        path : str or path-like
            The file.
        max_seq, chunk : int, optional
            As of session(); those of the saved session where left out. A chunk that it was not
            given is chosen.
        profile : bool
            As of session().
        checkpoint_every, max_checkpoints : int
            As of session(); the file has no checkpoints.

        Returns
        -------
        Session
            The restored session.

        Raises
        ------
        SessionFileError
            For a file that is damaged, of another format, or of another model.
        ValueError
            For a max_seq that the text does not fit.
        """
        self._check_open()
        return Session.restore(
            self,
            path,
            max_seq=max_seq,
            chunk=chunk,
            profile=profile,
            checkpoint_every=checkpoint_every,
            max_checkpoints=max_checkpoints,
        )

    def perplexity(
        self,
        text: str | Sequence[int],
        *,
        window: int | None = None,
        kv_dtype: KVDtype = "f16",
        chunk: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Perplexity:
        """Return how well the model predicts a text, in float64.

        Parameters
        ----------
        text : str or sequence of int
            A text, or its tokens; at least two. Where the file asks for a token before a text
            (add_bos_token), each window of a text begins with it, in the place of the window's own
            first token from the second one on, as in llama.cpp. Tokens are taken as they are.
        window : int, optional
            A longer text is cut into windows of that many tokens, each read on its own; its first
            token is not predicted. Left out, 2048 or the context_length, whichever is less.
        kv_dtype : {"f16", "f32", "q8"}
            As of session().
        chunk : int, optional
            As of session().
        progress : callable, optional
            Called after each window with the number of tokens read so far and the number of all.

        Returns
        -------
        Perplexity
            Its mean and what it is made of.

        Raises
        ------
        ValueError
            For fewer than two tokens, a token outside the vocabulary, or a window out of range.
        """
        self._check_open()
        check_kv_dtype(kv_dtype, self.config)
        chunk = None if chunk is None else check_chunk(chunk)
        function("progress", progress)
        if window is None:
            window = min(_DEFAULT_MAX_SEQ, self._most_positions(kv_dtype))
        else:
            longest = self.config.context_length
            window = integer_in("window", window, 1, longest, "the model's context_length")
            if window == 1:
                raise ValueError("window = 1: a window of one token predicts nothing")
        bos: int | None = None
        if isinstance(text, str):
            ids = self.tokenizer.prompt_ids(text)
            bos = self.tokenizer.bos_id if self.tokenizer.add_bos else None
        else:
            ids = token_ids("text", text, self.config.vocab_size)
        if len(ids) < 2:
            raise ValueError(f"a text of {len(ids)} tokens has no perplexity: 2 are needed")
        total, n = 0.0, 0
        # No window is rewound but to its beginning.
        with self.session(window, kv_dtype, chunk=chunk, max_checkpoints=0) as session:
            for start in range(0, len(ids), session.max_seq):
                part = ids[start : start + session.max_seq]
                if bos is not None:
                    part[0] = bos
                session.rewind(0)
                scores = session.log_probabilities(part)[1:]
                if progress is not None:
                    progress(start + len(part), len(ids))
                total += float(scores.sum())
                n += len(scores)
        return Perplexity(total, n)

    @property
    def fingerprint(self) -> str:
        """What tells this model's file from others: of the shape and a sample of every tensor.

        ValueError, where the model is closed.
        """
        self._check_open()
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._file, self.config)

    @property
    def closed(self) -> bool:
        """Whether close() was called, here or on the device."""
        return self._closed or self.graph.closed

    def close(self) -> None:
        """Release the weights and the file; idempotent. Its sessions are closed with it."""
        self._closed = True
        self.weights.close()
        self._file.close()

    def _most_positions(self, kv_dtype: KVDtype) -> int:
        """Return the context_length, or what the device can hold of it."""
        check_kv_dtype(kv_dtype, self.config)
        return KVCache.most_positions(self.config, kv_dtype, self.device.info)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the model is closed: load it again")

    def __enter__(self) -> Model:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"on {self.device.driver}"
        c = self.config
        return f"<Model {self.name!r} {state}: {c.n_layers} layers, hidden {c.hidden_size}>"
