"""What a model is made of: its file, the shape, and the weights on a device."""

from __future__ import annotations

import hashlib
import os
import reprlib
from typing import NamedTuple

from oxibonsai.gguf import GGUFError, GGUFFile, Strings
from oxibonsai.metal import Device, EncodingError, MetalGraph
from oxibonsai.model.architectures import ARCHITECTURES, ModelWeights, load_weights
from oxibonsai.model.config import ModelConfig
from oxibonsai.model.protocols import Activations

__all__ = ["Loaded", "fingerprint", "load"]


class Loaded(NamedTuple):
    """The parts of a model, which it closes."""

    file: GGUFFile
    config: ModelConfig
    graph: MetalGraph
    weights: ModelWeights
    activations: Activations


def load(
    path: str | os.PathLike[str],
    device: Device | str | None,
    *,
    type42: str | None,
    activations: Activations | None,
) -> Loaded:
    """Open a file and bring its weights to a device; arguments and errors are ``Model.load``'s."""
    _check_device(device)
    file = GGUFFile(path, type42=type42)
    try:
        architecture = ARCHITECTURES.of(file)
        config = architecture.config(file)
        _check_vocabulary(file, config)
        graph = MetalGraph(device)
        if activations is None:
            activations = _default_activations(graph, config)
        graph.commands(activations=activations).close()  # Refused before anything is loaded.
        weights = load_weights(file, architecture, config, graph)
    except BaseException:
        file.close()
        raise
    return Loaded(file, config, graph, weights, activations)


def fingerprint(file: GGUFFile, config: ModelConfig) -> str:
    """Return what tells a model's file from others: of the shape and a sample of every tensor."""
    digest = hashlib.blake2b(repr(config).encode(), digest_size=16)
    for name, info in sorted(file.tensors.items()):
        digest.update(f"{name} {info.format} {info.shape} {info.nbytes}".encode())
        digest.update(bytes(file.tensor_data(name)[:4096]))
        file.release(name)
    return digest.hexdigest()


def _check_device(device: object) -> None:
    """Raise TypeError or ValueError for what cannot name a device."""
    if device is None or isinstance(device, Device):
        return
    if not isinstance(device, str):
        raise TypeError(
            f"device = {reprlib.repr(device)} is a {type(device).__name__}, not a Device or its "
            "name, such as 'cpu' or 'cuda:0'"
        )
    if not device.isprintable():  # such as half a character, or a zero, which would end the name
        raise ValueError(f"device = {reprlib.repr(device)} is no name of a device")


def _default_activations(graph: MetalGraph, config: ModelConfig) -> Activations:
    """Return what the device multiplies prompts in where nobody says: half, if it costs little.

    Through recurrent layers, errors of products grow past those of K/V in f16.
    """
    if config.recurrent is not None:
        return "float32"
    try:
        graph.commands(activations="half").close()
    except EncodingError:
        return "float32"
    return "half"


def _check_vocabulary(file: GGUFFile, config: ModelConfig) -> None:
    """Raise GGUFError where tokens have no row. Rows without a token are harmless: padding."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Strings) and len(tokens) > config.vocab_size:
        raise GGUFError(
            f"{file.path}: tokenizer.ggml.tokens has {len(tokens)} tokens, but token_embd.weight "
            f"has {config.vocab_size} rows: the tokenizer and the tensors are not of one model"
        )
