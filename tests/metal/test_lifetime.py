"""The ends of objects: in any order, in cycles, without a collector, at exit and after fork."""

from __future__ import annotations

import gc
import itertools
import os
import weakref

import numpy as np
import pytest
from cases import activations, contents, encode, random_weight, run_python, upload

from oxibonsai import metal

KINDS = ("device", "graph", "handle", "buffer", "commands")


class Memory(np.ndarray):
    """Memory whose end can be watched."""


def aligned(n):
    memory = np.zeros(4 * n + 64, np.uint8).view(Memory)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * n].view(np.float32)


def make(device_name):
    """Return one object of each kind, used once, and a watch on the memory that they wrap."""
    device = metal.Device(device_name)
    graph = metal.MetalGraph(device)
    handle = upload(graph, random_weight("Q1_0", 16, 128))
    memory = aligned(128)
    buffer = device.upload(memory, copy=False)
    commands = device.commands()
    out = device.buffer(64)
    commands.gemv(handle, buffer, out)
    commands.submit(2)
    encode(graph, handle, activations(128), np.zeros(16, np.float32))
    made = dict(zip(KINDS, (device, graph, handle, buffer, commands), strict=True))
    return made, weakref.ref(memory)


@pytest.mark.parametrize("close", [False, True], ids=["drop", "close"])
def test_objects_end_in_any_order(device_name, close):
    for order in itertools.permutations(KINDS):
        made, watch = make(device_name)
        for kind in order:
            if close:
                made[kind].close()
            del made[kind]
        assert watch() is None, order


def test_the_rest_works_after_some_have_gone(device_name):
    for gone in itertools.combinations(KINDS, 2):
        made, _ = make(device_name)
        for kind in gone:
            del made[kind]
        if "commands" in made:
            made["commands"].wait()
            made["commands"].replay(2)
        if {"graph", "handle"} <= set(made):
            encode(made["graph"], made["handle"], activations(128), np.zeros(16, np.float32))
        if "buffer" in made:
            assert not contents(made["buffer"]).any()
        if "device" in made:
            assert made["device"].buffer(8).nbytes == 8


def test_nothing_waits_for_the_collector(device):
    before = device.stats
    gc.collect()
    gc.disable()
    try:
        graph = metal.MetalGraph(device)
        handle = graph.get_or_upload_q1_weight_soa(1, random_weight("Q1_0", 16, 128))
        buffer, commands = device.buffer(512), device.commands()
        commands.gemv(handle, buffer, device.buffer(64))
        commands.replay()
        encode(graph, handle, activations(128), np.zeros(16, np.float32))
        with graph.acquire_buffers(128, 128) as held:
            assert len(held) == 4
        assert device.stats.buffers > before.buffers
        del graph, handle, buffer, commands, held
        assert device.stats.buffers == before.buffers
        assert device.stats.allocated_bytes == before.allocated_bytes
    finally:
        gc.enable()


def test_a_device_ends_with_its_last_reference(device_name):
    for child in ("buffer", "graph", "commands"):
        device = metal.Device(device_name)
        watch = weakref.ref(device)
        made = {
            "buffer": lambda d: d.buffer(8),
            "graph": metal.MetalGraph,
            "commands": lambda d: d.commands(),
        }[child](device)
        del device
        assert watch() is not None  # The child holds it.
        del made
        assert watch() is None


@pytest.mark.parametrize("kind", KINDS)
def test_objects_in_a_reference_cycle_are_collected(device, kind):
    before = device.stats.buffers
    graph = metal.MetalGraph(device)
    handle = graph.upload_f32_weight(activations(64))
    made = {
        "device": metal.Device(f"{device.driver}:{device.index}"),
        "graph": graph,
        "handle": handle,
        "buffer": device.buffer(64),
        "commands": device.commands(),
    }
    made["commands"].add(made["buffer"], device.buffer(64), 16)
    watches = [weakref.ref(made[name]) for name in KINDS if name != "commands"]

    class Node:
        pass

    node = Node()
    node.itself = node
    node.first, node.rest = made[kind], list(made.values())
    node.rest.append(node.rest)
    del node, made, graph, handle
    gc.collect()
    assert [watch() for watch in watches] == [None] * len(watches)
    assert device.stats.buffers == before


def test_a_cycle_through_a_cached_graph_is_collected(device_name):
    class Model:
        def __init__(self):
            self.graph = metal.MetalGraph(device_name)
            self.weight = self.graph.get_or_upload_weight_lazy(1, self.produce)

        def produce(self):
            return bytes(100)

    model = Model()
    model.again = model
    watch = weakref.ref(model.graph)
    del model
    gc.collect()
    assert watch() is None


def test_a_finaliser_may_use_the_device_while_it_is_collected(device):
    seen = []

    class Node:
        def __del__(self):
            # Runs inside the collection that ends the cycle.
            seen.append(contents(self.buffer)[0])
            self.commands.replay()
            seen.append(contents(self.buffer)[0])

    node = Node()
    node.itself = node
    node.buffer = device.upload(np.ones(4, np.float32))
    node.commands = device.commands()
    node.commands.add(node.buffer, node.buffer, 4)
    del node
    gc.collect()
    assert seen == [1, 2]


def test_a_weight_handle_closed_after_use_gives_its_memory_back(device, graph):
    q = random_weight("Q1_0", 1024, 1024)
    x, y = activations(1024), np.zeros(1024, np.float32)
    encode(graph, upload(graph, random_weight("Q1_0", 1, 1024)), x, y)
    before = device.stats.allocated_bytes
    handle = upload(graph, q)
    encode(graph, handle, x, y)
    assert device.stats.allocated_bytes > before
    handle.close()
    # Whoever closed the last user of a weight counts on the memory: a model may take half of it.
    assert device.stats.allocated_bytes <= before


def test_evicted_weights_give_their_memory_back(device, graph):
    x, y = activations(1024), np.zeros(1024, np.float32)
    graph.encode_gemv(graph.upload_q1_weight_soa(bytes(18 * 8), (1, 1024)), x, y)
    before = device.stats.allocated_bytes
    for key in range(3):
        q = random_weight("Q1_0", 1024, 1024, key)
        encode(graph, graph.get_or_upload_q1_weight_soa(key, q), x, y)
    assert graph.weights.evict(0) == graph.weights.evict(1) == 1
    graph.weights.clear()
    assert device.stats.allocated_bytes <= before


@pytest.mark.device("cpu")
def test_closing_the_buffers_of_a_phase_does_not_break_the_phase(device_name):
    run_python(
        f"""
        import numpy as np
        from oxibonsai import metal
        from cases import activations, random_weight, upload
        graph = metal.MetalGraph({device_name!r})
        shapes = [(128, 128), (256, 128)]
        handles = [upload(graph, random_weight("Q1_0", *shape)) for shape in shapes]
        hidden, norm = activations(128), np.ones(128, np.float32)

        def phase():
            out = hidden.copy()
            graph.encode_ffn_phase(out, hidden, norm, *handles, handles[0])
            return out

        expected = phase()
        with graph.acquire_buffers(128, 128) as buffers:
            for buffer in list(buffers):
                buffer.close()
        others = [graph.device.upload(np.full(128, np.nan, np.float32)) for _ in range(20)]
        assert (phase() == expected).all()
        """
    )


# The end of the process

LIVE = """
    import threading
    import numpy as np
    from oxibonsai import metal
    from cases import activations, random_weight, upload, encode
    device = metal.Device({name!r})
    graph = metal.MetalGraph(device)
    handle = upload(graph, random_weight("Q1_0", 64, 512))
    memory = np.zeros(256, np.uint8)
    memory = memory[-memory.ctypes.data % 16:][:128]
    wrapped = device.upload(memory, copy=False)
    shared = metal.MetalGraph.shared()
    view = np.frombuffer(device.buffer(64), np.uint8)
    commands = device.commands()
    commands.gemv(handle, device.buffer(2048), device.buffer(256))
    commands.submit(5)

    def work():
        while True:
            encode(graph, handle, activations(512), np.zeros(64, np.float32))
    """


@pytest.mark.device("cpu")
def test_the_process_ends_well_with_live_objects(device_name):
    run_python(LIVE.format(name=device_name))


@pytest.mark.device("cpu")
@pytest.mark.parametrize("ending", ["", "raise SystemExit", "import os; os._exit(0)"])
def test_the_process_ends_well_while_threads_work(device_name, ending):
    end = f"""
    import time
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    {ending}
    """
    run_python(LIVE.format(name=device_name) + end)


@pytest.mark.device("cpu")
def test_the_process_ends_well_with_objects_in_module_cycles(device_name):
    end = """
    import sys
    sys.keep = [device, graph, wrapped, commands]
    sys.keep.append(sys.keep)
    class Late:
        def __del__(self, commands=commands, wrapped=wrapped):
            commands.replay()
            wrapped.fill(1)
    sys.late = Late()
    """
    run_python(LIVE.format(name=device_name) + end)


FORK = """
    import os, sys, warnings
    import numpy as np
    from oxibonsai import metal
    from cases import activations, gemv, random_weight
    warnings.simplefilter("ignore", DeprecationWarning)
    q, x = random_weight("Q1_0", 300, 512), activations(512)
    parent = metal.Device({name!r}, threads=3)
    graph = metal.MetalGraph(parent)
    expected = gemv(graph, q, x)
    children = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            with metal.Device({name!r}, threads=3) as device:
                own = gemv(metal.MetalGraph(device), q, x)
            again = gemv(graph, q, x)
            os._exit(0 if (own == expected).all() and (again == expected).all() else 1)
        children.append(pid)
        assert (gemv(graph, q, x) == expected).all()
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    """


@pytest.mark.device("cpu")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_after_fork_both_processes_go_on(device_name):
    run_python(FORK.format(name=device_name), timeout=60)


# gcc's AddressSanitizer does not lock its allocator across fork(): a child may find it locked by a
# thread that it does not have. Without it thousands of forks in a row go well.
@pytest.mark.skipif(
    os.environ.get("OXIBONSAI_SANITIZER") == "address", reason="its allocator is not safe in fork()"
)
@pytest.mark.device("cpu")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_forked_while_threads_work_opens_a_device_of_its_own(device_name):
    code = """
    import os, sys, threading, warnings
    import numpy as np
    from oxibonsai import metal
    from cases import activations, gemv, random_weight
    warnings.simplefilter("ignore", DeprecationWarning)
    q, x = random_weight("Q1_0", 300, 512), activations(512)
    graph = metal.MetalGraph(metal.Device({name!r}, threads=2))
    expected = gemv(graph, q, x)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            assert (gemv(graph, q, x) == expected).all()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            with metal.Device({name!r}, threads=2) as device:
                own = gemv(metal.MetalGraph(device), q, x)
            os._exit(0 if (own == expected).all() else 1)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    """
    run_python(code.format(name=device_name), timeout=60)


# Code that runs in the middle of a call


@pytest.mark.device("cpu")
@pytest.mark.parametrize(
    "call",
    [
        "commands.dispatch(pipeline, closing([buffer, buffer]), bytes(16), threadgroups=1)",
        "commands.dispatch(pipeline, [buffer, (buffer, Index(0))], bytes(16), threadgroups=1)",
        "commands.add(buffer, (buffer, Index(0)), 4)",
        "commands.gemv(handle, buffer, other, Index(1), 128)",
        "commands.advance(buffer, other, buffer, Index(4), 4)",
        "graph.encode_gemv(handle, x, y, Index(1), 128)",
        "buffer.fill(0, 0, Index(4))",
        "buffer.read(x, Index(0))",
        "commands.replay(Index(1))",
        "graph.get_or_upload_weight_lazy(8, lambda: everything() or b'abc')",
        "graph.upload_weight_soa(bytes(18), 'Q1_0', (Index(1), 128))",
    ],
)
def test_arguments_that_close_what_a_call_works_on_do_not_crash(device_name, call):
    # An __index__ or a generator runs Python in the middle of the call.
    code = f"""
    import numpy as np
    from oxibonsai import metal
    device = metal.Device("cpu")
    graph = metal.MetalGraph(device)
    handle = graph.upload_q1_weight_soa(bytes(18))
    buffer, other = device.buffer(4096), device.buffer(4096)
    commands = device.commands()
    if "replay" in {call!r}:
        commands.add(buffer, other, 4)
    pipeline = device.pipeline("residual_add")
    x, y = np.zeros(128, np.float32), np.zeros(4, np.float32)

    def everything():
        for victim in (commands, buffer, other, handle, pipeline, graph, device):
            victim.close()
        keep = [np.zeros(n, np.uint8) + 1 for n in (16, 64, 96, 128, 200, 4096) * 20]

    class Index:
        def __init__(self, value):
            self.value = value
        def __index__(self):
            everything()
            return self.value

    def closing(values):
        for value in values:
            yield value
        everything()

    try:
        {call}
    except (metal.MetalGraphError, BufferError, TypeError):
        pass
    """
    run_python(code)


def test_a_long_chain_of_wrapped_buffers_ends_without_the_stack():
    run_python(
        """
import numpy as np
from oxibonsai import metal

with metal.Device("cpu") as device:
    buffer = device.buffer(16384)
    for _ in range(100_000):
        buffer = device.upload(np.asarray(buffer.view(np.float32)), copy=False)
    del buffer
    assert device.stats.buffers == 0
"""
    )
