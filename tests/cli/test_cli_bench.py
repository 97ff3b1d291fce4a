"""The command bench, as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import fails, run
from tiny_models import Tiny, byte_vocabulary, random_tensors, write

from oxibonsai.cli import main
from oxibonsai.cli.bench import report
from oxibonsai.cli.measuring import measure
from oxibonsai.model import Model

RATE = r"[\d,]+\.\d"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny = Tiny(n_layers=1, vocab=257, context=256)
    return write(tmp_path / "model.gguf", tiny, random_tensors(tiny), byte_vocabulary())


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


def test_json_has_speeds_runs_and_settings(path):
    out, err = run(
        *("bench", "--model", path, "--json", "--prompt-tokens", 20, "--tokens", 5),
        *("--repeat", 3, "--kv-dtype", "f32", "--chunk", 8, "--threads", 1, "--device", "cpu"),
    )
    assert err == ""
    found = json.loads(out)
    settings = found["settings"]
    assert settings.pop("sampled") == {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": 0,
    }
    assert settings == {
        "prompt_tokens": 20,
        "tokens": 5,
        "repeat": 3,
        "kv_dtype": "f32",
        "chunk": 8,
        "activations": "float32",
        "contexts": [],
        "batches": [],
    }
    # A prompt is fed for the greedy text and for the sampled one.
    for name, n, n_runs in (("prefill", 20, 6), ("decode", 5, 3), ("sampled", 5, 3)):
        runs = sorted(found[name]["runs_seconds"])
        assert len(runs) == n_runs
        assert found[name]["tokens"] == n
        median = (runs[(n_runs - 1) // 2] + runs[n_runs // 2]) / 2
        assert found[name]["tokens_per_second"] == pytest.approx(n / median)
        assert found[name]["tokens_per_second_range"] == pytest.approx([n / runs[-1], n / runs[0]])
    first = found["time_to_first_token_runs_seconds"]
    assert found["time_to_first_token_seconds"] == sorted(first)[1]
    assert max(first) < max(found["prefill"]["runs_seconds"]) + max(found["decode"]["runs_seconds"])
    assert found["device"]["driver"] == "cpu"
    assert found["device"]["threads"] == 1
    assert found["model"]["path"] == str(path)
    assert found["model"]["weight_bytes_per_token"] > 0
    assert "contexts" not in found
    assert "batch" not in found


def test_contexts_and_batches_are_measured_on_request(path, capsys):
    arguments = ["--prompt-tokens", "9", "--tokens", "3", "--repeat", "1"]
    more = ["--contexts", "40,1,9,9,254", "--batch", "1,3", "--json"]
    assert main(["bench", "--model", str(path), *arguments, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["contexts"]) == ["40", "1", "9", "254"]
    for n in ("40", "1", "9"):
        assert found["contexts"][n]["tokens_per_second"] > 0
    assert found["contexts"]["254"] == {
        "skipped": "with 3 tokens to generate it exceeds the model's context_length of 256"
    }
    assert list(found["batch"]) == ["1", "3"]
    for n in (1, 3):
        batch = found["batch"][str(n)]
        assert batch["sequences"] == n
        (tokens,) = batch["tokens"]
        # All of them decode for three steps at least, one of which begins the time.
        assert tokens >= n
        assert batch["tokens_per_second"] == pytest.approx(tokens / batch["runs_seconds"][0])


def test_batch_that_the_context_cannot_hold_is_skipped(path):
    with Model.load(path, "cpu") as model:
        found = measure(model, prompt_tokens=200, tokens=50, repeat=1, chunk=40, batches=[1, 8])
    assert found["batch"]["8"] == {
        "skipped": "8 prompts of 200 and 50 tokens of each at the same time need 292 positions, "
        "the model's context_length is 256"
    }


def test_table_has_a_line_for_each_speed(path, capsys):
    arguments = ["--prompt-tokens", "9", "--tokens", "2", "--repeat", "1", "--contexts", "30,4000"]
    assert main(["bench", "--model", str(path), *arguments]) == 0
    head, cache, gap, columns, *rows, gap2, first, sampled, skipped = (
        capsys.readouterr().out.splitlines()
    )
    assert head.startswith("tiny on ")
    assert head.endswith("threads)")
    assert cache == "K/V cache in f16; one run"
    assert gap == gap2 == ""
    assert columns.split() == ["tokens/s", "slowest", "fastest"]
    names = ["prompt of 9", "greedy, 2 tokens", "sampled, 2 tokens", "greedy at a context of 30"]
    for name, row in zip(names, rows, strict=True):
        assert re.fullmatch(rf"{name} +{RATE} +{RATE} +{RATE}", row)
        assert len(row) == len(columns)
    assert re.fullmatch(r"first token after a prompt of 9: [\d.]+ m?s", first)
    assert re.match(r"sampled: \d+\.\d\d of greedy; temperature 0.7, top-k 40, ", sampled)
    assert skipped == (
        "greedy at a context of 4,000: skipped, with 2 tokens to generate it exceeds the model's "
        "context_length of 256"
    )


def test_table_says_what_it_was_measured_with(path):
    with Model.load(path, "cpu", activations="int8") as model:
        found = measure(model, prompt_tokens=2, tokens=1, repeat=2, kv_dtype="f32")
    found["batch"] = {"1": found["decode"], "64": found["decode"]}
    found["time_to_first_token_seconds"] = 61.234
    lines = list(report(found))
    assert lines[1] == "K/V cache in f32, int8 activations; medians of 2 runs"
    assert lines[7].startswith("1 sequence at a time ")
    assert lines[8].startswith("64 sequences at a time ")
    assert "first token after a prompt of 2: 61.23 s" in lines


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tokens", 0), "tokens = 0 must be 1 or more"),
        (("--prompt-tokens", -1), "prompt_tokens = -1"),
        (("--repeat", 0), "repeat = 0"),
        (
            ("--prompt-tokens", 300),
            "--prompt-tokens: prompt_tokens = 300: the model's context_length is 256",
        ),
        (("--tokens", 5000), "--tokens: tokens = 5000 behind a prompt of 128"),
        (("--batch", 257), "--batch: batches = 257"),
        (("--chunk", 0), "chunk = 0"),
        (("--contexts", "0"), "contexts = 0 must be 1 or more"),
        (("--batch", "4,-2"), "batches = -2 must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(path, capsys, arguments, text):
    assert text in fails(capsys, "bench", "--model", path, *arguments)


@pytest.mark.parametrize("text", ["", "1,", "a", "1;2", "1.5"])
def test_list_of_numbers_that_is_none_is_refused(capsys, text):
    with pytest.raises(SystemExit):
        main(["bench", "--batch", text])
    assert f"{text!r}: give whole numbers separated by commas" in capsys.readouterr().err
