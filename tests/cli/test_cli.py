"""The command line, as users run it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command, environment, fails, run
from gguf_bytes import string
from model_files import PROMPTS, Q1_GOLDEN, Q1_MODEL, TERNARY_GOLDEN, TERNARY_MODEL
from places import ROOT
from tiny_models import (
    Tiny,
    byte_vocabulary,
    chain,
    random_tensors,
    write,
    write_chain,
)

import oxibonsai
from oxibonsai import gguf, metal
from oxibonsai.cli import main
from oxibonsai.model import Model
from oxibonsai.model.tokenizer import Tokenizer

TEXT = "x \N{LATIN SMALL LETTER E WITH ACUTE}\N{CJK UNIFIED IDEOGRAPH-4E2D}\U0001f333"
TREE = "\U0001f333"


def continuation(golden: Path, n: int, prompt: int = 0) -> str:
    with gguf.open(Q1_MODEL) as file, np.load(golden) as z:
        return Tokenizer.from_gguf(file).decode(z[f"p{prompt}.greedy"][:n])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


# generate


def test_default_prints_the_prompt_and_the_goldens_continuation(tmp_path):
    out, err = run("generate", cwd=tmp_path)
    assert out == PROMPTS[0] + continuation(Q1_GOLDEN, 64) + "\n"
    (line,) = err.splitlines()
    assert line.startswith("[Alice 1-bit demo on ")
    assert "prompt 13 tokens at " in line
    assert "generated 64 tokens at " in line


def test_model_prompt_length_and_cache_are_the_arguments(tmp_path):
    out, err = run(
        *("generate", "--model", TERNARY_MODEL, "--prompt", PROMPTS[1], "--max-tokens", 20),
        *("--quiet", "--kv-dtype", "f32", "--max-seq", 26, "--device", "cpu:0", "--threads", 1),
        *("--type42", "TQ2_0_g128"),
        cwd=tmp_path,
    )
    assert out == PROMPTS[1] + continuation(TERNARY_GOLDEN, 20, 1) + "\n"
    assert err == ""


@pytest.mark.parametrize("n", [0, 1])
def test_max_tokens_is_kept(capsys, n):
    assert main(["generate", "--max-tokens", str(n)]) == 0
    out, err = capsys.readouterr()
    assert out == PROMPTS[0] + continuation(Q1_GOLDEN, n) + "\n"
    assert f"generated {n} token{'s' * (n != 1)}" in err


def test_sampling_arguments_reach_the_sampler(capsys):
    def text(*arguments: str) -> str:
        assert main(["generate", "--max-tokens", "12", "--quiet", *arguments]) == 0
        out: str = capsys.readouterr().out
        assert out.startswith(PROMPTS[0])
        return out

    greedy = text()
    warm = text("--temperature", "6", "--seed", "1")
    assert warm == text("--temperature", "6", "--seed", "1")
    assert warm != greedy
    assert warm != text("--temperature", "6", "--seed", "2")
    for only_the_best in (("--top-k", "1"), ("--top-p", "1e-9"), ("--min-p", "1")):
        assert text("--temperature", "6", "--seed", "1", *only_the_best) == greedy
    assert text("--repetition-penalty", "5") != greedy


def test_penalties_bias_and_window_reach_the_sampler(capsys):
    def text(*arguments: str) -> str:
        assert main(["generate", "--max-tokens", "30", "--quiet", *arguments]) == 0
        return str(capsys.readouterr().out)

    greedy = text()
    for penalty in ("--presence-penalty", "--frequency-penalty"):
        assert text(penalty, "9") != greedy
        assert text(penalty, "9", "--penalty-window", "0") == greedy
    with gguf.open(Q1_MODEL) as file:
        comma = Tokenizer.from_gguf(file).encode(",")[0]
    assert "," in greedy
    assert "," not in text("--logit-bias", f"{comma}=-inf", "--logit-bias", "5=0.5")


def test_log_probabilities_go_to_standard_error(capsys):
    plain = ["generate", "--max-tokens", "3", "--quiet", "--temperature", "1", "--seed", "2"]
    assert main(plain) == 0
    out = capsys.readouterr().out
    for n in (0, 2):
        assert main([*plain, "--logprobs", str(n)]) == 0
        found = capsys.readouterr()
        assert found.out == out
        lines = found.err.splitlines()
        assert len(lines) == 3
        for line in lines:
            numbers = [float(x) for x in re.findall(r"-?\d+\.\d{4}", line)]
            assert len(numbers) == 1 + n
            assert numbers[1:] == sorted(numbers[1:], reverse=True)
            assert all(x <= 0 for x in numbers)
    assert "n_best = 33 must lie in 0..32" in fails(capsys, "generate", "--logprobs", 33)


def test_file_recommends_settings_and_explicit_ones_win(path, capsys):
    metadata = {
        "general.sampling.temp": 5.0,
        "general.sampling.top_k": gguf.ValueType.I32(-1),
        "general.sampling.penalty_last_n": gguf.ValueType.I32(-1),
    }
    letters = chain("abcdefghijklmnopqrstuvwxyz")
    write_chain(path, letters, vocabulary=byte_vocabulary() | metadata)

    def run(*arguments: str) -> tuple[str, str]:
        plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet", "--seed", "3"]
        assert main([*plain, "--max-tokens", "9", *arguments]) == 0
        return capsys.readouterr()

    out, err = run()
    assert err == (f"[sampling as {path} recommends: temperature 5, top k 0, penalty window -1]\n")
    assert out != "abcdefghij\n"
    cold, err = run("--temperature", "0")
    assert cold == "abcdefghij\n"
    assert err == f"[sampling as {path} recommends: top k 0, penalty window -1]\n"
    assert run("--top-k", "1", "--penalty-window", "3")[0] == cold


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("min_p", 1.5, "--min-p"),
        ("top_k", "many", "--top-k"),
        ("temp", float("nan"), "--temperature"),
        ("penalty_last_n", 2.5, "--penalty-window"),
    ],
)
def test_file_recommends_what_cannot_be(path, capsys, key, value, option):
    metadata = {f"general.sampling.{key}": value}
    write_chain(path, chain("abcdefghij"), vocabulary=byte_vocabulary() | metadata)
    plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet", "--max-tokens", "3"]
    assert main(plain) == 0
    out, err = capsys.readouterr()
    assert out == "abcd\n"
    assert err.startswith(f"[{path}: general.sampling.{key} = {value!r} is ignored: ")
    assert err.count("\n") == 1
    assert main([*plain, option, "0"]) == 0
    assert capsys.readouterr() == ("abcd\n", "")


def test_drafts_do_not_change_the_text(capsys):
    assert main(["generate", "--quiet", "--draft-tokens", "8"]) == 0
    assert capsys.readouterr().out == PROMPTS[0] + continuation(Q1_GOLDEN, 64) + "\n"
    assert "draft_tokens = 32" in fails(capsys, "generate", "--draft-tokens", 32)


@pytest.mark.parametrize(
    "prompt", [f"Alice {TREE} na\u00efve \u4e2d\u6587", " ", "\t\n", "<|endoftext|>"]
)
def test_any_prompt_is_printed_as_it_is(prompt):
    out, _ = run("generate", "--max-tokens", 2, "--quiet", "--prompt", prompt)
    assert out.startswith(prompt)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_output_is_utf8_in_every_locale(path, locale):
    write_chain(path, chain(TEXT))
    out, _ = run("generate", "--model", path, "--prompt", "x", LANG=locale, LC_ALL=locale)
    assert out == TEXT + "\n"


def test_characters_that_standard_output_cannot_hold_do_not_end_the_text(path):
    write_chain(path, chain(TEXT + "."))
    done = subprocess.run(
        command("generate", "--model", path, "--prompt", "x", "--quiet"),
        capture_output=True,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"x ")
    assert done.stdout.endswith(b".\n")


def test_text_ends_before_the_end_token_which_is_not_printed(path, capsys):
    write_chain(path, chain("abcd"))
    assert main(["generate", "--model", str(path), "--prompt", "a", "--max-tokens", "50"]) == 0
    out, err = capsys.readouterr()
    assert out == "abcd\n"
    assert "generated 3 tokens" in err


def test_prompt_that_ends_the_text_is_printed_alone(path, capsys):
    write_chain(path, {})
    assert main(["generate", "--model", str(path), "--prompt", "ab"]) == 0
    out, err = capsys.readouterr()
    assert out == "ab\n"
    assert "generated 0 tokens]" in err


def test_stream_never_splits_a_character(path):
    write_chain(path, chain(TEXT))
    process = subprocess.Popen(
        command("generate", "--model", path, "--prompt", "x", "--quiet"),
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    pieces = []
    while piece := os.read(process.stdout.fileno(), 4096):
        pieces.append(piece)
        b"".join(pieces).decode()  # whole characters at every moment
    assert process.wait(60) == 0
    process.stdout.close()
    assert b"".join(pieces).decode() == TEXT + "\n"


class Recorder:
    """A text stream that keeps each write."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.flushed = 0
        self.most_waiting = 0  # writes that were in the stream together, not flushed

    def write(self, text: str) -> int:
        self.writes.append(text)
        self.most_waiting = max(self.most_waiting, len(self.writes) - self.flushed)
        return len(text)

    def flush(self) -> None:
        self.flushed = len(self.writes)


def test_each_character_is_written_and_flushed_as_it_comes(path, monkeypatch):
    write_chain(path, chain(TEXT))
    out = Recorder()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["generate", "--model", str(path), "--prompt", "x", "--quiet"]) == 0
    assert out.writes == ["x", " ", "\u00e9", "\u4e2d", TREE, "\n"]
    assert out.flushed == len(out.writes)
    assert out.most_waiting == 1, "characters waited for one another: the text is not streamed"


def test_random_bytes_are_printed_as_utf8(path):
    tiny = Tiny(vocab=257, context=256)
    write(path, tiny, random_tensors(tiny), byte_vocabulary())
    out, _ = run(
        *("generate", "--model", path, "--prompt", TREE, "--max-tokens", 200, "--quiet"),
        *("--temperature", 3, "--seed", 5),
    )
    assert out.startswith(TREE)
    assert "\ufffd" in out  # most random bytes are not UTF-8


def test_unfinished_character_at_the_end_is_marked(path, capsys):
    write_chain(path, chain(TEXT))
    assert main(["generate", "--model", str(path), "--prompt", "x", "--max-tokens", "4"]) == 0
    assert capsys.readouterr().out == "x \u00e9\ufffd\n"


@pytest.mark.parametrize("prompt", ["a", "abc", "abcd"])
def test_full_context_ends_the_text_with_a_note(path, capsys, prompt):
    write_chain(path, chain("abcdefgh"))
    arguments = ["generate", "--model", str(path), "--prompt", prompt, "--quiet"]
    assert main([*arguments, "--max-seq", "4"]) == 0
    assert capsys.readouterr() == (
        "abcd\n",
        "[the context is full: --max-seq is 4, and can be 256, the model's context_length]\n",
    )
    assert "5 tokens do not fit: --max-seq is 4, and can be 256" in fails(
        capsys, *arguments[:-3], "--prompt", "abcde", "--max-seq", "4"
    )


def test_full_context_of_the_model_names_its_length(path, capsys):
    write_chain(path, {ord("a"): ord("a")}, context=16)
    arguments = ["generate", "--model", str(path), "--quiet", "--max-tokens", "99", "--stop", "ab"]
    assert main([*arguments, "--prompt", "a"]) == 0
    out, err = capsys.readouterr()
    assert out == "a" * 16 + "\n"  # also what could have begun the stop text
    assert err == (
        "[the context is full: --max-seq can be no more than the model's context_length, 16]\n"
    )


def test_length_that_just_fits_is_no_full_context(path, capsys):
    write_chain(path, chain("abcdefgh"))
    arguments = ["generate", "--model", str(path), "--prompt", "a", "--quiet", "--max-seq", "4"]
    for n in (0, 3):
        assert main([*arguments, "--max-tokens", str(n)]) == 0
        assert capsys.readouterr() == ("abcd"[: n + 1] + "\n", "")


def test_beginning_of_text_is_fed_where_the_file_asks_for_it(path, capsys):
    tiny = Tiny(n_layers=1, vocab=257)
    extra = {"tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.add_bos_token": True}
    write(path, tiny, random_tensors(tiny), byte_vocabulary() | extra)
    assert main(["generate", "--model", str(path), "--prompt", "ab", "--max-tokens", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("ab")
    assert "prompt 3 tokens" in err
    with Model.load(path, "cpu") as model, model.session() as session:
        session.forward([256, *b"ab"], logits=None)
        assert out == "ab" + model.tokenizer.decode(session.generate(3)) + "\n"
    assert main(["generate", "--model", str(path), "--prompt", "", "--max-tokens", "1"]) == 0


# info and devices


def test_info_says_what_is_in_the_file(capsys):
    assert main(["info", str(Q1_MODEL)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"file       {Q1_MODEL}\n" in out
    assert "3.11 MB, GGUF version 3\n" in out
    assert "tensors    68\n" in out
    assert re.search(r"\n  Q1_0 +43 tensors, +2\.\d\d MB\n", out)
    assert re.search(r"\n  F32 +25 tensors, +0\.0\d MB\n", out)
    assert "  general.architecture = 'qwen3'\n" in out
    assert "  qwen3.rope.freq_base = 1000000\n" in out
    assert "  tokenizer.ggml.tokens = array of 4096\n" in out
    assert "  tokenizer.ggml.add_bos_token = False\n" in out
    assert "blk." not in out


def test_info_lists_tensors_on_request(capsys):
    assert main(["info", "--tensors", str(TERNARY_MODEL), "--type42", "TQ2_0_g128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  token_embd.weight                TQ2_0_g128   4096 x 512" in lines
    assert "  blk.5.attn_norm.weight           F32          512" in lines
    assert sum(line.startswith("  blk.") for line in lines) == 66


def test_info_reads_what_cannot_run(path, capsys):
    tiny = Tiny(n_layers=1, hidden=256)
    tensors = random_tensors(tiny, "Q8_0")
    write(path, tiny, tensors, {"prism.hadamard.seed": 1, "general.architecture": "other"})
    raw = bytearray(path.read_bytes())
    name = string("blk.0.ffn_down.weight")
    raw[raw.index(name) + len(name) + 20] = 24  # the type: I8
    path.write_bytes(raw)
    assert main(["info", "--tensors", str(path)]) == 0
    out = capsys.readouterr().out
    assert "I8 (unsupported)" in out
    assert "blk.0.ffn_down.weight            I8           256 x 256" in out
    assert f"cannot run: {path}: prism.hadamard.seed is not known here" in out


def test_devices_lists_every_device_the_default_first(capsys):
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = metal.devices()
    assert len(lines) == len(found)
    for line, device in zip(lines, found, strict=True):
        assert line.startswith(f"{device.driver}:{device.index}  {device.name}: ")
        assert device.variant in line
        assert line.endswith("GiB")


def test_version_and_help_go_to_standard_output(capsys):
    for argument, text in (
        ("--version", f"oxibonsai {oxibonsai.__version__}\n"),
        ("--help", "usage:"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([argument])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(text)


# Errors


@pytest.mark.parametrize("arguments", [("generate", "--model"), ("info",)])
def test_file_that_is_no_good_is_an_error(capsys, path, arguments):
    assert "model.gguf" in fails(capsys, *arguments, path)
    path.write_bytes(b"GGML" + bytes(100))
    assert "is not a GGUF file" in fails(capsys, *arguments, path)
    path.write_bytes(Q1_MODEL.read_bytes()[:200_000])
    assert "model.gguf" in fails(capsys, *arguments, path)
    assert "directory" in fails(capsys, *arguments, path.parent)


def test_model_that_cannot_run_is_an_error(capsys, path):
    tiny = Tiny(n_layers=1)
    write(path, tiny, random_tensors(tiny), {"general.architecture": "llama"})
    assert "'llama'" in fails(capsys, "generate", "--model", path)
    write(path, tiny, random_tensors(tiny))
    assert "tokenizer.ggml.model" in fails(capsys, "generate", "--model", path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--device", "nowhere"), "nowhere"),
        (("--device", "cpu:7"), "cpu:7"),
        (("--threads", "0"), "threads = 0"),
        (("--max-tokens", "-1"), "--max-tokens -1"),
        (("--max-seq", "0"), "max_seq = 0"),
        (("--max-seq", "1000000"), "2048"),
        (("--max-seq", "5"), "13 tokens do not fit"),
        (("--prompt", ""), "prompt is empty"),
        (("--prompt", "\udc80"), "surrogate"),
        (("--type42", "Q2_0", "--model", TERNARY_MODEL), "contradicts"),
    ],
)
def test_argument_that_cannot_be_met_is_an_error(capsys, arguments, text):
    assert text in fails(capsys, "generate", *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--temperature", "-1"), "temperature = -1"),
        (("--top-k", "-1"), "top_k = -1"),
        (("--top-p", "0"), "top_p = 0"),
        (("--min-p", "2"), "min_p = 2"),
        (("--repetition-penalty", "0"), "repetition_penalty = 0"),
        (("--seed", "-1"), "seed = -1 must be in 0.."),
        (("--presence-penalty", "inf"), "presence_penalty = inf"),
        (("--penalty-window", "-2"), "penalty_window = -2"),
        (("--logit-bias", "5000=1"), "logit_bias of token 5000"),
        (("--logit-bias", "5=nan"), "logit_bias of token 5 = nan"),
    ],
)
def test_sampling_argument_out_of_its_range_is_an_error_before_any_text(capsys, arguments, text):
    assert text in fails(capsys, "generate", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("converse",),
        ("chat", "surplus"),
        ("generate", "--nonsense"),
        ("generate", "--max-tokens", "many"),
        ("generate", "--logit-bias", "5"),
        ("generate", "--logit-bias", "five=1"),
        ("generate", "--kv-dtype", "f64"),
        ("generate", "--type42", "Q1_0"),
        ("generate", "surplus"),
        ("info",),
        ("devices", "surplus"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: oxibonsai")


def test_error_is_the_exit_status_of_the_process(path):
    out, err = run("info", path, status=1)
    assert out == ""
    assert err.startswith("oxibonsai: ")
    assert str(path) in err
    assert "Traceback" not in err
    assert "usage:" in run("generate", "--nonsense", status=2)[1]


BLOCK_TOKENIZERS = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tokenizers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""


def test_missing_tokenizers_package_is_named_with_its_extra(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TOKENIZERS)
    with_block = os.pathsep.join([str(tmp_path), str(ROOT)])
    out, err = run("generate", status=1, PYTHONPATH=with_block)
    assert out == ""
    assert err == (
        "oxibonsai: encoding text needs the package tokenizers: "
        "pip install tokenizers jinja2 rich\n"
    )
    out, _ = run("info", Q1_MODEL, PYTHONPATH=with_block)
    assert "Q1_0" in out


# Ends from outside


def endless(path: Path) -> Path:
    """Write a model whose text never ends: abababab."""
    return write_chain(path, {ord("a"): ord("b"), ord("b"): ord("a")}, context=100_000)


# What starts this suite may ignore SIGINT, which Python then leaves so.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from oxibonsai.cli import main
sys.exit(main())
"""


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def test_interrupt_ends_with_the_text_so_far_and_130(path):
    arguments = ("generate", "--model", endless(path), "--prompt", "a", "--max-tokens", 90_000)
    process = start(*arguments, "--max-seq", 100_000)
    assert process.stdout is not None
    head = os.read(process.stdout.fileno(), 1)
    while len(head) < 20:
        head += os.read(process.stdout.fileno(), 4096)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    text = (head + rest).decode()
    assert process.returncode == 130, err
    assert text.endswith("\n")
    assert ("ab" * 50_000).startswith(text[:-1])
    assert b"Traceback" not in err
    assert b"generated " in err


def test_interrupt_before_the_text_ends_quietly_with_130(monkeypatch, capsys):
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "load", interrupted)
    assert main(["generate"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_reader_that_goes_away_ends_the_text_quietly(path):
    process = start(
        *("generate", "--model", endless(path), "--prompt", "a", "--max-tokens", 90_000),
        *("--max-seq", 100_000),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    head = os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert b"abababab".startswith(head[:8])
    assert err == b""


COMMANDS = [("generate", "--quiet"), ("info", "--tensors", Q1_MODEL), ("devices",)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: a[0])
def test_head_takes_what_it_wants(arguments):
    shell = f"{shlex.join(command(*arguments))} | head -c 3"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, env=environment(), timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) == 3


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: a[0])
def test_output_to_a_closed_pipe_ends_quietly(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command(*arguments), stdout=write, stderr=subprocess.PIPE, env=environment(), timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda a: a[0])
def test_full_disk_is_an_error(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*arguments), stdout=full, stderr=subprocess.PIPE, env=environment()
        )
    assert done.returncode == 1
    assert done.stderr == b"oxibonsai: [Errno 28] No space left on device\n"
