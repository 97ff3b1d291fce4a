"""When a growing K/V cache is warned of, and how often."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tiny_hybrids
from tiny_models import Tiny, random_tensors, write

from metal_sim.scenarios_model import told
from metal_sim.session import Simulation
from oxibonsai import metal
from oxibonsai.model import Model
from oxibonsai.model.runtime.cache import KVCache
from oxibonsai.model.runtime.recurrent import RecurrentStates


@contextmanager
def tiny_file() -> Iterator[tuple[Path, Tiny, int]]:
    """Write a model, and give its path, its shape and what a device allocates with it."""
    tiny = Tiny(hidden=256, inter=512, context=4096)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "tiny.gguf", tiny, random_tensors(tiny))
        with metal.Device("metal") as device, Model.load(path, device):
            loaded = device.stats.allocated_bytes
        yield path, tiny, loaded


def a_cache_that_makes_way_for_a_longer_one_counts_no_more(sim: Simulation) -> None:
    with tiny_file() as (path, tiny, loaded), told() as warnings:
        longer = tiny.n_layers * tiny.n_kv_heads * tiny.head_dim * 4 * 512  # K and V, in half
        sim.set_working_set(loaded + longer + longer // 4)
        with (
            metal.Device("metal") as device,
            Model.load(path, device) as model,
            model.session(4096) as session,
        ):
            session.forward([1] * 260)  # from 256 positions to 512
            assert warnings.take() == []
            session.forward([1] * 260)
            (text,) = warnings.take()
            assert "a smaller max_seq" in text, text
            session.forward([1] * 520)
            assert warnings.take() == [], "one warning is enough"


def a_cache_is_warned_of_where_others_filled_the_working_set(sim: Simulation) -> None:
    with tiny_file() as (path, _, loaded), told() as warnings:
        sim.set_working_set(loaded + 600_000)
        with metal.Device("metal") as device, Model.load(path, device) as model:
            with device.buffer(700_000), model.session(4096) as session:
                (text,) = warnings.take()
                assert "a smaller max_seq" in text, text
                session.forward([1] * 260)
                assert warnings.take() == []
            with model.session(4096):
                assert warnings.take() == []
            with device.buffer(700_000), model.session(4096):
                assert len(warnings.take()) == 1, "it went past it once more"


def an_engine_counts_recurrent_states_and_those_that_are_kept(sim: Simulation) -> None:
    hybrid = tiny_hybrids.Hybrid(context=2048)
    with tempfile.TemporaryDirectory() as folder, told() as warnings:
        path = tiny_hybrids.write(
            Path(folder) / "hybrid.gguf", hybrid, tiny_hybrids.random_tensors(hybrid)
        )
        with metal.Device("metal") as device, Model.load(path, device) as model:
            loaded = device.stats.allocated_bytes
            state = RecurrentStates.nbytes_of(model.config, 1)
            keys = KVCache.nbytes_of(model.config, "f16", 64)
        sim.set_working_set(loaded + 2 * keys + 4 * state)
        with metal.Device("metal") as device, Model.load(path, device) as model:
            with model.engine(1, max_seq=64, max_checkpoints=3):
                assert warnings.take() == []
            with model.engine(1, max_seq=64, max_checkpoints=4):
                (text,) = warnings.take()
                assert "the K/V cache and the recurrent states take" in text, text
                assert "max_checkpoints" in text, text
