"""``oxibonsai info``, and what every command says of a file that is no model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rotated_models import Folding
from tiny_models import Tiny, random_tensors, write

from oxibonsai import gguf
from oxibonsai.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_info_says_what_a_type_without_kernels_runs_as(path, capsys):
    tiny = Tiny(n_layers=1, hidden=256)
    formats = {"token_embd": "Q6_K", "ffn_down": "TQ1_0"}
    write(path, tiny, random_tensors(tiny, "Q8_0", formats=formats))
    assert main(["info", "--tensors", str(path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n  Q6_K \(runs as F32\) +1 tensors", out)
    assert re.search(r"\n  TQ1_0 \(runs as TQ2_0\) +1 tensors", out)
    assert "token_embd.weight                Q6_K         77 x 256" in out


def test_info_says_how_weights_were_rotated(path, capsys):
    tiny = Tiny(n_layers=1, hidden=256)
    folding = Folding(version=2)
    write(path, tiny, random_tensors(tiny), folding.metadata(tiny.shapes))
    assert main(["info", str(path)]) == 0
    assert (
        "rotation   Hadamard, version 2, blocks of 128, signs for inputs of 256: 7 matrices, the "
        "embedding, the head, which shares it\n"
    ) in capsys.readouterr().out
    assert main(["info", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["rotation"]
    assert found["weights"] == sorted(folding.weights(tiny.shapes))
    assert (found["version"], found["block_size"], found["sign_mode"]) == (2, 128, "explicit")
    assert (found["sign_widths"], found["embedding"], found["head"]) == ([256], True, True)


def test_info_has_the_reason_why_a_rotation_cannot_run(path, capsys):
    tiny = Tiny(n_layers=1, hidden=256)
    metadata = Folding().metadata(tiny.shapes) | {"prism.hadamard.version": 3}
    write(path, tiny, random_tensors(tiny), metadata)
    assert main(["info", str(path)]) == 0
    assert "cannot run: " in capsys.readouterr().out
    assert main(["info", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["rotation"]
    assert "prism.hadamard.version is 3" in found["error"]


def test_info_has_no_rotation_of_a_plain_file(path, capsys):
    tiny = Tiny(n_layers=1, hidden=256)
    write(path, tiny, random_tensors(tiny))
    assert main(["info", str(path)]) == 0
    assert "rotation" not in capsys.readouterr().out
    assert main(["info", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["rotation"] is None


def test_info_escapes_what_a_terminal_would_obey(path, capsys):
    vector = np.ones(3, np.float32)
    gguf.write(
        path, {"\x1b[2Jkey": "\x1b[31mred", "schlüssel": 1}, {"\x1b]0;t\x07": vector}.items()
    )
    assert main(["info", "--tensors", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert r"  \x1b[2Jkey = '\x1b[31mred'" in out
    assert "  schlüssel = 1" in out


def test_info_names_all_parts_of_a_split_model(tmp_path, capsys):
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for i, path in enumerate(paths):
        metadata = {"split.no": i, "split.count": 2}
        gguf.write(path, metadata, {f"t{i}": np.ones(3, np.float32)}.items())
    assert main(["info", str(paths[0])]) == 0
    out = capsys.readouterr().out
    assert f"file       {paths[0]}\nfile       {paths[1]}\n" in out
    assert "tensors    2\n" in out
    assert main(["info", str(paths[1])]) == 1
    assert f"open the first part, {paths[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("info",), ("generate", "--prompt", "a", "--model")])
def test_what_is_no_model_is_named_with_the_way_out(tmp_path, capsys, command):
    pointer = tmp_path / "m.gguf"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for name, what in (
        (str(pointer), "Git LFS pointer"),
        ("https://example.com/m.gguf", "https://example.com/m.gguf is a URL"),
        ("prism-ml/Bonsai-8B-gguf", "hf download prism-ml/Bonsai-8B-gguf"),
    ):
        assert main([*command, name]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("oxibonsai: ")
        assert what in err
