"""The reference design's MetalGraph, row by row, and what it got wrong.

A test whose name starts with `test_repaired` fails on what the reference does.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import reference
from cases import activations, close_to, dense, encode, random_weight, run_python, upload

from oxibonsai import metal, quant
from oxibonsai.metal import (
    BufferCreationError,
    CompilationError,
    Device,
    DeviceNotFoundError,
    EncodingError,
    ExecutionError,
    MetalGraph,
    MetalGraphError,
)

Q1, TQ2 = "Q1_0", "TQ2_0_g128"


def product_is_right(q, x, y):
    w64 = dense(q)
    r = reference.gemv(w64, x)
    close_to(y, r, reference.gemv_bound(w64, x, r))


# new(), global(), device()


def test_new_opens_the_default_device(monkeypatch, device_name):
    monkeypatch.setenv("OXIBONSAI_DEVICE", device_name)
    graph = MetalGraph()
    assert f"{graph.device.driver}:{graph.device.index}" == device_name


def test_new_takes_a_device_or_its_name(device_name):
    with Device(device_name) as device:
        assert MetalGraph(device).device is device
    assert MetalGraph(device_name).device.driver == device_name.partition(":")[0]


def test_new_raises_where_there_is_no_device(monkeypatch):
    monkeypatch.setenv("OXIBONSAI_DEVICE", "nonexistent")
    with pytest.raises(DeviceNotFoundError, match="nonexistent"):
        MetalGraph()
    for bad in (7, b"cpu"):
        with pytest.raises(TypeError, match="named by a str"):
            MetalGraph(bad)


def test_shared_is_one_object_and_a_failed_first_try_is_not_remembered(monkeypatch):
    MetalGraph.shared().close()
    monkeypatch.setenv("OXIBONSAI_DEVICE", "nonexistent")
    for _ in range(2):
        with pytest.raises(DeviceNotFoundError, match="nonexistent"):
            MetalGraph.shared()
    monkeypatch.delenv("OXIBONSAI_DEVICE")
    graph = MetalGraph.shared()
    found = []
    threads = [threading.Thread(target=lambda: found.append(MetalGraph.shared())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(other is graph for other in found)
    assert len(found) == 8
    # Once there, the environment no longer matters.
    monkeypatch.setenv("OXIBONSAI_DEVICE", "nonexistent")
    assert MetalGraph.shared() is graph


@pytest.mark.parametrize("closed", ["graph", "device"])
def test_a_closed_shared_graph_is_replaced(monkeypatch, closed):
    monkeypatch.delenv("OXIBONSAI_DEVICE", raising=False)
    first = MetalGraph.shared()
    (first if closed == "graph" else first.device).close()
    second = MetalGraph.shared()
    assert second is not first
    assert not second.closed
    assert MetalGraph.shared() is second


def test_device_is_the_device(device, graph):
    assert graph.device is device


def test_a_closed_graph_refuses_everything_and_drops_what_it_held(device):
    graph = MetalGraph(device)
    handle = graph.get_or_upload_q1_weight_soa(1, random_weight(Q1, 4, 128))
    x, y = activations(128), np.zeros(4, np.float32)
    graph.encode_gemv(handle, x, y)
    with graph as same:
        assert same is graph
    graph.close()
    assert graph.closed
    assert "closed" in repr(graph)
    assert len(graph.weights) == 0
    for call in (
        lambda: graph.upload_weight(b"abc"),
        lambda: graph.upload_weight_soa(bytes(18), Q1),
        lambda: graph.upload_q1_weight_soa(bytes(18)),
        lambda: graph.upload_tq2_weight_soa(bytes(34)),
        lambda: graph.upload_f32_weight(x),
        lambda: graph.get_or_upload_weight(1, b"abc"),
        lambda: graph.get_or_upload_f32_weight(1, x),
        lambda: graph.encode_gemv(handle, x, y),
        lambda: graph.encode_gemv_tq2(handle, x, y),
        lambda: graph.encode_qkv_phase(x, y, handle),
        lambda: graph.encode_ffn_phase(y, x, x, handle, handle, handle),
        lambda: graph.acquire_buffers(4, 4),
        lambda: graph.commands(),
        graph.__enter__,
    ):
        with pytest.raises(EncodingError, match="the graph is closed: make a new MetalGraph"):
            call()
    # The handle is its holder's: another graph on the device takes it.
    MetalGraph(device).encode_gemv(handle, x, y)


# upload_weight


def test_upload_weight_holds_the_bytes(device, graph):
    before = device.stats.allocated_bytes
    handle = graph.upload_weight(b"0123456789")
    assert (handle.byte_len, handle.nbytes) == (10, 10)
    assert (handle.format, handle.shape, handle.device_format) == ("raw", None, None)
    assert device.stats.allocated_bytes - before == 10


@pytest.mark.parametrize("upload_name", ["upload_weight", "upload_f32_weight"])
def test_upload_weight_of_nothing_is_a_buffer_creation_error(graph, upload_name):
    with pytest.raises(BufferCreationError, match="empty"):
        getattr(graph, upload_name)(np.zeros(0, np.float32))


@pytest.mark.device("cpu")
def test_repaired_a_buffer_that_was_not_given_is_an_error():
    # The reference did not look whether the device gave a buffer. Here the system gives no memory.
    run_python(
        """
        import mmap, resource, sys
        from oxibonsai import metal
        if sys.platform != "linux":
            raise SystemExit  # Only Linux holds a process to RLIMIT_AS.
        graph = metal.MetalGraph("cpu")
        data = mmap.mmap(-1, 18 << 24)
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * mmap.PAGESIZE + (32 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for upload in (graph.upload_weight, graph.upload_q1_weight_soa):
            try:
                upload(data)
            except metal.BufferCreationError as error:
                assert "no memory for a buffer of" in str(error), error
                assert isinstance(error, MemoryError)
            else:
                raise AssertionError("the upload had no memory")
        assert graph.device.stats.buffers == 0
        assert graph.upload_weight(b"abc").nbytes == 3
        """
    )


def test_repaired_a_raw_handle_in_a_gemv_names_the_right_upload(device, graph):
    # The reference ran its kernel over the raw blocks and gave garbage.
    q = random_weight(Q1, 4, 128)
    handle = graph.upload_weight(q)
    x, y = activations(128), np.zeros(4, np.float32)
    norm = graph.upload_f32_weight(x)
    good = upload(graph, random_weight(Q1, 128, 128))
    calls = [
        lambda: graph.encode_gemv(handle, x, y, 4, 128),
        lambda: graph.encode_gemv_tq2(handle, x, y, 4, 128),
        lambda: graph.encode_qkv_phase(x, y, handle, 4, 128),
        lambda: graph.encode_ffn_phase(x, x, norm, handle, good, good, 128, 64),
    ]
    with device.commands() as commands, device.buffer(1024) as b:
        calls.append(lambda: commands.gemv(handle, b, b, 4, 128))
        for call in calls:
            with pytest.raises(
                EncodingError, match=r"72 raw bytes.*upload_q1_weight_soa or upload_tq2_weight_soa"
            ):
                call()
    assert not y.any()


# get_or_upload_weight and the cache

KINDS = {
    "raw": ("get_or_upload_weight", lambda n: bytes(72 * n)),
    "q1": ("get_or_upload_q1_weight_soa", lambda n: bytes(18 * n)),
    "tq2": ("get_or_upload_tq2_weight_soa", lambda n: bytes(34 * n)),
    "f32": ("get_or_upload_f32_weight", lambda n: np.zeros(5 * n, np.float32)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_lazy_kind = pytest.mark.parametrize("kind", ["raw", "q1", "tq2"])


@every_kind
def test_a_hit_gives_the_same_handle_and_uploads_nothing(device, graph, kind):
    method, make = KINDS[kind]
    get = getattr(graph, method)
    handle = get(3, make(2))
    before = device.stats
    assert get(3, make(2)) is handle
    assert device.stats == before
    assert len(graph.weights) == 1
    assert (kind, 3) in graph.weights
    assert graph.weights.nbytes == handle.nbytes


@every_kind
def test_repaired_a_hit_with_another_length_raises(graph, kind):
    # The reference gave the old weight without a word.
    method, make = KINDS[kind]
    get = getattr(graph, method)
    handle = get(3, make(2))
    text = rf"weight 3 \({kind}\) is cached with {handle.byte_len} bytes.*evict\(\)"
    for other in (make(1), make(3)):
        with pytest.raises(EncodingError, match=text):
            get(3, other)
    assert get(3, make(2)) is handle


def test_a_hit_with_another_format_or_shape_raises(graph):
    q = random_weight("PQ2_0", 4, 128)
    handle = graph.get_or_upload_tq2_weight_soa(1, q)
    with pytest.raises(EncodingError, match="is cached as PQ2_0, the call gives TQ2_0_g128"):
        graph.get_or_upload_tq2_weight_soa(1, random_weight(TQ2, 4, 128))
    with pytest.raises(EncodingError, match=r"is cached as \(4, 128\), the call gives \(2, 256\)"):
        graph.get_or_upload_tq2_weight_soa(1, q.data, (2, 256))
    assert graph.get_or_upload_tq2_weight_soa(1, q.data) is handle
    assert graph.get_or_upload_tq2_weight_soa(1, q, (4, 128)) is handle


def test_repaired_each_kind_of_upload_has_its_own_keys(graph):
    # The reference had one key space: the second upload got the first one's handle.
    handles = {kind: getattr(graph, method)(7, make(2)) for kind, (method, make) in KINDS.items()}
    assert len({id(handle) for handle in handles.values()}) == len(graph.weights) == 4
    formats = {kind: handle.format for kind, handle in handles.items()}
    assert formats == {"raw": "raw", "q1": "Q1_0", "tq2": "TQ2_0_g128", "f32": "F32"}


@every_lazy_kind
def test_a_lazy_producer_runs_on_a_miss_only(graph, kind):
    method, make = KINDS[kind]
    lazy = getattr(graph, f"{method}_lazy")
    calls = []

    def produce():
        calls.append(1)
        return make(2)

    handle = lazy(1, produce)
    assert lazy(1, produce) is handle
    assert getattr(graph, method)(1, make(2)) is handle
    assert len(calls) == 1
    assert graph.weights.evict(1) == 1
    assert lazy(1, produce) is not handle
    assert len(calls) == 2


@every_lazy_kind
def test_repaired_a_lazy_producer_runs_outside_the_lock(graph, kind):
    # In the reference the other thread waits for the producer, which waits for the other thread.
    method, make = KINDS[kind]
    lazy, get = getattr(graph, f"{method}_lazy"), getattr(graph, method)
    seen = []

    def produce():
        other = threading.Thread(target=lambda: seen.append(get(2, make(1))))
        other.start()
        other.join(30)
        assert not other.is_alive(), "another thread cannot use the cache while a producer runs"
        seen.append(get(2, make(1)))
        return make(3)

    lazy(1, produce)
    assert seen[0] is seen[1]
    assert len(graph.weights) == 2


def test_keys_are_unsigned_64_bit_numbers(graph):
    for key in (0, 1, 2**32, 2**64 - 1):
        assert graph.get_or_upload_weight(key, b"abc") is graph.get_or_upload_weight(key, b"abc")
    assert len(graph.weights) == 4
    for bad in (-1, 2**64):
        with pytest.raises(EncodingError, match=rf"key = {bad} must lie in 0\.\.2\*\*64 - 1"):
            graph.get_or_upload_weight(bad, b"abc")


def test_evict_and_clear_forget_weights(device, graph):
    for kind, (method, make) in KINDS.items():
        getattr(graph, method)(1, make(1))
        getattr(graph, method)(2, make(1))
        assert (kind, 1) in graph.weights
    assert graph.weights.evict(1, "q1") == 1
    assert ("q1", 1) not in graph.weights
    assert graph.weights.evict(1, "q1") == 0
    assert graph.weights.evict(1) == 3
    assert len(graph.weights) == 4
    held = graph.get_or_upload_weight(2, bytes(72))
    graph.weights.clear()
    assert (len(graph.weights), graph.weights.nbytes) == (0, 0)
    assert held.nbytes == 72  # Its holder has it still.
    assert device.stats.buffers == 1


def test_a_cached_handle_that_was_closed_is_uploaded_again(graph):
    first = graph.get_or_upload_weight(1, b"abc")
    first.close()
    second = graph.get_or_upload_weight(1, b"abcdef")
    assert second is not first
    assert second.byte_len == 6


# The SoA uploads


@pytest.mark.parametrize(("name", "label", "size"), [(Q1, "Q1", 18), (TQ2, "TQ2", 34)])
@pytest.mark.parametrize("extra", [-1, 1, 17])
def test_a_length_of_no_whole_blocks_has_the_references_words(graph, name, label, size, extra):
    n = 5 * size + extra
    kind = label.lower()
    text = f"{label} SoA reformat failed: input length {n} is not a multiple of {size}"
    for call in (
        lambda: getattr(graph, f"upload_{kind}_weight_soa")(bytes(n)),
        lambda: getattr(graph, f"get_or_upload_{kind}_weight_soa")(1, bytes(n)),
        lambda: getattr(graph, f"get_or_upload_{kind}_weight_soa_lazy")(1, lambda: bytes(n)),
        lambda: graph.upload_weight_soa(bytes(n), name),
    ):
        with pytest.raises(EncodingError) as caught:
            call()
        assert str(caught.value) == text
    assert len(graph.weights) == 0


@pytest.mark.parametrize("kind", ["q1", "tq2"])
def test_an_empty_upload_is_refused(graph, kind):
    with pytest.raises(EncodingError, match="SoA reformat failed: input length 0"):
        getattr(graph, f"upload_{kind}_weight_soa")(b"")


@pytest.mark.parametrize("name", [Q1, TQ2, "Q2_0"])
def test_repaired_codes_start_at_16_bytes_for_every_number_of_blocks(device, graph, name):
    # In the reference they started right after the scales: at 2, 4, 6... bytes.
    k = 64 if name == "Q2_0" else 128
    for n_blocks in range(1, 18):
        q = random_weight(name, n_blocks, k)
        assert metal.reformat(q.data, name)[1] % 16 == 0
        # Without a shape the layout is the plain one on every device.
        with upload(graph, q, plain=True) as handle:
            assert handle.byte_len == q.nbytes
            scales = 2 * n_blocks
            assert handle.nbytes == q.nbytes - scales + -(-scales // 16) * 16
            x, y = activations(k), np.zeros(n_blocks, np.float32)
            encode(graph, handle, x, y, n_blocks, k)
        product_is_right(q, x, y)


def test_handles_know_what_they_hold(graph):
    q = random_weight(Q1, 3, 256)
    shaped, plain = graph.upload_q1_weight_soa(q), graph.upload_q1_weight_soa(q.data)
    given = graph.upload_q1_weight_soa(q.data.tobytes(), shape=(3, 256))
    assert shaped.shape == given.shape == (3, 256)
    assert plain.shape is None
    for handle in (shaped, plain, given):
        assert (handle.format, handle.device_format) == ("Q1_0", "q1_g128")
        assert handle.byte_len == 3 * 36
        assert handle.device is graph.device
    assert plain.nbytes == 16 + 3 * 32
    # The layout is the device's choice where it knows the shape.
    assert shaped.nbytes == given.nbytes >= plain.nbytes
    vector = graph.upload_f32_weight(activations(5))
    assert (vector.shape, vector.format, vector.byte_len) == ((5,), "F32", 20)


def test_a_closed_handle_refuses_everything(graph):
    handle = upload(graph, random_weight(Q1, 3, 128))
    with handle as same:
        assert same is handle
    handle.close()
    assert handle.closed
    assert "closed" in repr(handle)
    for call in (
        lambda: handle.nbytes,
        handle.__enter__,
        lambda: graph.encode_gemv(handle, activations(128), np.zeros(3, np.float32)),
    ):
        with pytest.raises(EncodingError, match="the weight handle is closed"):
            call()


@pytest.mark.parametrize("shape", [(4, 128), (1, 512), (2, 128), (8, 256), (4, 255), (3, 100)])
def test_repaired_an_upload_checks_its_shape_against_the_bytes(graph, shape):
    data = random_weight(Q1, 2, 256).data  # 4 blocks
    if shape in ((4, 128), (1, 512)):
        assert graph.upload_q1_weight_soa(data, shape).shape == shape
        return
    with pytest.raises(EncodingError, match=r"takes \d+ bytes, the input has 72|not a multiple"):
        graph.upload_q1_weight_soa(data, shape)


@pytest.mark.parametrize(
    "shape", [(), (4,), (4, 128, 1), "ab", 4, (0, 128), (4, 0), (-4, 128), (2**31, 128), (4, 2**32)]
)
def test_a_shape_that_is_none_is_refused(graph, shape):
    with pytest.raises(EncodingError, match=r"a matrix is \(n_rows, k\)|must lie in"):
        graph.upload_q1_weight_soa(bytes(72), shape)


def test_a_tensor_goes_to_the_upload_of_its_format(graph):
    one, two, full = (random_weight(name, 2, 256) for name in (Q1, "TQ2_0", "F16"))
    for method, tensor, right in (
        (graph.upload_q1_weight_soa, two, "upload_tq2_weight_soa"),
        (graph.upload_tq2_weight_soa, one, "upload_q1_weight_soa"),
        (graph.upload_q1_weight_soa, full, "upload_weight_soa"),
        (graph.upload_tq2_weight_soa, full, "upload_weight_soa"),
    ):
        with pytest.raises(EncodingError, match=f"is {tensor.format}: upload it with {right}$"):
            method(tensor)
    with pytest.raises(EncodingError, match="the tensor is Q1_0, not F16"):
        graph.upload_weight_soa(one, "F16")
    with pytest.raises(EncodingError, match=r"shape = \(4, 128\), the tensor is \(2, 256\)"):
        graph.upload_q1_weight_soa(one, (4, 128))
    with pytest.raises(EncodingError, match="give the format of the bytes"):
        graph.upload_weight_soa(bytes(18))
    with pytest.raises(EncodingError, match="unknown weight format 'Q9'"):
        graph.upload_weight_soa(bytes(18), "Q9")


# encode_gemv, encode_gemv_tq2


@pytest.mark.parametrize("name", [Q1, TQ2])
def test_gemv_is_the_product_and_its_output_is_filled(graph, name):
    q = random_weight(name, 33, 256)
    x, y = activations(256), np.full(33, np.nan, np.float32)
    with upload(graph, q) as handle:
        encode(graph, handle, x, y, 33, 256)
    product_is_right(q, x, y)


@pytest.mark.parametrize("name", [Q1, TQ2])
def test_short_arrays_have_the_references_words(graph, name):
    handle = upload(graph, random_weight(name, 33, 256))
    x, y = activations(256), np.zeros(33, np.float32)
    with pytest.raises(EncodingError) as caught:
        encode(graph, handle, x[:255], y)
    assert str(caught.value) == "input too short: need 256, got 255"
    with pytest.raises(EncodingError) as caught:
        encode(graph, handle, x, y[:32])
    assert str(caught.value) == "output too short: need 33, got 32"
    with pytest.raises(EncodingError, match="input too short: need 256, got 0"):
        encode(graph, handle, x[:0], y)
    assert not y.any()


def test_a_weight_of_the_other_family_names_the_right_call(graph):
    x, y = activations(256), np.zeros(4, np.float32)
    one, two, full = (upload(graph, random_weight(n, 4, 256)) for n in (Q1, TQ2, "F32"))
    for call, handle, right in (
        (graph.encode_gemv, two, "encode_gemv_tq2"),
        (graph.encode_gemv_tq2, one, "encode_gemv"),
        (graph.encode_gemv, full, "encode_qkv_phase"),
        (graph.encode_gemv_tq2, full, "encode_qkv_phase"),
    ):
        with pytest.raises(EncodingError, match=f"use {right}$"):
            call(handle, x, y)
    assert not y.any()


def test_repaired_no_buffers_are_made_for_a_call(device, graph):
    # The reference made two for every product, and gave them back.
    q = random_weight(Q1, 40, 256)
    handle = upload(graph, q)
    x, y = activations(256), np.zeros(40, np.float32)
    before = device.stats
    graph.encode_gemv(handle, x, y)
    first = device.stats
    assert first.buffers == before.buffers + 2
    for _ in range(100):
        graph.encode_gemv(handle, x, y)
        assert device.stats.buffers == first.buffers
        assert device.stats.allocated_bytes == first.allocated_bytes
    assert device.stats.submissions - first.submissions == 100


@pytest.mark.parametrize("plain", [False, True], ids=["shaped", "plain"])
@pytest.mark.parametrize("name", [Q1, TQ2])
@pytest.mark.parametrize("call", [(16, 256), (8, 512), (9, 256), (7, 256), (8, 128), (1, 2048)])
def test_repaired_a_weight_that_does_not_match_the_call_is_refused(graph, name, plain, call):
    # The reference read past the end of the weight, or a part of it.
    handle = upload(graph, random_weight(name, 8, 256), plain)
    x, y = activations(4096), np.zeros(64, np.float32)
    if plain and call == (1, 2048):
        encode(graph, handle, x, y, *call)  # The same bytes as one long row: nobody can tell.
        return
    with pytest.raises(EncodingError, match=r"the weight (is 8 x 256|holds \d+)"):
        encode(graph, handle, x, y, *call)
    assert not y.any()


@pytest.mark.parametrize("k", [1, 64, 127, 129, 192, 255])
def test_repaired_a_k_that_is_no_multiple_of_the_group_is_refused(graph, k):
    # The reference left the last weights of each row out.
    x, y = activations(256), np.zeros(256, np.float32)
    for name in (Q1, TQ2):
        handle = upload(graph, random_weight(name, 8, 256), plain=True)
        with pytest.raises(EncodingError, match=rf"k = {k} is not a multiple of 128, the group of"):
            encode(graph, handle, x, y, 8, k)
    assert not y.any()
    with pytest.raises(EncodingError, match=f"k = {k} is not a multiple of 128, the block of Q1_0"):
        graph.upload_q1_weight_soa(bytes(18), (1, k))


@pytest.mark.parametrize("plain", [False, True], ids=["shaped", "plain"])
@pytest.mark.parametrize("call", [(8 + 2**32, 256), (8, 256 + 2**32), (2**31, 256), (8, 2**33)])
def test_repaired_sizes_past_32_bits_do_not_wrap(graph, plain, call):
    # The reference cast them to u32: 2**32 + 8 rows were 8.
    handle = upload(graph, random_weight(Q1, 8, 256), plain)
    x, y = activations(256), np.zeros(8, np.float32)
    with pytest.raises(EncodingError, match=r"must lie in 1\.\.2147483647"):
        graph.encode_gemv(handle, x, y, *call)
    assert not y.any()


def test_a_plain_handle_needs_the_sizes(graph):
    handle = upload(graph, random_weight(Q1, 8, 256), plain=True)
    for sizes in ((), (8,), (None, 256)):
        with pytest.raises(EncodingError, match="uploaded without a shape: give n_rows and k"):
            graph.encode_gemv(handle, activations(256), np.zeros(8, np.float32), *sizes)


# encode_ffn_phase, encode_qkv_phase


def small_layer(graph, attn):
    w = np.random.default_rng(4).standard_normal
    matrices = [w((128, attn)), w((512, 128)), w((128, 256))]
    tensors = [quant.quantize(m / 8, name) for m, name in zip(matrices, (Q1, TQ2, Q1), strict=True)]
    return tensors, [upload(graph, q) for q in tensors]


@pytest.mark.parametrize("attn", [128, 256, 384])
def test_repaired_the_output_projection_takes_its_k_from_the_attention(graph, attn):
    # The reference took it as hidden x hidden: wrong for the 4B model, 2560 x 4096.
    tensors, handles = small_layer(graph, attn)
    hidden, attn_out, norm = activations(128), activations(attn, 1), 1 + activations(128, 2) / 4
    r = reference.ffn_phase(hidden, attn_out, norm, *(dense(q) for q in tensors), 1e-6)
    graph.encode_ffn_phase(hidden, attn_out, norm, *handles, 128, 256, 1e-6)
    assert np.linalg.norm(hidden - r) < 3e-6 * np.linalg.norm(r)


def test_the_ffn_phase_is_one_submission(device, graph):
    _, handles = small_layer(graph, 128)
    before = device.stats.submissions
    graph.encode_ffn_phase(activations(128), activations(128), np.ones(128, np.float32), *handles)
    assert device.stats.submissions - before == 1


def test_the_qkv_phase_is_one_submission(device, graph):
    handle = upload(graph, random_weight(Q1, 96, 128))
    before = device.stats.submissions
    graph.encode_qkv_phase(activations(128), np.zeros(96, np.float32), handle)
    assert device.stats.submissions - before == 1


# acquire_buffers


def test_acquired_buffers_are_those_of_the_phase(graph):
    with graph.acquire_buffers(128, 256, attn=384) as buffers:
        assert [buffer.nbytes // 4 for buffer in buffers] == [128, 384, 128, 256]
    with graph.acquire_buffers(128, 256) as buffers:
        assert [buffer.nbytes // 4 for buffer in buffers] == [128, 128, 128, 256]
    with graph.acquire_buffers(128, 256) as again:
        assert all(a is b for a, b in zip(buffers, again, strict=True))


def test_the_phase_runs_in_the_acquired_buffers(graph):
    _, handles = small_layer(graph, 384)
    hidden = activations(128)
    attn_out = activations(384)
    graph.encode_ffn_phase(hidden, attn_out, np.ones(128, np.float32), *handles)
    with graph.acquire_buffers(128, 256, 384) as buffers:
        np.testing.assert_array_equal(buffers[0].read(np.empty_like(hidden)), hidden)
        np.testing.assert_array_equal(buffers[1].read(np.empty_like(attn_out)), attn_out)


def test_repaired_alternating_shapes_do_not_allocate_for_ever(device, graph):
    # The reference kept one set, and made it anew whenever the shape changed.
    shapes = [(128, 256), (256, 128), (384, 512)]
    for hidden, inter in shapes:
        with graph.acquire_buffers(hidden, inter):
            pass
    before = device.stats
    seen = set()
    for _ in range(10):
        for hidden, inter in shapes:
            with graph.acquire_buffers(hidden, inter) as buffers:
                seen.update(id(buffer) for buffer in buffers)
    assert len(seen) == 12
    assert device.stats.buffers == before.buffers
    assert device.stats.allocated_bytes == before.allocated_bytes


def test_only_a_few_sets_are_kept(device, graph):
    for n in range(1, 40):
        with graph.acquire_buffers(n, n):
            pass
    assert device.stats.buffers <= 8 * 4
    with graph.acquire_buffers(39, 39) as recent:
        held = list(recent)
    with graph.acquire_buffers(39, 39) as again:
        assert all(a is b for a, b in zip(held, again, strict=True))


def test_a_thread_that_holds_the_buffers_gets_an_error_instead_of_a_deadlock(graph):
    _, handles = small_layer(graph, 128)
    norm = graph.upload_f32_weight(np.ones(128, np.float32))
    hidden = activations(128)
    with graph.acquire_buffers(128, 256):
        with pytest.raises(EncodingError, match="this thread holds the intermediate buffers"):
            graph.encode_ffn_phase(hidden, activations(128), norm, *handles)
        with (
            pytest.raises(EncodingError, match="this thread holds the intermediate buffers"),
            graph.acquire_buffers(128, 256),
        ):
            pass
        with graph.acquire_buffers(256, 256):  # Another set is free.
            pass
    graph.encode_ffn_phase(hidden, activations(128), norm, *handles)


def test_buffers_are_given_back_when_the_body_raises(graph):
    with pytest.raises(KeyError, match="body"), graph.acquire_buffers(128, 128):
        raise KeyError("body")
    with graph.acquire_buffers(128, 128):
        pass


@pytest.mark.device("cpu")
def test_a_guard_that_is_left_without_being_entered_is_an_error(device_name):
    run_python(
        f"""
        from oxibonsai import metal
        graph = metal.MetalGraph({device_name!r})
        guard = graph.acquire_buffers(8, 8)

        def refused(call, *arguments):
            try:
                call(*arguments)
            except metal.EncodingError:
                return
            raise AssertionError("was taken")

        refused(guard.__exit__, None, None, None)
        with guard:
            refused(guard.__enter__)
        refused(guard.__exit__, None, None, None)
        with graph.acquire_buffers(8, 8), graph.acquire_buffers(16, 16):
            pass
        """
    )


# errors


def test_the_five_errors_of_the_reference():
    names = {
        DeviceNotFoundError: "DeviceNotFound",
        CompilationError: "CompilationFailed",
        BufferCreationError: "BufferCreationFailed",
        EncodingError: "EncodingFailed",
        ExecutionError: "ExecutionFailed",
    }
    assert [error.code for error in names] == [1, 2, 3, 4, 5]
    assert all(issubclass(error, MetalGraphError) for error in names)
