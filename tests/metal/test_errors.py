"""The exceptions: their classes, and that wrong arguments get the one that Python users expect."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
from cases import activations, random_weight, upload

from oxibonsai import metal
from oxibonsai.metal import (
    BufferCreationError,
    CompilationError,
    DeviceNotFoundError,
    EncodingError,
    ExecutionError,
    MetalGraphError,
    _errors,
)

CLASSES = {
    DeviceNotFoundError: (1, ()),
    CompilationError: (2, ()),
    BufferCreationError: (3, (MemoryError,)),
    EncodingError: (4, (ValueError,)),
    ExecutionError: (5, (RuntimeError,)),
}


@pytest.mark.parametrize("error", CLASSES)
def test_each_error_has_its_status_and_its_bases(error):
    code, bases = CLASSES[error]
    assert error.code == code
    assert _errors.BY_CODE[code] is error
    assert issubclass(error, (MetalGraphError, *bases))
    assert all(issubclass(error, base) for base in (MetalGraphError, *bases))
    for other in set(CLASSES) - {error}:
        assert not issubclass(error, other)


def test_the_base_class_is_no_error_of_its_own():
    assert MetalGraphError.code == 0
    assert MetalGraphError.__bases__ == (Exception,)
    assert set(_errors.BY_CODE) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("error", [MetalGraphError, *CLASSES])
def test_errors_survive_pickling_with_their_code(error):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error("3 bytes: 18 needed"), protocol))
        assert type(again) is error
        assert str(again) == "3 bytes: 18 needed"
        assert again.code == error.code
    assert str(copy.copy(error("text"))) == "text"


def test_errors_of_the_device_arrive_with_their_code():
    with pytest.raises(DeviceNotFoundError) as caught:
        metal.Device("nonexistent")
    assert caught.value.code == 1
    with metal.Device("cpu") as device:
        with pytest.raises(CompilationError) as caught:
            device.pipeline("no_such_kernel")
        assert caught.value.code == 2
        with pytest.raises(MemoryError) as caught:
            device.buffer(2**62)
        assert caught.value.code == 3
        with pytest.raises(ValueError, match="empty commands") as caught:
            device.commands().submit()
        assert caught.value.code == 4


# Wrong arguments. Each call is refused with one of the named exceptions, before anything has run.


def array_calls(graph) -> dict[str, tuple[Callable, type[Exception]]]:
    """Return calls with one wrong array each."""
    handle = upload(graph, random_weight("Q1_0", 128, 128))
    norm = graph.upload_f32_weight(activations(128))
    x, y = activations(128), np.zeros(128, np.float32)
    frozen = y.copy()
    frozen.flags.writeable = False
    bad_inputs = {
        "float64": (x.astype(np.float64), ValueError),
        "float16": (x.astype(np.float16), ValueError),
        "int32": (x.astype(np.int32), ValueError),
        "big endian": (x.astype(">f4"), ValueError),
        "two dimensions": (x.reshape(2, 64), ValueError),
        "no dimension": (np.float32(1), (TypeError, ValueError, BufferError)),
        "strided": (np.repeat(x, 2)[::2], ValueError),
        "reversed": (x[::-1], ValueError),
        "list": (x.tolist(), TypeError),
        "None": (None, TypeError),
        "bytes": (x.tobytes(), (ValueError, BufferError)),
        "str": ("x", TypeError),
    }
    calls = {}
    for what, (bad, error) in bad_inputs.items():
        calls[f"input {what}"] = (lambda b=bad: graph.encode_gemv(handle, b, y), error)
        calls[f"output {what}"] = (lambda b=bad: graph.encode_gemv(handle, x, b), error)
        calls[f"tq2 input {what}"] = (lambda b=bad: graph.encode_gemv_tq2(handle, b, y), error)
        calls[f"qkv input {what}"] = (lambda b=bad: graph.encode_qkv_phase(b, y, handle), error)
        calls[f"qkv output {what}"] = (lambda b=bad: graph.encode_qkv_phase(x, b, handle), error)
        calls[f"hidden {what}"] = (
            lambda b=bad: graph.encode_ffn_phase(b, x, norm, handle, handle, handle),
            error,
        )
        calls[f"attn_out {what}"] = (
            lambda b=bad: graph.encode_ffn_phase(y, b, norm, handle, handle, handle),
            error,
        )
        calls[f"vector {what}"] = (lambda b=bad: graph.upload_f32_weight(b), error)
        calls[f"cached vector {what}"] = (
            lambda b=bad: graph.get_or_upload_f32_weight(5, b),
            error,
        )
    calls["output read-only"] = (lambda: graph.encode_gemv(handle, x, frozen), ValueError)
    calls["qkv output read-only"] = (lambda: graph.encode_qkv_phase(x, frozen, handle), ValueError)
    calls["hidden read-only"] = (
        lambda: graph.encode_ffn_phase(frozen, x, norm, handle, handle, handle),
        ValueError,
    )
    return calls


def outcome(call, error):
    """Return "" where `call` raises `error`, else what it did."""
    try:
        call()
    except error:
        return ""
    except Exception as other:
        return f"{type(other).__name__}: {other}"
    return "was taken"


def not_refused(calls):
    """Return what each call did that did not raise its exception."""
    found = {what: outcome(call, error) for what, (call, error) in calls.items()}
    return {what: did for what, did in found.items() if did}


def test_arrays_of_another_type_rank_or_layout_are_refused(graph):
    assert not_refused(array_calls(graph)) == {}
    assert len(graph.weights) == 0


def handle_calls(graph, bad):
    x, y = activations(128), np.zeros(128, np.float32)
    norm = graph.upload_f32_weight(x)
    good = upload(graph, random_weight("Q1_0", 128, 128))
    commands = graph.commands()
    buffer = graph.device.buffer(512)
    return [
        lambda: graph.encode_gemv(bad, x, y),
        lambda: graph.encode_gemv_tq2(bad, x, y),
        lambda: graph.encode_qkv_phase(x, y, bad),
        lambda: graph.encode_ffn_phase(y, x, norm, bad, good, good),
        lambda: graph.encode_ffn_phase(y, x, norm, good, bad, good),
        lambda: graph.encode_ffn_phase(y, x, norm, good, good, bad),
        lambda: commands.gemv(bad, buffer, buffer),
        lambda: commands.gate_up_swiglu(bad, buffer, buffer),
        lambda: commands.embed(bad, buffer, buffer, buffer),
    ]


@pytest.mark.parametrize("bad", [None, 7, b"weights", "w", np.zeros(18, np.uint8)], ids=repr)
def test_what_is_no_weight_handle_is_a_type_error(graph, bad):
    for call in handle_calls(graph, bad):
        with pytest.raises(TypeError, match=r"must be a WeightHandle, not \w+"):
            call()


@pytest.mark.parametrize("bad", [None, 7, b"bytes", "b"], ids=repr)
def test_what_is_no_buffer_is_a_type_error(device, graph, bad):
    handle = upload(graph, random_weight("Q1_0", 4, 128))
    with device.commands() as c, device.buffer(512) as b:
        pipeline = device.pipeline("rmsnorm")
        for call in (
            lambda: c.gemv(handle, bad, b),
            lambda: c.gemv(handle, b, bad),
            lambda: c.rmsnorm(b, bad, b, 4),
            lambda: c.add(bad, b, 4),
            lambda: c.embed(handle, b, bad, b),
            lambda: c.advance(b, b, bad, 4, 4),
            lambda: c.dispatch(pipeline, [b, bad], threadgroups=1),
        ):
            with pytest.raises(TypeError, match=r"must be a Buffer, not \w+"):
                call()


# What is no integer is a TypeError everywhere, as in Python itself.
NO_INTEGERS = [1.5, "3", None, b"3", [1]]


def integer_calls(device, graph, bad):
    handle = upload(graph, random_weight("Q1_0", 128, 128))
    x, y = activations(128), np.zeros(128, np.float32)
    norm = graph.upload_f32_weight(x)
    buffer = device.buffer(4096)
    commands = device.commands()
    pipeline = device.pipeline("rmsnorm")
    data = random_weight("Q1_0", 1, 128).data
    calls = {
        "Buffer": lambda: device.buffer(bad),
        "read offset": lambda: buffer.read(x, bad),
        "write offset": lambda: buffer.write(x, bad),
        "fill value": lambda: buffer.fill(bad),
        "view offset": lambda: buffer.view(offset=bad),
        "key": lambda: graph.get_or_upload_weight(bad, b"abc"),
        "evict": lambda: graph.weights.evict(bad),
        "shape": lambda: graph.upload_q1_weight_soa(data, shape=(bad, 128)),
        "hidden": lambda: graph.acquire_buffers(bad, 128),
        "inter": lambda: graph.acquire_buffers(128, bad),
        "binding offset": lambda: commands.add((buffer, bad), buffer, 4),
        "n": lambda: commands.add(buffer, buffer, bad),
        "max_tokens": lambda: commands.advance(buffer, buffer, buffer, 4, bad),
        "threadgroups": lambda: commands.dispatch(pipeline, [buffer], threadgroups=(1, bad)),
        "submit": lambda: commands.submit(bad),
        "replay": lambda: commands.replay(bad),
        "max_seq": lambda: commands.kv_store(
            buffer, buffer, buffer, buffer,
            n_heads=1, n_kv_heads=1, head_dim=2, max_seq=bad, layer=0, kv_dtype="f32",
        ),
        "constant index": lambda: device.pipeline("rmsnorm", constants={bad: 1}),
    }  # fmt: skip
    if bad is not None:  # None is the default of these
        calls |= {
            "threads": lambda: metal.Device("cpu", threads=bad),
            "fill count": lambda: buffer.fill(0, 0, bad),
            "n_rows": lambda: graph.encode_gemv(handle, x, y, bad, 128),
            "k": lambda: graph.encode_gemv(handle, x, y, 128, bad),
            "hidden_size": lambda: graph.encode_ffn_phase(
                y, x, norm, handle, handle, handle, bad, 64
            ),
            "attn": lambda: graph.acquire_buffers(128, 128, bad),
        }
    if isinstance(bad, list):
        del calls["constant index"]
    return calls


@pytest.mark.parametrize("bad", NO_INTEGERS, ids=repr)
def test_what_is_no_integer_is_a_type_error(device, graph, bad):
    calls = integer_calls(device, graph, bad)
    assert not_refused({what: (call, TypeError) for what, call in calls.items()}) == {}


@pytest.mark.parametrize("one", [1, True, np.int64(1), np.uint8(1)], ids=repr)
def test_integers_of_every_kind_are_taken(device, graph, one):
    device.buffer(one).fill(one)
    handle = upload(graph, random_weight("Q1_0", 1, 128))
    graph.encode_gemv(handle, activations(128), np.zeros(1, np.float32), one, 128)
    with graph.acquire_buffers(one, one):
        pass


@pytest.mark.parametrize("bad", [-1, 2**63, 2**64, -(2**80)])
def test_integers_out_of_range_name_themselves(device, graph, bad):
    buffer = device.buffer(64)
    handle = upload(graph, random_weight("Q1_0", 1, 128))
    x, y = activations(128), np.zeros(1, np.float32)
    for call in (
        lambda: buffer.read(x[:1], bad),
        lambda: buffer.write(x[:1], bad),
        lambda: buffer.fill(0, bad, 0),
        lambda: buffer.fill(0, 0, bad),
        lambda: buffer.fill(bad),
        lambda: graph.encode_gemv(handle, x, y, bad, 128),
        lambda: graph.encode_gemv(handle, x, y, 1, bad),
        lambda: graph.acquire_buffers(bad, 1),
        lambda: graph.upload_q1_weight_soa(bytes(18), shape=(bad, 128)),
        lambda: device.commands().replay(bad),
    ):
        with pytest.raises(EncodingError, match=rf"{bad}\b"):
            call()
    with pytest.raises(BufferCreationError, match=f"{bad} bytes"):
        device.buffer(bad)


@pytest.mark.parametrize(
    "bad", [None, 7, "text", object(), [1, 2]], ids=["None", "int", "str", "object", "list"]
)
def test_data_that_exports_no_memory_is_a_type_error(device, graph, bad):
    buffer = device.buffer(64)
    for call in (
        lambda: graph.upload_weight(bad),
        lambda: graph.upload_q1_weight_soa(bad),
        lambda: graph.upload_tq2_weight_soa(bad),
        lambda: graph.upload_weight_soa(bad, "Q1_0"),
        lambda: graph.get_or_upload_weight(1, bad),
        lambda: graph.get_or_upload_q1_weight_soa_lazy(1, lambda: bad),
        lambda: device.upload(bad),
        lambda: device.upload(bad, copy=False),
        lambda: buffer.write(bad),
        lambda: buffer.read(bad),
        lambda: metal.reformat(bad, "Q1_0"),
    ):
        with pytest.raises(TypeError, match="expected bytes or an array that exports its memory"):
            call()


def test_floats_where_blocks_belong_are_a_type_error(graph):
    w = np.zeros((128, 18), np.float32)
    for call in (
        lambda: graph.upload_q1_weight_soa(w),
        lambda: graph.upload_tq2_weight_soa(w),
        lambda: graph.upload_weight_soa(w, "PQ2_0"),
    ):
        with pytest.raises(TypeError, match="expected elements of 1 byte, got 4 bytes"):
            call()


def test_arrays_of_python_objects_are_never_taken_for_bytes(device, graph):
    # Their bytes are pointers: reading into one would corrupt the interpreter.
    objects = np.array([None, "a", 3, 4], object)
    buffer = device.buffer(64)
    for call in (
        lambda: device.upload(objects),
        lambda: device.upload(objects, copy=False),
        lambda: graph.upload_weight(objects),
        lambda: buffer.write(objects),
        lambda: buffer.read(objects),
        lambda: metal.reformat(bytes(18), "Q1_0", objects),
    ):
        with pytest.raises((TypeError, ValueError), match="object"):
            call()


def test_strided_data_is_refused(device, graph):
    strided = np.zeros((4, 36), np.uint8)[:, ::2]
    buffer = device.buffer(256)
    for call in (
        lambda: graph.upload_q1_weight_soa(strided),
        lambda: device.upload(strided),
        lambda: device.upload(strided, copy=False),
        lambda: buffer.write(strided),
        lambda: buffer.read(strided),
        lambda: device.upload(memoryview(bytes(10))[::2]),
    ):
        with pytest.raises((ValueError, BufferError), match="contiguous"):
            call()


@pytest.mark.parametrize("name", ["Device", "Buffer", "Commands", "WeightHandle", "MetalGraph"])
def test_objects_of_a_device_cannot_be_pickled(graph, name):
    made = {
        "Device": graph.device,
        "Buffer": graph.device.buffer(8),
        "Commands": graph.device.commands(),
        "WeightHandle": graph.upload_weight(b"abc"),
        "MetalGraph": graph,
    }
    with pytest.raises(TypeError, match="pickl"):
        pickle.dumps(made[name])
    made.clear()


@pytest.mark.parametrize(
    "kind",
    ["Device", "Buffer", "Commands", "Pipeline", "Library", "WeightHandle", "MetalGraph"],
)
def test_objects_that_were_never_initialised_raise_instead_of_crashing(device, kind):
    cls = getattr(metal, kind)
    bare = cls.__new__(cls, device)
    operations = {
        "Device": [lambda: bare.info, lambda: bare.buffer(8), lambda: bare.commands()],
        "Buffer": [lambda: bare.nbytes, lambda: bare.fill(), lambda: memoryview(bare)],
        "Commands": [lambda: bare.submit(), lambda: len(bare), lambda: bare.reset()],
        "Pipeline": [lambda: bare.info],
        "Library": [lambda: bare.pipeline("f")],
        "WeightHandle": [lambda: bare.nbytes],
        "MetalGraph": [
            lambda: bare.upload_weight(b"abc"),
            lambda: bare.acquire_buffers(8, 8),
            lambda: bare.commands(),
        ],
    }
    for operation in operations[kind]:
        with pytest.raises((MetalGraphError, TypeError)):
            operation()
    assert repr(bare)
    if kind != "WeightHandle":
        bare.close()
