"""The reader and the writer on good files."""

from __future__ import annotations

import mmap
import os
import pickle
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
from gguf_bytes import ARRAY, STRING, U32, Raw, Tensor, array, pair, string
from model_files import Q1_MODEL, TERNARY_MODEL

from oxibonsai import formats, gguf


def write(path, metadata=None, tensors=(), **options):
    gguf.write(path, metadata or {}, tensors, **options)
    return path


def test_demo_model_has_the_documented_metadata():
    with gguf.open(Q1_MODEL) as file:
        assert file.version == 3
        assert file.alignment == 32
        assert file.size == os.path.getsize(Q1_MODEL)
        m = file.metadata
        assert m["general.architecture"] == "qwen3"
        assert m["qwen3.attention.head_count_kv"] == 2
        assert m["qwen3.rope.freq_base"] == 1e6
        assert m["tokenizer.ggml.add_bos_token"] is False
        assert m["tokenizer.ggml.tokens"][0] == "<|endoftext|>"
        assert len(m["tokenizer.ggml.tokens"]) == 4096
        assert m["tokenizer.ggml.token_type"].dtype == np.int32


def test_shape_is_rows_first_and_tensors_keep_the_order_of_the_file():
    with gguf.open(Q1_MODEL) as file:
        names = list(file.tensors)
        assert names[0] == "token_embd.weight"
        assert names[-1] == "output_norm.weight"
        assert len(names) == 68
        info = file.tensors["blk.0.ffn_up.weight"]
        assert (info.shape, info.format, info.ggml_type) == ((1536, 512), "Q1_0", 41)
        assert info.nbytes == 1536 * formats.get("Q1_0").row_bytes(512)
        assert file.tensors["output_norm.weight"].shape == (512,)


def test_tensor_data_is_a_read_only_view_of_the_right_bytes():
    raw = Q1_MODEL.read_bytes()
    with gguf.open(Q1_MODEL) as file:
        for name, info in file.tensors.items():
            data = file.tensor_data(name)
            assert data.dtype == np.uint8
            assert not data.flags.writeable
            assert not data.flags.owndata
            assert data.tobytes() == raw[info.offset : info.offset + info.nbytes]


def test_data_reads_the_same_after_release():
    with gguf.open(Q1_MODEL) as file:
        view = file.tensor_data("token_embd.weight")
        before = view.tobytes()
        file.release("token_embd.weight")
        file.release("output_norm.weight")  # less than a page
        assert view.tobytes() == before


@pytest.mark.skipif(
    not os.path.exists("/proc/self/smaps"), reason="residency is read from Linux's smaps"
)
def test_release_drops_the_pages_of_that_tensor_only(tmp_path):
    page = mmap.PAGESIZE
    big = np.ones(64 * page // 4, np.float32)
    path = write(tmp_path / "m.gguf", tensors=[("a", big), ("b", big)], alignment=page)

    def resident():
        found = False
        with open("/proc/self/smaps") as f:
            for line in f:
                if "-" in line.split(" ", 1)[0]:
                    found = line.rstrip().endswith(str(path))
                elif found and line.startswith("Rss:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("the file is not mapped")

    with gguf.open(path) as file:
        assert file.tensor_data("a").sum() == file.tensor_data("b").sum()
        full = resident()
        assert full >= 128 * page
        file.release("a")
        assert full - 65 * page <= resident() <= full - 64 * page


def test_joined_data_is_a_view_where_the_file_holds_the_tensors_in_a_row(tmp_path):
    path = tmp_path / "joined.gguf"
    values = {name: np.full(8 * (i + 1), i, np.float32) for i, name in enumerate("abc")}
    write(path, tensors=values.items())
    with gguf.open(path) as file:
        for names in (("a",), ("a", "b"), ("b", "c"), ("a", "b", "c"), ("a", "c"), ("c", "a")):
            joined = file.joined_data(*names)
            expected = np.concatenate([values[name] for name in names])
            np.testing.assert_array_equal(joined.view("<f4"), expected)
            assert not joined.flags.writeable
        both = file.joined_data("a", "b")
        assert np.shares_memory(both, file.tensor_data("a"))
        assert not np.shares_memory(file.joined_data("a", "c"), file.tensor_data("a"))
        with pytest.raises(KeyError, match="nope"):
            file.joined_data("a", "nope")


def test_close_is_idempotent_and_leaves_views_and_metadata_usable():
    file = gguf.open(Q1_MODEL)
    view = file.tensor_data("output_norm.weight")
    expected = view.tobytes()
    file.close()
    file.close()
    assert file.closed
    assert view.tobytes() == expected
    assert file.metadata["tokenizer.ggml.tokens"][4095]
    with pytest.raises(ValueError, match=r"alice-q1_0\.gguf is closed"):
        file.tensor_data("output_norm.weight")
    with pytest.raises(ValueError, match="is closed"):
        file.release("output_norm.weight")


def test_unknown_tensor_is_a_key_error_with_its_name():
    with (
        gguf.open(Q1_MODEL) as file,
        pytest.raises(KeyError, match=r"no tensor 'nope' among .* 68"),
    ):
        file.tensor_data("nope")


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    with gguf.open(TERNARY_MODEL) as file:
        metadata = {key: file.metadata.typed(key) for key in file.metadata}
        tensors = [
            (name, (file.tensor_data(name), info.shape, info.format))
            for name, info in file.tensors.items()
        ]
        copy = write(tmp_path / "copy.gguf", metadata, tensors)
    assert copy.read_bytes() == TERNARY_MODEL.read_bytes()


def test_every_metadata_type_comes_back(tmp_path):
    t = gguf.ValueType
    values = {
        "u8": (t.U8(255), 255),
        "i8": (t.I8(-128), -128),
        "u16": (t.U16(65535), 65535),
        "i16": (t.I16(-32768), -32768),
        "u32": (7, 7),
        "i32": (t.I32(-7), -7),
        "f32": (0.5, 0.5),
        "true": (True, True),
        "false": (False, False),
        "string": ("Ä\0ö", "Ä\0ö"),
        "u64": (t.U64(2**64 - 1), 2**64 - 1),
        "i64": (t.I64(-(2**63)), -(2**63)),
        "f64": (t.F64(0.1), 0.1),
        "": ("empty key", "empty key"),
    }
    path = write(tmp_path / "m.gguf", {k: v[0] for k, v in values.items()})
    with gguf.open(path) as file:
        assert dict(file.metadata) == {k: v[1] for k, v in values.items()}
        for key, (_, expected) in values.items():
            assert type(file.metadata[key]) is type(expected)
        assert file.metadata.typed("u32").type is t.U32
        assert file.metadata.typed("f32").type is t.F32


def test_arrays_come_back(tmp_path):
    t = gguf.ValueType
    path = write(
        tmp_path / "m.gguf",
        {
            "ints": [1, -2],
            "floats": [0.5, 1.5],
            "bools": [True, False],
            "strings": ["a", "", "ö"],
            "bytes": [b"\xff\xfe"],
            "numpy": np.arange(5, dtype=np.uint64),
            "u8": t.U8([1, 2, 255]),
            "empty": t.STRING([]),
            "nested": [["x"], ["y", "z"]],
        },
    )
    with gguf.open(path) as file:
        m = file.metadata
        assert m["ints"].tolist() == [1, -2]
        assert m["ints"].dtype == np.int32
        assert m["floats"].tolist() == [0.5, 1.5]
        assert m["bools"].tolist() == [True, False]
        assert m["strings"] == ["a", "", "ö"]
        assert m["strings"][-1] == "ö"
        assert m["strings"][1:] == ["", "ö"]
        assert m["bytes"].raw(0) == b"\xff\xfe"
        assert m["bytes"][0].encode("utf-8", "surrogateescape") == b"\xff\xfe"
        assert m["numpy"].dtype == np.uint64
        assert m["u8"].dtype == np.uint8
        assert m["empty"] == []
        assert m["nested"] == [["x"], ["y", "z"]]
        with pytest.raises(IndexError, match="string 3 of an array of 3"):
            m["strings"][3]
        with pytest.raises(ValueError, match="read-only"):
            m["ints"][0] = 5


def test_a_version_2_file_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        Raw(
            version=2,
            pairs=[pair("k", STRING, string("v"))],
            tensors=[Tensor("t", (2, 3), 0, np.arange(6, dtype="<f4").tobytes())],
            pad_last=False,
        ).build()
    )
    with gguf.open(path) as file:
        assert file.version == 2
        assert dict(file.metadata) == {"k": "v"}
        assert file.tensors["t"].shape == (3, 2)
        assert file.tensor_data("t").view("<f4").tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_may_lie_in_any_order_with_gaps(tmp_path):
    a, b = (np.full(8, x, "<f4").tobytes() for x in (1, 2))
    path = tmp_path / "m.gguf"
    path.write_bytes(
        Raw(
            tensors=[
                Tensor("b", (8,), 0, b + bytes(96) + a, offset=0),
                Tensor("a", (8,), 0, offset=128),
            ]
        ).build()
    )
    with gguf.open(path) as file:
        assert file.tensor_data("a").view("<f4")[0] == 1
        assert file.tensor_data("b").view("<f4")[0] == 2


def test_a_name_of_63_bytes_is_written(tmp_path):
    name = "ö" * 31 + "w"
    path = write(tmp_path / "m.gguf", {}, [(name, np.zeros(1, np.float32))])
    with gguf.open(path) as file:
        assert list(file.tensors) == [name]


@pytest.mark.parametrize("alignment", [8, 64, 16384])
def test_alignment_is_written_and_kept(tmp_path, alignment):
    tensors = [(name, np.full(3, i, np.float32)) for i, name in enumerate("abc")]
    path = write(tmp_path / "m.gguf", {"x": 1}, tensors, alignment=alignment)
    with gguf.open(path) as file:
        assert file.alignment == file.metadata["general.alignment"] == alignment
        for i, name in enumerate("abc"):
            assert file.tensors[name].offset % alignment == 0
            assert file.tensor_data(name).view(np.float32).tolist() == [i] * 3


def test_a_file_without_tensors_or_metadata_is_read(tmp_path):
    with gguf.open(write(tmp_path / "m.gguf")) as file:
        assert len(file.metadata) == 0
        assert file.tensors == {}


@pytest.mark.parametrize("name", ["Q1_0", "PQ2_0", "PTQ1_0", "TQ2_0", "F16", "BF16", "Q8_0", "F32"])
def test_every_format_with_a_type_of_its_own_comes_back(tmp_path, name):
    f = formats.get(name)
    data = np.random.default_rng(0).integers(0, 256, (3, f.row_bytes(512)), np.uint8)
    path = write(tmp_path / "m.gguf", tensors=[("w", (data, (3, 512), name))])
    with gguf.open(path) as file:
        info = file.tensors["w"]
        assert (info.format, info.shape, info.nbytes) == (name, (3, 512), data.nbytes)
        assert file.tensor_data("w").tobytes() == data.tobytes()
        gguf.check_supported(file)


def test_tensor_data_may_be_an_object_chunks_or_a_callable(tmp_path):
    data = np.arange(36, dtype=np.uint8).reshape(2, 18)
    qtensor = SimpleNamespace(data=data, shape=(2, 128), format="Q1_0")
    path = write(
        tmp_path / "m.gguf",
        tensors=[
            ("object", qtensor),
            ("generator", ((row for row in data), (2, 128), "Q1_0")),
            ("callable", (lambda: [bytes(data[0]), data[1]], (2, 128), "Q1_0")),
            ("bytes", (data.tobytes(), (2, 128), "Q1_0")),
            ("strided", (np.repeat(data, 2, axis=1)[:, ::2], (2, 128), "Q1_0")),
            ("half", np.ones((2, 3), np.float16)),
        ],
    )
    with gguf.open(path) as file:
        for name in ("object", "generator", "callable", "bytes", "strided"):
            assert file.tensor_data(name).tobytes() == data.tobytes()
        assert file.tensors["half"].format == "F16"


def test_writing_a_large_file_streams_it(tmp_path):
    import tracemalloc

    chunk = np.zeros(2**20, np.uint8)
    tracemalloc.start()
    try:
        write(
            tmp_path / "m.gguf",
            tensors=[("w", ((chunk for _ in range(64)), (2**14, 2**10), "F32"))],
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert os.path.getsize(tmp_path / "m.gguf") > 64 * 2**20
    assert peak < 4 * 2**20


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write(tmp_path / "m.gguf", {"x": 1})
    before = path.read_bytes()

    def failing():
        yield bytes(18)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write(path, {"x": 2}, [("w", (failing(), (2, 128), "Q1_0"))])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"x": 2**32}, [], r"'x' is 4294967296; U32 holds 0 to 4294967295: name a wider type"),
        ({"x": -1}, [], r"'x' is -1; U32 holds 0"),
        ({"x": [1, "a"]}, [], r"'x' mixes STRING, U32"),
        ({"x": []}, [], r"'x' is an empty list; give its type"),
        ({"x": None}, [], r"'x' is a NoneType"),
        ({"x": "\ud800"}, [], r"'x' holds the surrogate U\+D800 at 0"),
        ({"x": gguf.ValueType.U32("a")}, [], r"'x' holds <U1, not U32"),
        ({"x": np.zeros((2, 2), np.int32)}, [], r"'x' is an array of int32, 2 dimensions"),
        ({"general.alignment": 64}, [], r"general.alignment is 64, but the file .* 32"),
        ({}, [("w", np.zeros(4))], r"'w' is an array of float64"),
        ({}, [("w", 3)], r"'w' is a int; a QTensor"),
        ({}, [("w", (b"", (1,)))], r"'w' is a tuple of 2"),
        ({}, [("w", (b"", (0, 128), "Q1_0"))], r"'w' has shape \(0, 128\)"),
        ({}, [("w", (b"", (1, 1, 1, 1, 128), "Q1_0"))], r"1 to 4 dimensions"),
        ({}, [("w", (b"", (1, 100), "Q1_0"))], r"rows of 100 weights.*blocks of 128"),
        ({}, [("w", (bytes(17), (1, 128), "Q1_0"))], r"has 17 bytes of data; .* is 18"),
        ({}, [("w", (bytes(19), (1, 128), "Q1_0"))], r"has at least 19 bytes of data; .* is 18"),
        ({}, [("w", np.zeros(1, np.float32))] * 2, r"tensor 'w' is given twice"),
        ({}, [("w" * 64, np.zeros(1, np.float32))], r"'w+' has a name of 64 bytes; .* take 63"),
        ({}, [("", np.zeros(1, np.float32))], r"tensors\[0\]: the name is empty"),
        ({"x": gguf.ValueType.STRING(["a", 5])}, [], r"'x'\[1\] is a int; a str is needed"),
        ({"x": gguf.ValueType.U32([[1], [2, 3]])}, [], r"'x' cannot be written as U32"),
        ({"general.alignment": np.zeros(3)}, [], r"general.alignment is .*written with 32"),
        ({}, [("ö" * 32, np.zeros(1, np.float32))], r"'ö+' has a name of 64 bytes; .* take 63"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_and_nothing_written(tmp_path, metadata, tensors, message):
    with pytest.raises(gguf.GGUFError, match=message):
        write(tmp_path / "m.gguf", metadata, tensors)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("alignment", [0, 4, 48, -32])
def test_writer_refuses_a_bad_alignment(tmp_path, alignment):
    with pytest.raises(gguf.GGUFError, match=f"alignment is {alignment}"):
        write(tmp_path / "m.gguf", alignment=alignment)


def test_the_keys_of_a_rotation_are_found(tmp_path):
    path = write(tmp_path / "m.gguf", {"prism.hadamard.block_size": 128, "prism.other": 1})
    with gguf.open(path) as file:
        assert gguf.hadamard_keys(file) == ["prism.hadamard.block_size"]


def test_an_unsupported_type_opens_and_is_refused_by_tensor_and_type(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(
        Raw(
            tensors=[Tensor("head", (256, 2), 15, bytes(584)), Tensor("x", (5,), 999, bytes(7))]
        ).build()
    )
    with gguf.open(path) as file:
        head, other = file.tensors["head"], file.tensors["x"]
        assert (head.format, head.type_name, head.nbytes) == (None, "Q8_K", 584)
        assert (other.format, other.type_name, other.nbytes) == (None, "unknown type 999", 32)
        assert head.loads_as is other.loads_as is None
        with pytest.raises(gguf.GGUFError, match=r"'head' has type Q8_K \(15\)") as caught:
            gguf.check_supported(file)
        for text in ("Q8_0", "Q6_K", "TQ1_0", "--allow-requantize", "--output-tensor-type"):
            assert text in str(caught.value)


@pytest.mark.parametrize("t", formats.CONVERTED.values(), ids=lambda t: t.name)
def test_a_type_without_kernels_opens_and_says_what_it_loads_as(tmp_path, t):
    path = tmp_path / "m.gguf"
    nbytes = 512 // t.block_weights * t.block_bytes
    path.write_bytes(Raw(tensors=[Tensor("w", (256, 2), t.ggml_type, bytes(nbytes))]).build())
    with gguf.open(path) as file:
        info = file.tensors["w"]
        assert (info.format, info.type_name, info.nbytes) == (None, t.name, nbytes)
        assert info.loads_as == t.becomes
        gguf.check_supported(file)


@pytest.mark.timing
def test_a_vocabulary_of_151936_tokens_opens_faster_than_reading_it_string_by_string(tmp_path):
    tokens = [f"token{i}" for i in range(151_936)]
    merges = [f"tok en{i}" for i in range(151_387)]
    path = write(tmp_path / "m.gguf", {"tokens": tokens, "merges": merges})
    raw = b"".join(len(t).to_bytes(8, "little") + t.encode() for t in tokens + merges)

    def string_by_string():
        offset = 0
        while offset < len(raw):
            (n,) = struct.unpack_from("<Q", raw, offset)
            raw[offset + 8 : offset + 8 + n].decode()
            offset += 8 + n

    def cpu_seconds(work):
        start = time.process_time()
        work()
        return time.process_time() - start

    opened, read = (
        min(cpu_seconds(work) for _ in range(5))
        for work in (lambda: gguf.open(path).close(), string_by_string)
    )
    assert opened < read
    with gguf.open(path) as file:
        assert file.metadata["tokens"] == tokens
        assert file.metadata["merges"][151_386] == merges[-1]


def test_error_is_a_value_error_and_pickles():
    error = gguf.GGUFError("m.gguf: bad")
    assert isinstance(error, ValueError)
    assert str(pickle.loads(pickle.dumps(error))) == "m.gguf: bad"


def test_metadata_arrays_of_arrays_are_read_to_their_limit(tmp_path):
    path = tmp_path / "m.gguf"
    value = array(U32, 1, b"\1\0\0\0")
    for _ in range(3):
        value = array(ARRAY, 1, value)
    path.write_bytes(Raw(pairs=[pair("k", ARRAY, value)]).build())
    with gguf.open(path) as file:
        assert file.metadata["k"][0][0][0].tolist() == [1]
