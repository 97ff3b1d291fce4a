"""A driver sees only what was checked: every misuse of a dispatch, and what reaches the driver."""

from __future__ import annotations

import ctypes
import re
import struct

import numpy as np
import pytest
from misuses import ARGS, BY_NAME, MISUSES, Stage, refuse_all, refused

import oxibonsai
from oxibonsai.metal import Argument, CompilationError, EncodingError, _core

EVERYWHERE = [misuse.name for misuse in MISUSES]
OF_THE_FAULT_DRIVER = [misuse.name for misuse in MISUSES if misuse.applies("fault")]


@pytest.mark.parametrize("name", OF_THE_FAULT_DRIVER)
def test_a_misuse_does_not_reach_the_driver(fault, name):
    misuse = BY_NAME[name]
    with Stage("fault") as stage:
        refused(stage, misuse)
        assert (fault.reached, fault.dispatches) == (misuse.submits, misuse.submits)
        # What is right does.
        stage.dispatch()
        stage.commands.replay(2)
        assert (fault.reached, fault.dispatches) == (misuse.submits + 2, misuse.submits + 2)
    assert fault.unchecked == 0


def test_the_fault_driver_knows_all_misuses():
    assert OF_THE_FAULT_DRIVER == EVERYWHERE


def test_every_misuse_is_refused_alike_on_every_device(device, device_name):
    tried = refuse_all(device_name)
    left_out = [misuse for misuse in MISUSES if not misuse.applies(device.driver)]
    assert tried == len(MISUSES) - len(left_out)
    assert tried > 30


# Arguments


def test_a_pipeline_lists_what_its_kernel_takes(faulty):
    with_list, without = faulty.pipeline("residual_add"), faulty.pipeline("f")
    assert with_list.arguments == (
        Argument("buffer", 0, 4, 4, False, False),
        Argument("buffer", 1, 4, 4, True, False),
        Argument("struct", 2, 16, 0, False, False),
    )
    assert without.arguments == ()
    memory = faulty.pipeline("takes_memory").arguments[1]
    assert (memory.kind, memory.binding) == ("threadgroup", 0)
    unknown, optional = faulty.pipeline("takes_any").arguments
    assert (unknown.writable, optional.optional) == (None, True)


def test_the_shipped_kernels_list_their_arguments(device):
    arguments = device.pipeline("residual_add").arguments
    assert [(a.binding, a.writable) for a in arguments] == [(0, False), (1, True), (2, False)]
    assert arguments[2].size == 16
    assert all(a.alignment == 4 for a in arguments[:2])
    if device.driver == "metal":  # a reference and a pointer are the same to it
        assert [a.kind for a in arguments] == ["buffer"] * 3
    else:
        assert [a.kind for a in arguments] == ["buffer", "buffer", "struct"]


def test_a_list_that_is_too_long_is_an_error_of_the_driver(fault, faulty):
    with pytest.raises(CompilationError, match='driver "fault" lists 33 arguments, at most 32'):
        faulty.pipeline("lists_too_many")
    assert fault.pipelines_live == 0


def test_all_31_bindings_are_admitted(fault, faulty):
    with faulty.buffer(64) as b, faulty.commands() as commands:
        commands.dispatch(faulty.pipeline("takes_30"), [b] * 30, bytes(4096), threadgroups=1)
        commands.dispatch(faulty.pipeline("takes_31"), [b] * 31, threadgroups=1)
        commands.replay()
    assert fault.dispatches == 2


def test_an_unknown_access_admits_read_only_memory_and_an_optional_argument_nothing(faulty):
    frozen = np.zeros(80, np.uint8)
    frozen = frozen[-frozen.ctypes.data % 16 :][:64]
    frozen.flags.writeable = False
    pipeline = faulty.pipeline("takes_any")
    with faulty.upload(frozen, copy=False) as b, faulty.commands() as commands:
        commands.dispatch(pipeline, [b], threadgroups=1)
        commands.dispatch(pipeline, [b, b], threadgroups=1)
        commands.replay()
        with pytest.raises(EncodingError, match="sealed"):
            commands.dispatch(pipeline, [b], threadgroups=1)


def test_dynamic_threadgroup_memory_is_given_in_steps(faulty):
    pipeline = faulty.pipeline("takes_memory")
    with faulty.buffer(16) as b, faulty.commands() as commands:
        with pytest.raises(EncodingError, match=r"its threadgroup\(0\) has no length"):
            commands.dispatch(pipeline, [b], threadgroups=1)
        for memory in (1, 16, 17):
            commands.dispatch(pipeline, [b], threadgroups=1, threadgroup_memory=memory)
        assert re.findall(r"(\d+) bytes of threadgroup", commands.describe()) == [
            str(1024 + n) for n in (16, 16, 32)
        ]
        commands.replay()


def test_what_a_driver_does_not_know_it_has_to_take(fault, faulty):
    """Where a driver lists no arguments the limits hold, and no more than those."""
    pipeline = faulty.pipeline("f")
    with faulty.buffer(16) as b, faulty.commands() as commands:
        commands.dispatch(pipeline, [], threadgroups=1)
        commands.dispatch(pipeline, [b] * 5, bytes(3), threadgroups=1, threadgroup_memory=1)
        with pytest.raises(EncodingError, match="at most 31"):
            commands.dispatch(pipeline, [b] * 32, threadgroups=1)
        assert len(commands) == 2
    assert fault.reached == 0


# From C: what Python cannot pass


class Size(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32))


class Binding(ctypes.Structure):
    _fields_ = (("buffer", ctypes.c_void_p), ("offset", ctypes.c_uint64))


class Constant(ctypes.Structure):
    _fields_ = (("index", ctypes.c_uint32), ("type", ctypes.c_uint32), ("value", ctypes.c_uint32))


class Api:
    """The functions of the capsule's table, by the names of the list that makes it."""

    def __init__(self) -> None:
        header = oxibonsai.get_include() + "/oxb_shim.h"
        with open(header, encoding="utf-8") as file:
            text = file.read().partition("#define OXB_FUNCTIONS(X)")[2].partition("#define X(")[0]
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        self.names = re.findall(r"\bX\([^,]+,\s*(\w+),", text)
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        address = get(_core._C_API, b"oxibonsai.metal._core._C_API")
        self.table = (ctypes.c_void_p * len(self.names)).from_address(address + 8)

    def __call__(self, name: str, *arguments: object, restype: type = ctypes.c_int) -> object:
        return ctypes.CFUNCTYPE(restype)(self.table[self.names.index(name)])(*arguments)

    def make(self, name: str, *arguments: object) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        assert self(name, *arguments, ctypes.byref(made)) == 0, self.error()
        return made

    def error(self) -> str:
        text = self("last_error", restype=ctypes.c_char_p)
        assert isinstance(text, bytes)
        return text.decode()


@pytest.fixture
def api(fault):
    return Api()


@pytest.fixture
def raw(api):
    """A dispatch of residual_add through the C table, each of whose arguments can be another."""
    device = api.make("device_open", b"fault", ctypes.c_uint32(0), None)
    pipeline = api.make("pipeline_new", device, None, b"residual_add", None, ctypes.c_uint32(0))
    commands = api.make("commands_new", device)
    buffer = api.make("buffer_new", device, ctypes.c_uint64(64), ctypes.c_int(0))
    both = (Binding * 2)((buffer.value, 0), (buffer.value, 32))

    def dispatch(bindings=both, n=2, args=ARGS, size=16):
        return api(
            "commands_dispatch", commands, pipeline, bindings, ctypes.c_uint32(n), args,
            ctypes.c_uint64(size), Size(1, 1, 1), Size(1, 1, 1), ctypes.c_uint32(0),
        )  # fmt: skip

    dispatch.commands, dispatch.buffer = commands, buffer
    yield dispatch
    for kind, handle in (
        ("commands", commands),
        ("buffer", buffer),
        ("pipeline", pipeline),
        ("device", device),
    ):
        api(f"{kind}_release", handle, restype=None)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bindings": (Binding * 2)()}, "residual_add: binding 0 has no buffer"),
        ({"bindings": None}, "residual_add: 2 bindings at NULL"),
        ({"args": None}, "residual_add: an argument struct of 16 bytes at NULL"),
        ({"n": 2**32 - 1}, "4294967295 buffers and an argument struct: at most 31"),
        ({"n": 2**32 - 1, "size": 0}, "4294967295 buffers: at most 31"),
        ({"size": 2**63}, "an argument struct of 9223372036854775808 bytes: at most 4096"),
        ({"size": 2**32 + 16}, "an argument struct of 4294967312 bytes: at most 4096"),
    ],
)
def test_what_c_passes_wrong_does_not_reach_the_driver(fault, api, raw, change, text):
    assert raw(**change) == 4  # OXB_ENCODING_FAILED
    assert text in api.error()
    assert api("commands_length", raw.commands) == 0
    assert fault.reached == 0


def test_an_argument_struct_may_lie_at_any_address(fault, api, raw):
    store = ctypes.create_string_buffer(64)
    start = -ctypes.addressof(store) % 16 + 1
    ctypes.memmove(ctypes.addressof(store) + start, struct.pack("<QQ", 8, 0), 16)
    assert raw(args=ctypes.c_void_p(ctypes.addressof(store) + start)) == 0, api.error()
    submission = api.make("commands_submit", raw.commands)
    api("submission_release", submission, restype=None)
    assert (fault.reached, fault.unchecked) == (1, 0)


@pytest.mark.parametrize(
    ("constants", "text"),
    [
        ([(3, 4)], "f: function constant 3 is of type 4: an oxb_constant_type is 0 to 3"),
        ([(1, 0), (2, 0), (1, 1)], "f: function constant 1 is given twice"),
        ([(65535, 0), (65536, 0)], "f: function constant 65536: indices are 0 to 65535"),
        ([(i, 0) for i in range(17)], "f: 17 function constants, at most 16 are allowed"),
    ],
)
def test_constants_that_are_none_do_not_reach_the_driver(fault, api, constants, text):
    device = api.make("device_open", b"fault", ctypes.c_uint32(0), None)
    values = (Constant * len(constants))(*((index, kind, 0) for index, kind in constants))
    made = ctypes.c_void_p()
    status = api(
        "pipeline_new", device, None, b"f", values, ctypes.c_uint32(len(constants)),
        ctypes.byref(made),
    )  # fmt: skip
    assert (status, made.value) == (2, None)  # OXB_COMPILATION_FAILED
    assert text in api.error()
    assert fault.pipelines_live == 0
    api("device_release", device, restype=None)


def test_a_description_is_cut_to_the_room_that_there_is(api, raw):
    assert raw() == 0
    length = ctypes.c_uint64()

    def describe(index, size):
        text = ctypes.create_string_buffer(b"#" * 1000)
        status = api(
            "commands_describe", raw.commands, ctypes.c_uint32(index), text,
            ctypes.c_uint64(size), ctypes.byref(length),
        )  # fmt: skip
        return status, text.raw

    status, whole = describe(0, 1000)
    assert status == 0
    assert len(whole.partition(b"\0")[0]) == length.value
    for size in (0, 1, 20, length.value, length.value + 1):
        before = length.value
        status, cut = describe(0, size)
        assert (status, length.value) == (0, before)
        assert cut[size:] == b"#" * (1000 - size) + b"\0"
        assert cut[: max(size - 1, 0)] == whole[: max(size - 1, 0)]
    assert describe(1, 1000)[0] == 4
    assert "no dispatch 1 to describe: 1 are recorded" in api.error()
