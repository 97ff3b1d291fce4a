"""What users name that is no GGUF: the message says what it is and what to do."""

from __future__ import annotations

import errno
import gzip
import json
import pickle
import subprocess
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oxibonsai import gguf
from oxibonsai.gguf import GGUFError, GGUFNotFoundError

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8
size 12000000000
"""


HEADER = b"GGUF\x03\0\0\0" + bytes(16)


def safetensors(before: bytes = b"") -> bytes:
    header = (
        before + json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    )
    return len(header).to_bytes(8, "little") + header + bytes(8)


FILES: dict[str, tuple[bytes, str, str]] = {
    "LFS pointer": (POINTER, "Git LFS pointer", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html>\n<html><head>", r"web page \(HTML\)", "download the file itself"),
    "HTML in capitals": (b"\n  <HTML>\n", "web page", "hf download"),
    "HTML with a mark": (b"\xef\xbb\xbf<!doctype HTML>", "web page", "download"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML text", "download"),
    "safetensors": (safetensors(), "safetensors file", r"convert_hf_to_gguf\.py"),
    "empty zip": (b"PK\x03\x04" + bytes(40), "PyTorch checkpoint", "convert_hf_to_gguf"),
    "pickle": (pickle.dumps({"w": 1}, 2), "pickle", "convert_hf_to_gguf"),
    "pickle 4": (pickle.dumps({"w": 1}, 4), "pickle", "convert_hf_to_gguf"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5", "convert"),
    "gzip": (gzip.compress(b"GGUF"), "gzip", "gunzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd", "unzstd"),
    "tar": (bytes(257) + b"ustar" + bytes(250), "tar archive", "unpack"),
    "old ggml": (b"tjgg" + bytes(40), "before GGUF", "convert"),
    "config.json": (b'{\n  "architectures": ["Qwen3ForCausalLM"]}', "another format", "convert"),
    "index.json": (b'{"metadata": {"total_size": 1}, "weight_map": {}}', "another format", "conv"),
    "error in JSON": (b'{"error": "Repository not found"}', "JSON text", "download"),
    "error in words": (b"Invalid username or password.", "'Invalid username", "download"),
    "words, long": (b"Access to this model is restricted. " * 99, "'Access to this", "download"),
    "words in UTF-8": ("Zugriff verweigert, tschüß. ".encode() * 99, "'Zugriff", "download"),
    "pickle 3": (pickle.dumps({"w": 1}, 3), "pickle", "convert_hf_to_gguf"),
    "pickle 5": (pickle.dumps({"w": 1}, 5), "pickle", "convert_hf_to_gguf"),
    "zip of nothing": (b"PK\x05\x06" + bytes(18), "empty zip archive", "download"),
    "HTML in UTF-16": ("<!DOCTYPE html><html>".encode("utf-16"), "web page", "download"),
    "HTML in UTF-16 BE": ("<html>".encode("utf-16-be"), "web page", "download"),
    "JSON in UTF-16 LE": ('{"error": "no"}'.encode("utf-16-le"), "JSON text", "download"),
    "array in JSON": (b"[1,2]", "JSON text", "download"),
    "arrays in JSON": (b" [[-1.5], null]", "JSON text", "download"),
    "words, short": (b"Not found", "a text that begins with 'Not found'", "download"),
    "one word": (b"no\n", "a text that begins with 'no'", "download"),
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(range(256)), "ONNX", "convert"),
    "ONNX without a producer": (b"\x08\x07:\xb4\x10\n\x1b\n\x01x\xff", "ONNX", "convert"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(range(256)), "TensorFlow Lite", "convert"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG image", "download"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG image", "download"),
    "safetensors, header padded": (safetensors(b"  "), "safetensors file", "convert_hf_to_gguf"),
    "safetensors, cut": (safetensors()[:20], "safetensors file that is cut short", "convert"),
    "GGUF behind a mark": (b"\xef\xbb\xbf" + HEADER, "GGUF behind .*mark", "download"),
    "GGUF behind a newline": (b"\n" + HEADER, "GGUF behind .*1 in front", "download"),
    "GGUF behind HTTP": (
        b"HTTP/1.1 200 OK\r\n\r\n" + HEADER,
        "GGUF behind .*19 in front",
        "download",
    ),
    "zeros": (bytes(5000), "5000 bytes that begin with zeros", "unfinished download"),
}


@pytest.mark.parametrize("kind", FILES)
def test_what_it_is_and_the_way_out_are_named(tmp_path: Path, kind: str) -> None:
    raw, what, way_out = FILES[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match=f"is not a GGUF file: it is .*{what}") as caught:
        gguf.open(path)
    assert str(path) in str(caught.value)
    with pytest.raises(GGUFError, match=way_out):
        gguf.open(path)


def test_a_checkpoint_of_pytorch_is_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(GGUFError, match="PyTorch checkpoint"):
        gguf.open(path)


@pytest.mark.parametrize("suffix", [".part", ".incomplete", ".crdownload"])
def test_unfinished_downloads_are_known_by_their_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model.gguf{suffix}"
    path.write_bytes(b"\xff\xfe\xfd\xfc" * 9)
    with pytest.raises(GGUFError, match="unfinished download"):
        gguf.open(path)


@pytest.mark.parametrize("raw", [b"GGML" + bytes(30), b"\xfe\xed\xfa\xce" * 9, b"GGU", b"\x01"])
def test_what_is_not_known_shows_how_it_begins(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match=r"it starts with|needs 4 bytes"):
        gguf.open(path)


@given(
    st.binary(min_size=1, max_size=1500), st.sampled_from([b"", b"{", b"<", b"PK", b"\0", b"a "])
)
def test_any_bytes_are_an_error_of_one_printable_line(raw: bytes, start: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(start + raw)
        with pytest.raises(GGUFError) as caught:
            gguf.open(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"error": "x"}).encode(),
        json.dumps(["x"]).encode(),
        b"<html>" + bytes(range(256)),
        b"word " * 204 + "ö".encode() * 100,  # cut off within a character
    ],
)
def test_long_and_short_texts_are_known(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match=r"JSON|HTML|a text that begins"):
        gguf.open(path)


def test_an_empty_file_is_to_be_downloaded_again(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    with pytest.raises(GGUFError, match=r"is empty \(0 bytes\).*download it again"):
        gguf.open(path)


def test_a_folder_lists_the_models_in_it(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"is a directory; a GGUF file is needed$"):
        gguf.open(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(GGUFError, match=r"directory.*another format.*convert_hf_to_gguf\.py"):
        gguf.open(tmp_path)
    for i in range(5):
        (tmp_path / f"m{i}.gguf").touch()
    with pytest.raises(
        GGUFError, match=r"directory.*it has m0\.gguf, m1\.gguf, m2\.gguf and 2 more"
    ):
        gguf.open(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "prism-ml/Bonsai-8B-gguf",
        "prism-ml/Bonsai-8B-gguf:Q1_0",
        "Qwen/Qwen3-0.6B",
        "prism-ml/Bonsai-8B-gguf/Bonsai-8B.gguf",
        "hf.co/prism-ml/Bonsai-8B-gguf",
        "huggingface.co/prism-ml/Bonsai-8B-gguf",
    ],
)
def test_the_name_of_a_repository_says_how_to_download_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        gguf.open(name)
    message = str(caught.value)
    assert isinstance(caught.value, GGUFNotFoundError)
    assert isinstance(caught.value, GGUFError)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == name
    assert f"there is no file {name}" in message
    repository = "/".join(name.split(".co/")[-1].split(":")[0].split("/")[:2])
    assert f"hf download {repository} " in message
    if name.endswith("/Bonsai-8B.gguf"):
        assert "Bonsai-8B-gguf Bonsai-8B.gguf" in message
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.errno) == (message, errno.ENOENT)


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/prism-ml/Bonsai-8B-gguf/resolve/main/Bonsai-8B.gguf",
        "http://example.com/m.gguf",
        "hf://prism-ml/Bonsai-8B-gguf",
        Path("https://example.com/m.gguf"),
    ],
)
def test_a_url_is_to_be_downloaded_first(url: str | Path) -> None:
    with pytest.raises(GGUFNotFoundError, match=r"is a URL.*download it first") as caught:
        gguf.open(url)
    assert "://" in str(caught.value)


INCLUDE = '--include "*.gguf"'


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("https://huggingface.co/O/N/blob/main/x.gguf", "hf download O/N x.gguf "),
        ("https://hf.co/O/N/raw/main/x.gguf", "hf download O/N x.gguf "),
        ("https://www.huggingface.co/O/N/blob/main/q/x.gguf", "download O/N q/x.gguf "),
        ("https://huggingface.co/O/N/blob/v2/x%20y.gguf?a=b", "O/N 'x y.gguf' --revision v2 "),
        ("https://huggingface.co/O/N/resolve/main/x.gguf", "curl -L -O https://huggingface"),
        ("http:/huggingface.co/O/N/blob/main/x.gguf", "hf download O/N x.gguf "),
        ("huggingface.co/O/N/blob/main/x.gguf", "hf download O/N x.gguf "),
        ("hf.co/O/N/blob/main/X.GGUF", "hf download O/N X.GGUF "),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", f"download Qwen/Qwen3-0.6B {INCLUDE} "),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/", f"download Qwen/Qwen3-0.6B {INCLUDE} "),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", f"Qwen/Qwen3-0.6B {INCLUDE} "),
        ("https://huggingface.co/O/N/tree/main/q4", "download O/N --include 'q4/*.gguf' "),
        ("https://huggingface.co/datasets/O/N/blob/main/x.gguf", "O/N x.gguf --repo-type dataset"),
        ("https://huggingface.co/O/N?show_file_info=a%2Fx.gguf", "download O/N a/x.gguf "),
        ("https://huggingface.co/O/N/tree/main/$(x)", "--include '$(x)/*.gguf' "),
        ("https://hf-mirror.com/O/N/blob/main/x.gguf", "hf download O/N x.gguf "),
        ("https://huggingface.co/Qwen", "hf download OWNER/NAME FILE.gguf "),
        ("hf://a/b", f"hf download a/b {INCLUDE} "),
        ("hf://a/b/x.gguf", "hf download a/b x.gguf "),
        ("hf:Qwen/X", f"hf download Qwen/X {INCLUDE} "),
        ("hf:Qwen/X:Q8_0", f"hf download Qwen/X {INCLUDE} "),
        ("Qwen/X/", f"hf download Qwen/X {INCLUDE} "),
        ("Qwen/X-GGUF/m.GGUF", "hf download Qwen/X-GGUF m.GGUF "),
        (
            "https://modelscope.cn/models/Qwen/Qwen3-0.6B-GGUF",
            f"modelscope download --model Qwen/Qwen3-0.6B-GGUF {INCLUDE} ",
        ),
        (
            "https://www.modelscope.cn/models/O/N/file/view/master/x.gguf?status=2",
            "modelscope download --model O/N x.gguf ",
        ),
        ("modelscope://O/N", f"modelscope download --model O/N {INCLUDE} "),
        (
            "https://github.com/O/N/blob/main/m/x.gguf",
            "curl -L -O https://github.com/O/N/raw/main/m/x.gguf",
        ),
        ("github.com/O/N/blob/main/x.gguf", "curl -L -O https://github.com/O/N/raw/main/x.gguf"),
        (
            "https://gitlab.com/O/N/-/blob/main/x.gguf",
            "curl -L -O https://gitlab.com/O/N/-/raw/main/x.gguf",
        ),
        (
            "https://github.com/O/N/releases/download/v1/x.gguf",
            "curl -L -O https://github.com/O/N/releases/download/v1/x.gguf",
        ),
        ("https://github.com/O/N", "it is a page, not a file"),
        ("ollama:qwen3", "ollama show --modelfile qwen3"),
        ("ollama://qwen3:8b", "ollama show --modelfile qwen3:8b"),
        ("https://ollama.com/library/qwen3", "ollama show --modelfile qwen3"),
        ("s3://bucket/x.gguf", "aws s3 cp s3://bucket/x.gguf ."),
        ("gs://bucket/x.gguf", "gcloud storage cp gs://bucket/x.gguf ."),
        ("file:///tmp/x.gguf", "drop file:// and give /tmp/x.gguf"),
        ("file://localhost/tmp/a%20b.gguf", "drop file:// and give /tmp/a b.gguf"),
        ("https://e.com/x.gguf?a=1&b=2", "curl -L -O 'https://e.com/x.gguf?a=1&b=2'"),
        ("https://e.com/a b.gguf", "curl -L -O 'https://e.com/a b.gguf'"),
        ("https://e.com/$(x).gguf", "curl -L -O 'https://e.com/$(x).gguf'"),
    ],
)
def test_the_advice_for_an_address_fetches_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GGUFNotFoundError) as caught:
        gguf.open(name)
    assert way in str(caught.value)
    assert caught.value.filename == name


@pytest.mark.parametrize(
    ("names", "join"),
    [
        (["x.gguf.part1of2", "x.gguf.part2of2"], "x.gguf.part1of2 {}x.gguf.part2of2"),
        (["x.gguf.part01of02", "x.gguf.part02of02"], "x.gguf.part01of02 {}x.gguf.part02of02"),
        (["x.gguf-split-a", "x.gguf-split-b"], "x.gguf-split-*"),
        (["x.gguf-part-a", "x.gguf-part-b"], "x.gguf-part-*"),
        (["x.gguf.part1", "x.gguf.part2"], "x.gguf.part*"),
        (["x.gguf.001", "x.gguf.002"], "x.gguf.*"),
        (["x.gguf.aa", "x.gguf.ab"], "x.gguf.*"),
    ],
)
def test_pieces_of_a_file_are_to_be_joined(tmp_path: Path, names: list[str], join: str) -> None:
    whole = tmp_path / "x.gguf"
    gguf.write(whole, {"k": "v" * 300}, [("w", np.zeros((4, 32), np.float32))])
    raw = whole.read_bytes()
    whole.unlink()
    (tmp_path / names[0]).write_bytes(raw[:200])
    (tmp_path / names[1]).write_bytes(raw[200:])
    command = f"join the pieces: cat {tmp_path}/{join.format(f'{tmp_path}/')} > {whole}"
    for name in (*names, "x.gguf"):
        with pytest.raises(GGUFError) as caught:
            gguf.open(tmp_path / name)
        assert command in str(caught.value)
    subprocess.run(["sh", "-c", command.split(": ")[1]], check=True)
    assert whole.read_bytes() == raw


@pytest.mark.parametrize("name", ["x.gguf.gz", "x.gguf.xz", "x.gguf.bak", "x.gguf.1", "x.gguf"])
def test_other_names_are_none_of_pieces(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"GGUF"))
    with pytest.raises(GGUFError, match=r"gunzip$"):
        gguf.open(tmp_path / name)


def test_a_whole_file_may_have_the_name_of_a_piece(tmp_path: Path) -> None:
    gguf.write(tmp_path / "x.gguf.part1of2", {"k": 1}, [])
    with gguf.open(tmp_path / "x.gguf.part1of2") as file:
        assert file.metadata["k"] == 1


def test_a_home_folder_is_not_expanded() -> None:
    with pytest.raises(GGUFNotFoundError, match=r"os\.path\.expanduser"):
        gguf.open("~/none.gguf")


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.write(path, {"k": 1}, [])
    with gguf.open(bytes(path)) as file:  # type: ignore[arg-type]
        assert file.path == str(path)
    with pytest.raises(GGUFNotFoundError):
        gguf.open(b"prism-ml/Bonsai-8B-gguf")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["none.gguf", "models/none.gguf", "none", "/none/none", "a b/c"])
def test_a_missing_file_is_the_systems_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        gguf.open(name)
    assert not isinstance(caught.value, GGUFError)


def test_a_folder_of_that_name_is_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        gguf.open("models/bonsai")
    assert not isinstance(caught.value, GGUFError)
