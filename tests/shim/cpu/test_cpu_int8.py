"""Products of several vectors with int8 activations, which the cpu device has, against float64."""

from __future__ import annotations

import re

import numpy as np
import pytest
import reference
from cases import (
    activations,
    block,
    contents,
    dense,
    random_weight,
    relative_error,
    run_python,
    same_non_finite,
    upload,
)
from model_files import PROMPTS, Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL

from oxibonsai import metal, quant
from oxibonsai.metal import CompilationError, EncodingError
from oxibonsai.model import Model

# The variants that keep matrices in a layout of their own; portable multiplies in float32.
VARIANTS = [name for name in metal.variants("cpu") if name != "portable"]
FORMATS = ["Q1_0", "Q2_0", "TQ2_0_g128", "PQ2_0", "PTQ1_0"]
LLAMA_CPP = 5.4e-3  # the relative error of llama.cpp's Q1_0 products with its own 8-bit activations


@pytest.fixture(params=VARIANTS)
def graph(request):
    with metal.Device("cpu", variant=request.param) as device, metal.MetalGraph(device) as graph:
        yield graph


def products(graph, handle, x, n_rows, *, start=None, swiglu=False, activations="int8"):
    """Return W x for each row of x, or that plus `start`, or its SwiGLU."""
    n = n_rows // 2 if swiglu else n_rows
    out = np.full((len(x) + 1, n), 9, np.float32) if start is None else start
    with (
        graph.device.upload(np.ascontiguousarray(x).reshape(-1)) as bx,
        graph.device.upload(out.reshape(-1)) as by,
        graph.commands(activations=activations) as commands,
    ):
        if swiglu:
            commands.gate_up_swiglu(handle, bx, by, n_vectors=len(x))
        else:
            commands.gemv(handle, bx, by, n_vectors=len(x), residual=start is not None)
        commands.replay()
        y = contents(by).reshape(-1, n)
    if start is None:
        assert (y[len(x) :] == 9).all()
    return y[: len(x)]


def close(y, w64, x, start=0.0):
    """Each activation may be off by half a step of its block, and no more."""
    expected = x.astype(np.float64) @ w64.T
    bound = np.array([reference.int8_bound(w64, vector) for vector in x])
    assert (np.abs(y - start - expected) <= bound + 1e-6 * np.abs(y)).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n_rows", [1, 16, 33, 130])
@pytest.mark.parametrize("n_vectors", [8, 11, 70])
def test_products_lie_within_half_a_step(graph, name, n_rows, n_vectors):
    k = 3 * block(name)
    q, x = random_weight(name, n_rows, k), activations(n_vectors * k).reshape(n_vectors, k)
    start = activations(n_vectors * n_rows, 5).reshape(n_vectors, n_rows)
    with upload(graph, q) as handle:
        close(products(graph, handle, x, n_rows), dense(q), x)
        close(products(graph, handle, x, n_rows, start=start.copy()), dense(q), x, start)


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ2_0_g128"])
@pytest.mark.parametrize("k", [128, 2048 - 128, 2048 + 128, 6144])
def test_long_rows_with_a_mean_and_outliers(graph, name, k):
    """Past the weights that are brought to bytes at once."""
    q, x = random_weight(name, 40, k), activations(9 * k).reshape(9, k) + 3
    x[:, :: k // 7] *= 1000
    with upload(graph, q) as handle:
        close(products(graph, handle, x, 40), dense(q), x)


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128"])
@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_below_that_of_llama_cpp(graph, name, seed):
    k, rng = 4096, np.random.default_rng(seed)
    q = quant.quantize(rng.standard_normal((256, k), np.float32), name)
    x = rng.standard_normal((8, k), np.float32)
    with upload(graph, q) as handle:
        y = products(graph, handle, x, 256)
        error = relative_error(y, x.astype(np.float64) @ dense(q).T)
        exact = products(graph, handle, x, 256, activations="float32")
    assert 1e-3 < error < LLAMA_CPP
    assert relative_error(exact, x.astype(np.float64) @ dense(q).T) < 1e-6


@pytest.mark.parametrize("n_half", [16, 75])
def test_swiglu_of_several_vectors(graph, n_half):
    """The up rows may start inside a strip."""
    k = 256
    q, x = random_weight("Q1_0", 2 * n_half, k), activations(9 * k).reshape(9, k)
    with upload(graph, q) as handle:
        s = products(graph, handle, x, 2 * n_half, swiglu=True)
    r = x.astype(np.float64) @ dense(q).T
    expected = r[:, :n_half] / (1 + np.exp(-r[:, :n_half])) * r[:, n_half:]
    assert relative_error(s, expected) < 0.02


@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_activations_that_are_not_finite_follow_the_definition(graph, name, value):
    k = 256
    q, x = random_weight(name, 20, k), activations(8 * k).reshape(8, k)
    x[1, 130] = value
    with upload(graph, q) as handle:
        y = products(graph, handle, x, 20)
    with np.errstate(invalid="ignore"):
        r = np.array([np.sum(row * x[1].astype(np.float64)) for row in dense(q)])
    same_non_finite(y[1], r)
    close(y[::2], dense(q), x[::2])


def test_zeros_tiny_and_huge_activations(graph):
    k = 128
    q = random_weight("Q1_0", 20, k)
    x = np.zeros((8, k), np.float32)
    x[1] = activations(k) * np.float32(1e-41)
    x[2] = activations(k) * np.float32(1e-34)
    x[3] = np.clip(activations(k), -3, 3) * np.float32(1e30)
    with upload(graph, q) as handle:
        y = products(graph, handle, x, 20)
    assert (y[0] == 0).all()
    assert (np.abs(y[1]) < 1e-36).all()  # Blocks below 2e-36 may count as zeros.
    close(y[2:4], dense(q), x[2:4])
    assert (y[4:] == 0).all()


@pytest.mark.threads
@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_for_any_number_of_threads(variant, name):
    n_rows, k = 530, 2304
    q, x = random_weight(name, n_rows, k), activations(37 * k).reshape(37, k)
    found = set()
    for threads in (1, 2, 3, 7):
        with (
            metal.Device("cpu", threads=threads, variant=variant) as device,
            metal.MetalGraph(device) as graph,
            upload(graph, q) as handle,
        ):
            for kind in ("int8", "float32"):
                y = products(graph, handle, x, n_rows, activations=kind)
                found.add((kind, y.tobytes()))
    assert len(found) == 2


@pytest.mark.threads
@pytest.mark.parametrize("variant", metal.variants("cpu"))
@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "TQ2_0_g128"])
def test_float32_vectors_have_the_bits_of_single_ones(variant, name):
    """However many go together."""
    n_rows, k = 75, 6144 + 128
    q, x = random_weight(name, n_rows, k), activations(39 * k).reshape(39, k)
    with (
        metal.Device("cpu", variant=variant, threads=2) as device,
        metal.MetalGraph(device) as graph,
        upload(graph, q) as handle,
    ):
        single = np.concatenate(
            [
                products(graph, handle, x[i : i + 1], n_rows, activations="float32")
                for i in range(len(x))
            ]
        )
        for n in (2, 3, 4, 7, 33, 39):
            y = products(graph, handle, x[:n], n_rows, activations="float32")
            np.testing.assert_array_equal(y, single[:n])


@pytest.mark.parametrize("n_vectors", [1, 2, 7])
def test_few_vectors_stay_float32(graph, n_vectors):
    """So few take no longer that way."""
    q = random_weight("Q1_0", 20, 256)
    x = activations(n_vectors * 256).reshape(n_vectors, 256)
    with upload(graph, q) as handle:
        y = products(graph, handle, x, 20)
        exact = products(graph, handle, x, 20, activations="float32")
    np.testing.assert_array_equal(y, exact)


@pytest.mark.parametrize("name", ["F16", "Q8_0"])
def test_other_matrices_stay_float32(graph, name):
    q, x = random_weight(name, 20, 256), activations(9 * 256).reshape(9, 256)
    with upload(graph, q) as handle:
        y = products(graph, handle, x, 20)
        exact = products(graph, handle, x, 20, activations="float32")
    np.testing.assert_array_equal(y, exact)


@pytest.mark.threads
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["Q1_0", "TQ2_0_g128"])
def test_tables_are_those_of_the_vectors_in_turn(graph, name, threads):
    """Many rows of few columns: a thread comes back to vectors whose tables it has, or not."""
    n_rows, k = 2100, 128
    q, x = random_weight(name, n_rows, k), activations(36 * k).reshape(36, k)
    variant = graph.device.info.variant
    with (
        metal.Device("cpu", variant=variant, threads=threads) as device,
        metal.MetalGraph(device) as other,
        upload(other, q) as handle,
    ):
        for swiglu in (False, True):

            def run(x, swiglu=swiglu, kind="float32"):
                return products(other, handle, x, n_rows, swiglu=swiglu, activations=kind)

            single = np.concatenate([run(x[i : i + 1]) for i in (0, 1, 2, 3, 35)])
            for n in (4, 36):
                y = run(x[:n])
                np.testing.assert_array_equal(y[:4], single[:4])
                if n == 36:
                    np.testing.assert_array_equal(y[35], single[4])
        close(products(other, handle, x, n_rows), dense(q), x)


def test_the_portable_kernels_refuse_it():
    with metal.Device("cpu", variant="portable") as device:
        with pytest.raises(EncodingError, match="the portable kernels of the cpu device do not"):
            device.commands(activations="int8")
        with pytest.raises(CompilationError, match="has no kernel 'quantize_int8'"):
            device.pipeline("quantize_int8")


@pytest.mark.parametrize("bad", ["int4", None, 8])
def test_other_activations_are_refused(bad):
    with metal.Device("cpu") as device:
        with pytest.raises(ValueError, match=re.escape(f"{bad!r}: 'float32', 'half' or 'int8'")):
            device.commands(activations=bad)
        if bad is not None:
            with pytest.raises(ValueError, match=re.escape(f"{bad!r}")):
                Model.load(Q1_MODEL, device, activations=bad)


def test_a_device_without_such_kernels_says_so(device):
    if device.driver == "cpu":
        with device.commands(activations="int8"):
            return
    with pytest.raises(EncodingError, match=r"do not take int8.*or take the cpu device"):
        device.commands(activations="int8")


@pytest.mark.parametrize(
    ("path", "golden"), [(Q1_MODEL, Q1_GOLDEN), (TERNARY_MODEL, TERNARY_GOLDEN)]
)
def test_logits_of_a_real_model_stay_near_the_golden_ones(graph, path, golden):
    """A prompt moves by what a documented rounding moves it."""
    expected = np.load(golden)
    worst = 0.0
    with Model.load(path, graph.device, activations="int8") as model:
        assert model.activations == "int8"
        for i in range(len(PROMPTS)):
            logits, ids = expected[f"p{i}.logits"], expected[f"p{i}.ids"]
            with model.session(kv_dtype="f32") as session:
                y = session.forward(ids.tolist())
            worst = max(worst, relative_error(y, logits.astype(np.float64)))
    print(f"worst {worst:.2e}")
    assert 1e-4 < worst < 2e-2


def test_the_command_line_takes_it():
    code = """
        import json, io, contextlib
        from oxibonsai.cli import main
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            main("bench --device cpu --activations int8 --json --repeat 1 --tokens 4".split())
        print(json.loads(out.getvalue())["settings"]["activations"])
    """
    assert run_python(code).stdout.strip() == "int8"
