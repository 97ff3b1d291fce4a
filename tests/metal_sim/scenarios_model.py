"""The demo model on the simulated device, against the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from metal_sim.session import Simulation
from oxibonsai import gguf, metal

MODEL = Path(metal.__file__).resolve().parent.parent / "data" / "alice-q1_0.gguf"
BOUND = 1e-6  # relative L2


def first_layer(graph: metal.MetalGraph) -> dict[str, metal.WeightHandle]:
    """Upload the matrices of layer 0, Q with K and V and gate with up as one each."""
    parts = {
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "attn_output": ("attn_output",),
        "gate_up": ("ffn_gate", "ffn_up"),
        "down": ("ffn_down",),
    }
    handles = {}
    with gguf.open(MODEL) as file:
        for name, tensors in parts.items():
            names = [f"blk.0.{tensor}.weight" for tensor in tensors]
            shapes = [file.tensors[n].shape for n in names]
            handles[name] = graph.upload_q1_weight_soa(
                np.concatenate([file.tensor_data(n) for n in names]),
                shape=(sum(rows for rows, _ in shapes), shapes[0][1]),
            )
        norm = np.frombuffer(file.tensor_data("blk.0.ffn_norm.weight"), np.float32)
        handles["ffn_norm"] = graph.get_or_upload_f32_weight(0, norm)
    return handles


def layer_results(device_name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    results = {}
    with metal.Device(device_name) as device, metal.MetalGraph(device) as graph:
        weights = first_layer(graph)
        for name in ("qkv", "attn_output", "gate_up", "down"):
            shape = weights[name].shape
            assert shape is not None
            n_rows, k = shape
            x = rng.standard_normal(k).astype(np.float32) + np.float32(0.5)
            results[name] = np.empty(n_rows, np.float32)
            graph.encode_gemv(weights[name], x, results[name])
        hidden = rng.standard_normal(512).astype(np.float32)
        attention = rng.standard_normal(512).astype(np.float32)
        graph.encode_ffn_phase(
            hidden,
            attention,
            weights["ffn_norm"],
            weights["attn_output"],
            weights["gate_up"],
            weights["down"],
        )
        results["FFN phase"] = hidden
    return results


def the_first_layer_of_the_demo_model_equals_the_cpus(sim: Simulation) -> None:
    expected, got = layer_results("cpu"), layer_results("metal")
    for name, value in expected.items():
        error = np.linalg.norm(got[name] - value) / np.linalg.norm(value)
        assert error <= BOUND, f"{name}: {error:.2e}"
