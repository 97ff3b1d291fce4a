"""One graph, one cache and one device used from many threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import activations, encode, gemv, random_weight, run_python, upload

from oxibonsai import metal
from oxibonsai.metal import EncodingError

pytestmark = [pytest.mark.threads, pytest.mark.usefixtures("fast_switches")]

WAIT = 30.0


def together(n: int, work: Callable[[int], object]) -> list:
    """Run work(0..n-1) in n threads that start at one moment; return the results in order."""
    barrier = threading.Barrier(n)

    def run(i):
        barrier.wait(WAIT)
        return work(i)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(run, range(n), timeout=4 * WAIT))


# The weight cache


def test_threads_that_miss_one_key_upload_it_once(graph):
    q = random_weight("Q1_0", 8, 128)
    produced = []

    def produce():
        produced.append(threading.get_ident())
        time.sleep(0.05)
        return q

    handles = together(8, lambda i: graph.get_or_upload_q1_weight_soa_lazy(7, produce))
    assert len(produced) == 1
    assert all(handle is handles[0] for handle in handles)
    assert len(graph.weights) == 1


def test_threads_with_data_upload_each_key_once(graph):
    tensors = [random_weight("Q1_0", 8, 128, seed=i) for i in range(5)]
    handles = together(
        10,
        lambda i: [
            graph.get_or_upload_q1_weight_soa(key, tensors[key])
            for key in np.random.default_rng(i).permutation(5).tolist() * 4
        ],
    )
    distinct = {id(handle) for row in handles for handle in row}
    assert len(distinct) == len(graph.weights) == 5


def test_other_keys_are_served_while_a_producer_runs(graph):
    ready = graph.get_or_upload_weight(1, b"one")
    inside, go_on = threading.Event(), threading.Event()

    def produce():
        inside.set()
        assert go_on.wait(WAIT)
        return b"two"

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(graph.get_or_upload_weight_lazy, 2, produce)
        assert inside.wait(WAIT)
        # The producer still runs: none of these waits for it.
        assert graph.get_or_upload_weight(1, b"one") is ready
        assert graph.get_or_upload_weight_lazy(3, lambda: b"three").byte_len == 5
        assert graph.get_or_upload_f32_weight(2, activations(4)).byte_len == 16
        assert len(graph.weights) == 3
        assert graph.weights.nbytes > 0
        assert graph.weights.evict(3) == 1
        assert not slow.done()
        go_on.set()
        assert slow.result(WAIT).byte_len == 3


def test_a_producer_that_raises_lets_the_next_thread_try(graph):
    tries = []
    lock = threading.Lock()

    def produce():
        with lock:
            tries.append(1)
            number = len(tries)
        time.sleep(0.01)
        if number <= 3:
            raise KeyError(f"try {number}")
        return b"data"

    def work(i):
        try:
            return graph.get_or_upload_weight_lazy(9, produce)
        except KeyError as error:
            return str(error)

    results = together(6, work)
    failed = [result for result in results if isinstance(result, str)]
    assert sorted(failed) == ["'try 1'", "'try 2'", "'try 3'"]
    assert len({id(r) for r in results if not isinstance(r, str)}) == 1
    assert len(tries) == 4


def test_a_producer_that_raises_leaves_the_cache_as_it_was(graph):
    before = graph.get_or_upload_weight(1, b"one")
    for error in (ValueError, KeyboardInterrupt, SystemExit):

        def produce(error=error):
            raise error("no")

        with pytest.raises(error, match="no"):
            graph.get_or_upload_weight_lazy(2, produce)
        assert len(graph.weights) == 1
        assert graph.get_or_upload_weight(1, b"one") is before
    assert graph.get_or_upload_weight_lazy(2, lambda: b"two").byte_len == 3


def test_a_producer_that_asks_for_its_own_key_is_an_error(graph):
    def produce():
        return graph.get_or_upload_weight_lazy(5, lambda: b"inner")

    with pytest.raises(EncodingError, match=r"producer of weight 5 \(raw\) asks for that weight"):
        graph.get_or_upload_weight_lazy(5, produce)
    assert len(graph.weights) == 0
    assert graph.get_or_upload_weight(5, b"later").byte_len == 5


def test_a_producer_may_ask_for_other_keys(graph):
    def produce():
        assert graph.get_or_upload_weight(6, b"other").byte_len == 5
        assert graph.get_or_upload_f32_weight(5, activations(2)).byte_len == 8
        return b"mine"

    assert graph.get_or_upload_weight_lazy(5, produce).byte_len == 4
    assert len(graph.weights) == 3


def test_producers_that_wait_for_each_other_do_not_hang(graph):
    # Each asks for the other's key: at least one must be told, and nobody may wait for ever.
    barrier = threading.Barrier(2)

    def work(i):
        def produce():
            barrier.wait(WAIT)
            other = graph.get_or_upload_weight_lazy(1 - i, lambda: b"inner")
            return b"x" * other.byte_len

        try:
            return graph.get_or_upload_weight_lazy(i, produce).byte_len
        except EncodingError as error:
            return str(error)

    threads, results = [], {}
    for i in range(2):
        thread = threading.Thread(target=lambda i=i: results.update({i: work(i)}), daemon=True)
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads), "the two threads wait for each other"
    assert len(results) == 2


def test_eviction_and_use_at_once(graph):
    q = random_weight("Q1_0", 8, 128)
    x = activations(128)
    expected = gemv(graph, q, x)

    def work(i):
        for _ in range(60):
            if i % 3 == 0:
                graph.weights.evict(1)
            elif i % 3 == 1 and i > 3:
                graph.weights.clear()
            else:
                y = np.zeros(8, np.float32)
                encode(graph, graph.get_or_upload_q1_weight_soa(1, q), x, y)
                np.testing.assert_array_equal(y, expected)

    together(6, work)


# Phases


def test_many_threads_use_one_graph(graph):
    shapes = [("Q1_0", 40, 256), ("TQ2_0_g128", 17, 512), ("Q2_0", 64, 128), ("F16", 100, 100)]
    cases = []
    for seed, (name, n_rows, k) in enumerate(shapes):
        q, x = random_weight(name, n_rows, k, seed), activations(k, seed)
        cases.append((upload(graph, q), x, gemv(graph, q, x)))

    def work(i):
        for turn in range(40):
            handle, x, expected = cases[(i + turn) % len(cases)]
            y = np.zeros_like(expected)
            encode(graph, handle, x, y)
            np.testing.assert_array_equal(y, expected)

    together(8, work)


def test_many_threads_run_the_ffn_phase_with_states_of_their_own(graph):
    handles = [
        upload(graph, random_weight("Q1_0", *shape, seed=i))
        for i, shape in enumerate([(128, 256), (512, 128), (128, 256)])
    ]
    norm = graph.upload_f32_weight(np.ones(128, np.float32))

    def run(i):
        hidden = activations(128, i)
        graph.encode_ffn_phase(hidden, activations(256, i), norm, *handles)
        return hidden

    expected = [run(i) for i in range(8)]

    def work(i):
        for _ in range(25):
            np.testing.assert_array_equal(run(i), expected[i])

    together(8, work)


def test_more_shapes_than_are_kept_from_many_threads(graph):
    norm = np.ones(128, np.float32)
    proj = upload(graph, random_weight("F32", 128, 8))
    layers = []
    for inter in range(1, 13):
        gate_up = upload(graph, random_weight("Q1_0", 2 * inter, 128))
        down = upload(graph, random_weight("F32", 128, inter))
        hidden = activations(128)
        graph.encode_ffn_phase(hidden, activations(8), norm, proj, gate_up, down)
        layers.append((gate_up, down, hidden))

    def work(i):
        for turn in range(30):
            gate_up, down, expected = layers[(5 * i + turn) % 12]
            hidden = activations(128)
            graph.encode_ffn_phase(hidden, activations(8), norm, proj, gate_up, down)
            np.testing.assert_array_equal(hidden, expected)

    together(6, work)


def test_other_threads_wait_for_the_buffers_that_one_holds(graph):
    handles = [upload(graph, random_weight("Q1_0", *shape)) for shape in [(128, 128), (256, 128)]]
    norm = np.ones(128, np.float32)
    held, done = threading.Event(), threading.Event()

    def phase():
        assert held.wait(WAIT)
        graph.encode_ffn_phase(activations(128), activations(128), norm, *handles, handles[0])
        done.set()

    thread = threading.Thread(target=phase)
    thread.start()
    with graph.acquire_buffers(128, 128) as buffers:
        buffers[3].fill(0x11)
        held.set()
        assert not done.wait(0.2)
        # What is held is not touched meanwhile.
        assert set(buffers[3].read(bytearray(len(buffers[3])))) == {0x11}
    assert done.wait(WAIT)
    thread.join()


def test_phases_of_another_shape_run_while_buffers_are_held(graph):
    q = random_weight("Q1_0", 8, 128)
    with graph.acquire_buffers(128, 128), ThreadPoolExecutor(1) as pool:
        other = pool.submit(gemv, graph, q, activations(128))
        assert other.result(WAIT).shape == (8,)


@pytest.mark.large
def test_python_goes_on_while_a_gemv_runs(graph):
    n_rows, k = 2048, 4096
    q = random_weight("Q8_0", n_rows, k)
    handle = upload(graph, q)
    with graph.device.upload(activations(k)) as x, graph.device.buffer(4 * n_rows) as y:
        commands = graph.commands()
        commands.gemv(handle, x, y)
        start = time.perf_counter()
        commands.replay(3)
        times = max(int(3 * 0.4 / (time.perf_counter() - start)), 3)
        entered = threading.Event()

        def work():
            entered.set()
            commands.replay(times)

        thread = threading.Thread(target=work)
        thread.start()
        entered.wait()
        turns = 0
        while thread.is_alive():
            turns += 1
            time.sleep(0.001)
        thread.join()
    # With the GIL held there would be no turn between the first and the last.
    assert turns > 10


def test_threads_compile_a_pipeline_once_and_share_it(device_name):
    with metal.Device(device_name) as fresh:
        pipelines = together(8, lambda i: fresh.pipeline("rmsnorm"))
        assert {p.info for p in pipelines} == {pipelines[0].info}
        graph = metal.MetalGraph(fresh)
        q, x = random_weight("Q1_0", 20, 128), activations(128)
        results = together(8, lambda i: gemv(graph, q, x))
        for y in results:
            np.testing.assert_array_equal(y, results[0])


def test_devices_open_and_close_in_many_threads(device_name):
    q, x = random_weight("Q1_0", 70, 256), activations(256)
    with metal.Device(device_name) as first:
        expected = gemv(metal.MetalGraph(first), q, x)

    def work(i):
        for _ in range(10):
            with metal.Device(device_name) as device:
                np.testing.assert_array_equal(gemv(metal.MetalGraph(device), q, x), expected)

    together(6, work)


@pytest.mark.device("cpu")
def test_devices_with_different_numbers_of_threads_share_the_pool(device_name):
    q, x = random_weight("Q1_0", 500, 512), activations(512)
    with metal.Device(device_name, threads=1) as device:
        expected = gemv(metal.MetalGraph(device), q, x)

    def work(i):
        with metal.Device(device_name, threads=i + 1) as device:
            graph = metal.MetalGraph(device)
            for _ in range(20):
                np.testing.assert_array_equal(gemv(graph, q, x), expected)

    together(5, work)


# Closing what is in use


@pytest.mark.parametrize("victim", ["handle", "graph", "device"])
def test_closing_what_another_thread_uses_is_an_error_there_and_no_crash(device_name, victim):
    q, x = random_weight("Q1_0", 64, 512), activations(512)
    for _ in range(8):
        device = metal.Device(device_name)
        graph = metal.MetalGraph(device)
        handle = upload(graph, q)
        expected = np.zeros(64, np.float32)
        graph.encode_gemv(handle, x, expected)
        closed = threading.Event()
        turns = []

        target = {"handle": handle, "graph": graph, "device": device}[victim]

        def use(graph=graph, handle=handle, expected=expected, closed=closed, turns=turns):
            while True:
                last = closed.is_set()
                y = np.zeros(64, np.float32)
                graph.encode_gemv(handle, x, y)
                np.testing.assert_array_equal(y, expected)
                turns.append(1)
                assert not last, "a closed object was used"

        def work(i, target=target, closed=closed, turns=turns, use=use):
            if i > 0:
                with pytest.raises(EncodingError, match="closed"):
                    use()
                return
            while len(turns) < 20:
                time.sleep(0)
            target.close()
            closed.set()

        together(4, work)
        device.close()


@pytest.mark.device("cpu")
def test_closing_a_device_while_others_make_things_on_it(device_name):
    run_python(
        f"""
        import sys, threading
        from oxibonsai import metal
        sys.setswitchinterval(1e-6)
        makers = [
            lambda d: d.buffer(64),
            lambda d: d.commands(),
            lambda d: d.pipeline("rmsnorm"),
            lambda d: metal.MetalGraph(d).upload_q1_weight_soa(bytes(18)),
        ]

        def work(device, make, barrier):
            barrier.wait()
            try:
                while True:
                    make(device)
            except metal.EncodingError as error:
                assert "closed" in str(error)

        for turn in range(150):
            device = metal.Device({device_name!r})
            barrier = threading.Barrier(len(makers) + 1)
            threads = [
                threading.Thread(target=work, args=(device, make, barrier)) for make in makers
            ]
            for thread in threads:
                thread.start()
            barrier.wait()
            device.close()
            for thread in threads:
                thread.join()
        """
    )


def test_closing_a_buffer_while_others_read_and_write_it(device):
    for _ in range(10):
        buffer = device.buffer(1 << 16)

        def use(copy):
            memory = np.zeros(1 << 16, np.uint8)
            while True:
                copy(memory)

        def work(i, buffer=buffer, use=use):
            if i == 0:
                time.sleep(2e-3)
                buffer.close()
                return
            with pytest.raises(EncodingError, match="closed"):
                use(buffer.read if i % 2 else buffer.write)

        together(4, work)


def test_buffers_are_made_and_dropped_in_many_threads(device):
    def work(i):
        for n in range(60):
            buffer = device.buffer(1 + 997 * n)
            buffer.fill(i)
            assert (np.frombuffer(buffer, np.uint8) == i).all()

    together(6, work)


def test_the_shared_graph_is_one_for_all_threads():
    graphs = together(8, lambda i: metal.MetalGraph.shared())
    assert all(graph is graphs[0] for graph in graphs)


def test_messages_belong_to_the_thread_that_failed(device):
    def work(i):
        for n in range(100):
            nbytes = 2**62 + 1000 * i + n
            with pytest.raises(MemoryError, match=f"{nbytes} bytes"):
                device.buffer(nbytes)

    together(6, work)
