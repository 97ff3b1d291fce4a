"""Buffers: copies, views, memory wrapped without a copy, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref

import numpy as np
import pytest
from cases import contents

from oxibonsai.metal import Buffer, BufferCreationError, Device, EncodingError

every_storage = pytest.mark.parametrize("storage", ["shared", "private"])


class Owner(np.ndarray):
    """An array that can be watched."""


def owned(n=256, dtype=np.uint8, shift=0):
    """Return an array at an address of `shift` past a multiple of 64."""
    memory = np.zeros(n * np.dtype(dtype).itemsize + 128, np.uint8).view(Owner)
    start = -memory.ctypes.data % 64 + shift
    return memory[start : start + n * np.dtype(dtype).itemsize].view(dtype)


# Making


@every_storage
def test_a_new_buffer_is_zeros_of_its_length(device, storage):
    for nbytes in (1, 15, 16, 4097, 3 << 20):
        with device.buffer(nbytes, storage=storage) as buffer:
            assert len(buffer) == buffer.nbytes == nbytes
            assert buffer.storage == storage
            assert not buffer.read_only
            assert not contents(buffer, np.uint8).any()


@every_storage
def test_memory_given_back_is_zeros_when_it_comes_again(device, storage):
    for nbytes in (64, 5000, 2 << 20):
        for _ in range(5):
            with device.buffer(nbytes, storage=storage) as buffer:
                assert not contents(buffer, np.uint8).any()
                buffer.fill(0xFF)


@pytest.mark.parametrize("nbytes", [0, -1, -(2**70), 2**63, 2**64, 2**80])
def test_a_length_that_no_buffer_has_is_refused(device, nbytes):
    with pytest.raises(BufferCreationError, match=f"cannot make a buffer of {nbytes} bytes"):
        device.buffer(nbytes)


@every_storage
def test_a_length_past_the_device_names_both_numbers(device, storage):
    limit = device.info.max_buffer_length
    for nbytes in (limit + 1, 2**62, 2**63 - 1):
        with pytest.raises(BufferCreationError, match=f"{nbytes} bytes.*{limit}"):
            device.buffer(nbytes, storage=storage)
    assert device.stats.buffers == 0 or device.buffer(1)


@pytest.mark.parametrize("storage", ["managed", "", None, 0])
def test_an_unknown_storage_is_refused(device, storage):
    with pytest.raises(ValueError, match="'shared' or 'private'"):
        device.buffer(16, storage=storage)


def test_a_device_is_needed():
    for bad in (None, "cpu", 0):
        with pytest.raises(TypeError):
            Buffer(bad, 16)
        with pytest.raises(TypeError):
            Buffer.from_data(bad, b"abc")


def test_making_one_twice_is_refused(device):
    buffer = device.buffer(16)
    with pytest.raises(EncodingError, match="made already"):
        buffer.__init__(device, 32)
    assert buffer.nbytes == 16


@every_storage
@pytest.mark.parametrize(
    "data",
    [
        b"some bytes",
        bytearray(b"some bytes"),
        memoryview(b"some bytes"),
        np.arange(10, dtype=np.float64),
        np.arange(12, dtype=np.int16).reshape(3, 4),
        np.array(5.0),
        (ctypes.c_int * 4)(1, 2, 3, 4),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_copy_holds_the_bytes_of_anything_contiguous(device, storage, data):
    with device.upload(data, storage=storage) as buffer:
        assert contents(buffer, np.uint8).tobytes() == memoryview(data).tobytes()


def test_a_copy_has_its_own_memory(device):
    data = np.arange(8)
    with device.upload(data) as buffer:
        data[:] = 0
        np.testing.assert_array_equal(contents(buffer, data.dtype), np.arange(8))


@pytest.mark.parametrize("copy", [True, False])
def test_empty_data_is_refused(device, copy):
    for empty in (b"", np.zeros((0, 3), np.float32)):
        with pytest.raises(BufferCreationError, match="empty"):
            device.upload(empty, copy=copy)


# Reading, writing, filling


@every_storage
def test_read_and_write_at_an_offset(device, storage):
    with device.buffer(64, storage=storage) as buffer:
        buffer.write(b"abcdef", 10)
        buffer.write(np.array([1.5, 2.5], np.float32), offset=20)
        expected = bytearray(64)
        expected[10:16] = b"abcdef"
        expected[20:28] = np.array([1.5, 2.5], np.float32).tobytes()
        assert contents(buffer, np.uint8).tobytes() == expected
        out = np.zeros(2, np.float32)
        assert buffer.read(out, 20) is out
        assert out.tolist() == [1.5, 2.5]
        target = bytearray(3)
        buffer.read(target, 11)
        assert target == b"bcd"


@every_storage
def test_fill_sets_a_range(device, storage):
    with device.buffer(32, storage=storage) as buffer:
        buffer.fill(0xAB)
        buffer.fill(1, 30)
        buffer.fill(2, 4, 3)
        buffer.fill(9, 5, 0)
        buffer.fill(9, 32)
        expected = [0xAB] * 4 + [2] * 3 + [0xAB] * 23 + [1] * 2
        assert contents(buffer, np.uint8).tolist() == expected


@every_storage
@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 17), (16, 1), (17, 0), (1, 16), (2**62, 1), (2**63 - 1, 2**63 - 1)]
)
def test_a_range_past_the_end_is_refused(device, storage, offset, nbytes):
    with device.buffer(16, storage=storage) as buffer:
        buffer.fill(7)
        text = f"{nbytes} bytes at offset {offset} of a buffer of 16 bytes"
        with pytest.raises(EncodingError, match=f"cannot fill {text}"):
            buffer.fill(0, offset, nbytes)
        if nbytes < 100:
            data = bytearray(b"x" * nbytes)
            with pytest.raises(EncodingError, match=f"cannot write {text}"):
                buffer.write(data, offset)
            with pytest.raises(EncodingError, match=f"cannot read {text}"):
                buffer.read(data, offset)
            assert data == b"x" * nbytes
        assert contents(buffer, np.uint8).tolist() == [7] * 16


@pytest.mark.parametrize("value", [-1, 256, 2**70])
def test_a_byte_that_is_none_is_refused(device, value):
    with device.buffer(4) as buffer, pytest.raises(EncodingError, match=f"fill with {value}"):
        buffer.fill(value)


def test_reading_into_read_only_memory_is_refused(device):
    frozen = np.zeros(4, np.uint8)
    frozen.flags.writeable = False
    with device.buffer(4) as buffer:
        for target in (b"1234", frozen):
            with pytest.raises(ValueError, match="read-only"):
                buffer.read(target)


def test_a_buffer_is_read_from_and_written_to_itself(device):
    with device.upload(np.arange(10, dtype=np.uint8)) as buffer:
        view = np.frombuffer(buffer, np.uint8)
        buffer.write(view[:8], 2)
        assert contents(buffer, np.uint8).tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]
        buffer.read(view[1:9], 2)
        del view
        assert contents(buffer, np.uint8).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 7]


# Views


def test_shared_memory_exports_one_dimension_of_bytes(device):
    with device.buffer(24) as buffer:
        with memoryview(buffer) as view:
            assert (view.ndim, view.format, view.itemsize) == (1, "B", 1)
            assert (view.shape, view.strides, view.nbytes) == ((24,), (1,), 24)
            assert view.c_contiguous
            assert not view.readonly
            view[3] = 77
        array = np.frombuffer(buffer, np.uint8)
        assert array[3] == 77
        assert array.ctypes.data == buffer.address
        array[4] = 78
        assert contents(buffer, np.uint8)[3:5].tolist() == [77, 78]
        del array


def test_view_gives_an_array_of_any_type(device):
    with device.buffer(40) as buffer:
        everything = buffer.view(np.float32)
        assert everything.shape == (10,)
        everything[:] = np.arange(10)
        part = buffer.view(np.float32, (2, 3), offset=8)
        assert part.tolist() == [[2, 3, 4], [5, 6, 7]]
        assert np.shares_memory(part, everything)
        assert buffer.view(np.float64).shape == (5,)
        assert buffer.view("<i2", 3).shape == (3,)
        assert buffer.view(np.float32, offset=38).shape == (0,)
        assert buffer.view(np.float32, ()).shape == ()
        for shape, offset in (((11,), 0), ((2, 5), 4), (1, 37), ((2**40,), 0)):
            with pytest.raises(EncodingError, match="the buffer has 40"):
                buffer.view(np.float32, shape, offset)
        del everything, part


def test_private_memory_has_no_address_and_exports_nothing(device):
    with device.buffer(16, storage="private") as buffer:
        assert buffer.address is None
        for export in (memoryview, np.frombuffer, np.from_dlpack, Buffer.view):
            with pytest.raises(BufferError, match="private storage has no host address"):
                export(buffer)


def test_a_buffer_with_views_refuses_to_close(device):
    buffer = device.buffer(16)
    first, second = np.frombuffer(buffer, np.uint8), memoryview(buffer)
    with pytest.raises(BufferError, match="2 exported views: release the arrays"):
        buffer.close()
    second.release()
    with pytest.raises(BufferError, match="1 exported view:"):
        buffer.close()
    first[0] = 1  # The memory is still there.
    del first
    buffer.close()
    assert buffer.closed


def test_views_keep_their_buffer_alive(device):
    array = np.frombuffer(device.buffer(1 << 20), np.uint8)
    gc.collect()
    array[:] = 5
    assert array.sum(dtype=int) == 5 << 20


def test_a_closed_buffer_refuses_everything(device):
    buffer, other = device.buffer(16), device.buffer(16)
    buffer.close()
    buffer.close()
    assert buffer.closed
    assert "closed" in repr(buffer)
    with device.commands() as commands:
        for call in (
            lambda: buffer.nbytes,
            lambda: len(buffer),
            lambda: buffer.address,
            lambda: buffer.read(bytearray(4)),
            lambda: buffer.write(b"abcd"),
            lambda: buffer.fill(),
            lambda: buffer.view(),
            lambda: memoryview(buffer),
            lambda: np.from_dlpack(buffer),
            lambda: commands.add(buffer, other, 4),
            lambda: commands.add(other, buffer, 4),
            buffer.__enter__,
        ):
            with pytest.raises(EncodingError, match="the buffer is closed"):
                call()


def test_repr_says_what_it_is(device):
    frozen = np.zeros(64, np.uint8)
    frozen.flags.writeable = False
    assert f"16 bytes, shared, on {device.driver}" in repr(device.buffer(16))
    assert "8 bytes, private" in repr(device.buffer(8, storage="private"))
    assert "64 bytes, shared, read-only" in repr(device.upload(frozen, copy=False))


# DLPack


def test_numpy_takes_a_buffer_through_dlpack(device):
    buffer = device.buffer(12)
    assert buffer.__dlpack_device__() == (1, 0)
    array = np.from_dlpack(buffer)
    assert (array.dtype, array.shape) == (np.uint8, (12,))
    buffer.fill(3)
    assert array.tolist() == [3] * 12
    assert array.ctypes.data == buffer.address
    with pytest.raises(BufferError, match="exported view"):
        buffer.close()
    del array
    buffer.close()


class DLPackOnly:
    """An array that exports its memory through DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_arrays_come_in_through_dlpack(device, graph):
    data = np.arange(20, dtype=np.float32)
    with device.upload(DLPackOnly(data)) as buffer:
        np.testing.assert_array_equal(contents(buffer), data)
    blocks = np.zeros(36, np.uint8)
    assert graph.upload_q1_weight_soa(DLPackOnly(blocks)).byte_len == 36


def test_torch_tensors_go_both_ways(device):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensor = torch.arange(6, dtype=torch.float32)
    with device.upload(tensor) as buffer:
        again = torch.from_dlpack(buffer).view(torch.float32)
        assert again.tolist() == tensor.tolist()
        del again


# Memory wrapped without a copy


def test_wrapped_memory_is_the_same_on_both_sides(device):
    array = owned(16, np.float32)
    with device.upload(array, copy=False) as buffer, device.commands() as commands:
        assert buffer.address == array.ctypes.data
        assert (buffer.nbytes, buffer.storage) == (64, "shared")
        array[:] = np.arange(16)
        np.testing.assert_array_equal(contents(buffer), np.arange(16))
        buffer.write(np.float32([-1]), 4)
        assert array[1] == -1
        commands.add(buffer, buffer, 16)
        commands.replay()
        assert array[:4].tolist() == [0, -2, 4, 6]


@pytest.mark.parametrize("shift", [16, 32, 48])
def test_memory_at_any_multiple_of_16_is_wrapped(device, shift):
    array = owned(40, np.float32, shift)
    array[:] = np.arange(40)
    with device.upload(array, copy=False) as buffer, device.commands() as commands:
        commands.add((buffer, 0), (buffer, 80), 20)
        commands.replay()
    np.testing.assert_array_equal(array[20:], np.arange(20) * 2 + 20)


@pytest.mark.parametrize("shift", [1, 2, 4, 8, 15])
def test_memory_at_another_address_is_refused(device, shift):
    array = owned(32, np.uint8, shift)
    with pytest.raises(BufferCreationError, match="multiple of 16; copy the data instead"):
        device.upload(array, copy=False)
    watch = weakref.ref(array)
    del array
    assert watch() is None


@pytest.mark.parametrize("offset", [0, 16, 4096, 4112])
def test_a_mapped_file_is_wrapped(device, tmp_path, offset):
    path = tmp_path / "weights.bin"
    data = np.random.default_rng(0).integers(0, 256, 10000, np.uint8)
    path.write_bytes(data.tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(mapped)[offset : offset + 5000]
    with device.upload(view, copy=False) as buffer:
        assert buffer.read_only
        np.testing.assert_array_equal(contents(buffer, np.uint8), data[offset : offset + 5000])
        del view
        with pytest.raises(BufferError):
            mapped.close()  # The buffer holds it.
    mapped.close()


def test_a_mapped_file_at_an_odd_offset_is_refused(device, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(9000))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for offset in (1, 4095, 4097, 4100):
        with pytest.raises(BufferCreationError, match="multiple of 16"):
            device.upload(memoryview(mapped)[offset:], copy=False)
    gc.collect()
    mapped.close()


def test_read_only_memory_stays_as_it_is(device):
    array = owned(64)
    array[:] = 7
    array.flags.writeable = False
    with device.upload(array, copy=False) as buffer:
        assert buffer.read_only
        assert memoryview(buffer).readonly
        assert not np.frombuffer(buffer, np.uint8).flags.writeable
        for call, text in (
            (lambda: buffer.write(b"abc"), "read-only"),
            (lambda: buffer.fill(0), "read-only"),
            (lambda: buffer.read(buffer), "read-only"),
        ):
            with pytest.raises(ValueError, match=text):
                call()
        with pytest.raises((BufferError, TypeError)):
            ctypes.c_char.from_buffer(buffer)
        assert (array == 7).all()


def dispatch_and_run(commands, pipeline, buffers, args):
    commands.dispatch(pipeline, buffers, args, threadgroups=1)
    commands.replay()


@pytest.mark.device("cpu")
def test_a_kernel_is_not_dispatched_over_read_only_memory_it_would_write(device):
    # bytes are immutable for Python, and a page mapped read-only ends the process when written.
    frozen = bytes(range(64)) + bytes(64)
    before = bytes(bytearray(frozen))
    aligned = memoryview(frozen)[-np.frombuffer(frozen, np.uint8).ctypes.data % 16 :][:64]
    args = np.array([4, 0, 0, 0], np.uint32)
    with (
        device.upload(aligned, copy=False) as target,
        device.buffer(64) as source,
        device.commands() as commands,
    ):
        pipeline = device.pipeline("residual_add")
        with pytest.raises(EncodingError, match="read-only"):
            commands.add(source, target, 4)
        with pytest.raises(EncodingError, match="read-only"):
            dispatch_and_run(commands, pipeline, [source, target], args)
    assert frozen == before


def test_the_owner_lives_as_long_as_the_buffer(device):
    array = owned()
    watch = weakref.ref(array)
    buffer = device.upload(array, copy=False)
    del array
    gc.collect()
    assert watch() is not None
    buffer.close()
    assert watch() is None


def test_the_owner_is_let_go_without_close(device):
    array = owned()
    watch = weakref.ref(array)
    buffer = device.upload(array, copy=False)
    del array, buffer
    assert watch() is None


def test_recorded_commands_keep_the_owner(device):
    array = owned(16, np.float32)
    array[:] = 1
    watch = weakref.ref(array)
    commands = device.commands()
    with device.upload(array, copy=False) as buffer:
        commands.add(buffer, buffer, 16)
    del array
    gc.collect()
    assert watch() is not None
    commands.replay()
    assert (watch() == 2).all()
    commands.close()
    assert watch() is None


def test_an_owner_in_a_cycle_with_its_buffer_is_let_go_once_closed(device):
    array = owned()
    array.buffer = device.upload(array, copy=False)
    watch = weakref.ref(array)
    array.buffer.close()
    del array
    gc.collect()
    assert watch() is None


@pytest.mark.parametrize("nbytes", [1, 17, 4095, 4096, 4097])
def test_memory_of_any_length_is_wrapped(device, nbytes):
    array = owned(nbytes)
    array[:] = 3
    with device.upload(array, copy=False) as buffer:
        assert buffer.nbytes == nbytes
        assert (contents(buffer, np.uint8) == 3).all()


def test_wrapped_memory_is_shared_storage(device):
    with pytest.raises(ValueError, match="is 'shared'"):
        device.upload(owned(), copy=False, storage="private")


def test_a_buffer_wraps_the_memory_of_another(device, device_name):
    with device.buffer(64) as first, Device(device_name) as other:
        with other.upload(first, copy=False) as second:
            second.fill(9)
            with pytest.raises(BufferError, match="exported view"):
                first.close()
        assert (contents(first, np.uint8) == 9).all()
