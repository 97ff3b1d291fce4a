"""What the matrix products of a recording are computed from."""

from __future__ import annotations

from oxibonsai.model.protocols import Activations, LoadedModel
from oxibonsai.model.runtime.cache import KVDtype

__all__ = ["activations_of"]


def activations_of(
    model: LoadedModel, kv_dtype: KVDtype, *, exact: bool, generates: bool = False
) -> Activations:
    """Return what a recording takes its activations as.

    Halves are for prompts: tokens that are generated, and texts whose keys and values are float32,
    keep the whole of them.

    Parameters
    ----------
    model : LoadedModel
        Whose prompts are multiplied in the type that it was loaded with.
    kv_dtype : {"f16", "f32", "q8"}
        Of the text's keys and values.
    exact : bool
        Whether the recording is float32 whatever the model's type.
    generates : bool
        Whether there are rows in it that are no prompt's.

    Returns
    -------
    {"float32", "half", "int8"}
        For ``MetalGraph.commands``.
    """
    if exact or (model.activations == "half" and (generates or kv_dtype == "f32")):
        return "float32"
    return model.activations
