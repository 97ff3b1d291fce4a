"""Run 1-bit and ternary kernels on Apple's Metal, or on the CPU.

Open a device, upload weights, run phases::

    dev = metal.Device()                    # metal, else cuda, else cpu
    graph = metal.MetalGraph(dev)
    weight = graph.upload_q1_weight_soa(quant.quantize(w, "Q1_0"))
    graph.encode_gemv(weight, x, y)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

if importlib.util.find_spec("oxibonsai.metal._core") is None:
    raise ImportError(
        f"oxibonsai.metal is not compiled in {Path(__file__).resolve().parents[1]}. If oxibonsai "
        "is installed, this folder is found first: start Python in another one. To use this "
        "folder, compile in it: make build, or pip install -e .",
        name="oxibonsai.metal._core",
    )

from oxibonsai.metal._buffer import Buffer
from oxibonsai.metal._commands import Commands
from oxibonsai.metal._core import (
    ChosenVariant,
    Device,
    DeviceInfo,
    DeviceStats,
    FoundDevices,
    RefusedDevice,
    devices,
    load_driver,
    probe_devices,
    variants,
)
from oxibonsai.metal._errors import (
    BufferCreationError,
    CompilationError,
    DeviceNotFoundError,
    EncodingError,
    ExecutionError,
    MetalGraphError,
)
from oxibonsai.metal._graph import MetalGraph
from oxibonsai.metal._pipeline import Argument, Library, Pipeline, PipelineInfo
from oxibonsai.metal._rotation import Rotation
from oxibonsai.metal._tuning import Measured, Tuning, kept_variants, tune
from oxibonsai.metal._weights import WeightCache, WeightHandle, reformat

__all__ = [
    "Argument",
    "Buffer",
    "BufferCreationError",
    "ChosenVariant",
    "Commands",
    "CompilationError",
    "Device",
    "DeviceInfo",
    "DeviceNotFoundError",
    "DeviceStats",
    "EncodingError",
    "ExecutionError",
    "FoundDevices",
    "Library",
    "Measured",
    "MetalGraph",
    "MetalGraphError",
    "Pipeline",
    "PipelineInfo",
    "RefusedDevice",
    "Rotation",
    "Tuning",
    "WeightCache",
    "WeightHandle",
    "devices",
    "kept_variants",
    "load_driver",
    "probe_devices",
    "reformat",
    "tune",
    "variants",
]
