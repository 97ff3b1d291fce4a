"""Wrong usage of the command line, and arguments that look like something else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails, run
from model_files import Q1_MODEL
from tiny_models import ANSWER, FOLLOWS, chain, chat_vocabulary, write_chain

from oxibonsai import metal
from oxibonsai.cli import main
from oxibonsai.cli.naming import as_typed
from oxibonsai.model import Session
from oxibonsai.model.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "letters.gguf", chain("-ab-c"[:3] + "cde"))


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "chat.gguf", FOLLOWS, vocabulary=chat_vocabulary())


def usage(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


# Values that begin with a dash


@pytest.mark.parametrize("option", ["--prompt", "--prom"])
@pytest.mark.parametrize("text", ["-a", "--", "---", "-1", "--a b", "-Hello", "--nonsense"])
def test_text_that_begins_with_a_dash_is_a_value(letters, capsys, option, text):
    plain = ["generate", "--model", str(letters), "--max-tokens", "0", "--quiet"]
    assert main([*plain, option, text]) == 0
    assert capsys.readouterr().out == text + "\n"
    assert main([*plain, f"{option}={text}"]) == 0
    assert capsys.readouterr().out == text + "\n"


def test_stops_biases_and_files_may_begin_with_a_dash(letters, capsys, tmp_path, monkeypatch):
    plain = ["generate", "--model", str(letters), "--quiet"]
    assert main([*plain, "--stop", "-c", "--prompt", "a"]) == 0
    assert capsys.readouterr().out == "abcde\n"
    assert "token -1" in fails(capsys, *plain, "--prompt", "a", "--logit-bias", "-1=1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-x").write_text("a")
    assert main([*plain, "-f", "-x", "--max-tokens", "0"]) == 0
    assert capsys.readouterr().out == "a\n"


def test_name_of_an_option_is_no_value(capsys):
    err = usage(capsys, "generate", "--stop", "--quiet")
    assert err.endswith("one that is the name of an option is given as --stop=VALUE\n")
    assert "usage: oxibonsai generate" in err


# What is misspelt


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("generate", "--promt", "x"), "there is no option --promt: did you mean --prompt?"),
        (("generate", "--temprature=1"), "there is no option --temprature: did you mean --temp"),
        (("chat", "--sesion", "x"), "there is no option --sesion: did you mean --session?"),
        (("info", "--tensor5", "x"), "did you mean --tensors?"),
        (("generate", "--zzzz"), "there is no option --zzzz\n"),
        (("generate", "surplus"), "unrecognized arguments: surplus"),
    ],
)
def test_misspelt_option_gets_the_usage_of_its_command(capsys, arguments, text):
    err = usage(capsys, *arguments)
    assert err.startswith(f"usage: oxibonsai {arguments[0]} ")
    assert text in err


@pytest.mark.parametrize(
    ("name", "meant"),
    [("generatee", ": did you mean generate?"), ("chta", ": did you mean chat?"), ("m.gguf", "\n")],
)
def test_misspelt_command(capsys, name, meant):
    known = "there are generate, chat, bench, info, devices, tune"
    assert f"there is no command {name!r}; {known}{meant}" in usage(capsys, name)


def test_name_of_a_file_that_is_none_is_wrong_usage(capsys):
    for arguments in (
        ("chat", "--model", ""),
        ("chat", "--session", ""),
        ("chat", "--tools", ""),
        ("chat", "--template", ""),
        ("generate", "--file", ""),
        ("info", ""),
    ):
        assert "the name is empty: name a file" in usage(capsys, *arguments)
    for arguments in (("info", "-"), ("generate", "--model", "-"), ("chat", "--session", "-")):
        assert '"-" is standard input' in usage(capsys, *arguments)


# The words of messages


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--logprobs", "33"), "oxibonsai: --logprobs: n_best = 33"),
        (("--seed", "-1"), "oxibonsai: --seed: "),
        (("--top-p", "7"), "oxibonsai: --top-p: "),
        (("--draft-tokens", "99"), "oxibonsai: --draft-tokens: "),
        (("--max-seq", "99999999"), "oxibonsai: --max-seq: "),
        (("--logit-bias", "99999=1"), "oxibonsai: --logit-bias: "),
        (("--stop", ""), "oxibonsai: a --stop is empty"),
    ],
)
def test_error_begins_with_the_option(capsys, arguments, text):
    assert fails(capsys, "generate", "--prompt", "a", *arguments).startswith(text)


def test_message_of_no_option_stays(capsys):
    assert as_typed(ValueError("n_best = 3"), None) == "n_best = 3"
    assert as_typed(ValueError("other = 3"), None) == "other = 3"


@pytest.mark.parametrize(
    ("arguments", "idle"),
    [
        (("--top-k", "5"), "--top-k has no"),
        (("--seed", "5", "--min-p", "0.1"), "--min-p, --seed have no"),
        (("--top-p", "0.5", "--temperature", "0"), "--top-p has no"),
        (("--seed", "5", "--temperature", "0"), None),
        (("--seed", "5", "--top-k", "2", "--temperature", "1"), None),
    ],
)
def test_options_without_an_effect_are_told(letters, capsys, arguments, idle):
    plain = ["generate", "--model", str(letters), "--quiet", "--prompt", "a"]
    assert main([*plain, *arguments]) == 0
    err = capsys.readouterr().err
    assert err == "" if idle is None else f"{idle} effect; --temperature T samples]" in err


def test_whole_numbers_of_a_file_are_shown_whole(tmp_path, capsys):
    vocabulary = chat_vocabulary() | {"general.sampling.top_k": 10**9}
    path = write_chain(tmp_path / "m.gguf", FOLLOWS, vocabulary=vocabulary)
    assert main(["chat", "--model", str(path), "--message", "a"]) == 0
    assert "top k 1000000000]" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [40, 70, 200])
def test_help_is_as_wide_as_the_terminal(monkeypatch, capsys, columns, chatty):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main(["--help"])
    epilog = capsys.readouterr().out.split("exit status:")[1]
    assert all(len(line) <= columns for line in epilog.splitlines())
    assert ("\n" in epilog.strip()) == (columns < 200)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n"))
    assert main(["chat", "--model", str(chatty)]) == 0
    err = capsys.readouterr().err
    assert all(len(line) <= columns for line in err.splitlines())
    assert "/exit     end" in err


# Prompts that can never fit


def test_text_that_can_never_fit_is_refused_before_it_is_encoded(
    letters, chatty, capsys, monkeypatch, tmp_path
):
    (tmp_path / "big.txt").write_text("abc " * 100_000)
    encode = Tokenizer.encode

    def checked(self: Tokenizer, text: str, **options: Any) -> list[int]:
        assert len(text) < 100_000, "encoded"
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", checked)
    text = fails(capsys, "generate", "--model", letters, "--file", tmp_path / "big.txt")
    assert "at least " in text
    assert "do not fit: --max-seq can be no more than the model's context_length, 256" in text
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc " * 100_000))
    text = fails(capsys, "chat", "--model", chatty, "--message", "-")
    assert "--message was not answered" in text
    assert "at least " in text


def test_text_that_may_fit_is_encoded(letters, capsys):
    text = "<|endoftext|>" * 200  # the longest token, of 13 bytes
    plain = ("generate", "--model", str(letters), "--max-tokens", "0", "--quiet")
    assert main([*plain, "--special", "--prompt", text]) == 0
    assert capsys.readouterr().out == text + "\n"


# JSON


def test_info_as_json(capsys):
    assert main(["info", "--json", str(Q1_MODEL)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["files"] == [str(Q1_MODEL)]
    assert found["version"] == 3
    assert found["metadata"]["general.architecture"] == "qwen3"
    assert len(found["metadata"]["tokenizer.ggml.tokens"]) == 4096
    assert len(found["tensors"]) == 68
    (first,) = (t for t in found["tensors"] if t["name"] == "token_embd.weight")
    assert first["format"] == "Q1_0"
    assert first["shape"] == [4096, 512]


def test_info_as_json_of_numbers_that_json_has_not(tmp_path, capsys):
    vocabulary = chat_vocabulary() | {"x.nan": float("nan"), "x.list": [1.5, float("inf")]}
    path = write_chain(tmp_path / "m.gguf", FOLLOWS, vocabulary=vocabulary)
    assert main(["info", "--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["metadata"]["x.nan"] == "nan"
    assert found["metadata"]["x.list"] == [1.5, "inf"]


def test_devices_as_json(capsys):
    assert main(["devices", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {**d._asdict(), "variants": [], "reason": None} for d in metal.devices()
    ]


# The device of the environment


@pytest.mark.parametrize("value", ["nope", "cpu:9", "cpu:x", ":", "cpu:99999"])
def test_wrong_device_of_the_environment_is_named(capsys, monkeypatch, value):
    monkeypatch.setenv("OXIBONSAI_DEVICE", value)
    with pytest.raises(metal.DeviceNotFoundError, match=f"^OXIBONSAI_DEVICE = '{value}': no d"):
        metal.Device()
    for arguments in (("devices",), ("generate",)):
        assert main([*arguments]) == 1
        err = capsys.readouterr().err
        assert err.startswith(f"oxibonsai: OXIBONSAI_DEVICE = '{value}': ")
    with pytest.raises(metal.DeviceNotFoundError, match=r"^no device") as caught:
        metal.Device("cpu:9")
    assert "OXIBONSAI" not in str(caught.value)


# Streams


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_full_disk_is_an_error_without_buffers_too(argument):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(argument), stdout=full, stderr=subprocess.PIPE,
            env=environment(PYTHONUNBUFFERED="1"), timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b"oxibonsai: [Errno 28] No space left on device\n"


def test_prompt_is_shown_before_it_is_read(letters, monkeypatch, capsys):
    forward = Session.forward
    shown = []

    def noted(*arguments: Any, **options: Any) -> Any:
        shown.append(capsys.readouterr().out)
        return forward(*arguments, **options)

    monkeypatch.setattr(Session, "forward", noted)
    assert main(["generate", "--model", str(letters), "--quiet", "--prompt", "a"]) == 0
    assert shown == ["a"]
    assert capsys.readouterr().out == "bcde\n"


def test_demo_model_of_a_chat_names_the_ways_out(capsys):
    text = fails(capsys, "chat")
    for way in ("no chat template", "--model FILE", "README", "--template FILE", "generate"):
        assert way in text
    assert "Session" not in text
    assert ANSWER not in text
    out = run("chat", "--help")[0]
    assert "--template" in out.split("--model FILE", 2)[2].split("--system")[0]
