"""What generate is given: arguments, files, standard input, special tokens, encodings."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails, run
from hypothesis import given
from hypothesis import strategies as st
from model_files import PROMPTS
from tiny_models import IM_END, byte_vocabulary, chain, chat_vocabulary, write_chain

from oxibonsai.cli import main
from oxibonsai.cli.generate import DEFAULT_PROMPT
from oxibonsai.cli.inputs import argument, decoded, without_last_newline
from oxibonsai.model import Model

TREE = "\U0001f333"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose text ends at once."""
    return write_chain(tmp_path / "model.gguf", {})


def piped(data: bytes, *arguments: Any, status: int = 0, **env: str | None) -> tuple[bytes, str]:
    done = subprocess.run(
        command("generate", "--quiet", *arguments),
        input=data,
        capture_output=True,
        env=environment(**env),
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr.decode()


# Standard input


@pytest.mark.parametrize("arguments", [(), ("--prompt", "-"), ("--file", "-"), ("-f", "-")])
@pytest.mark.parametrize(
    ("data", "prompt"),
    [
        (b"abc", b"abc"),
        (b"abc\n", b"abc"),
        (b"a\nb\n\n", b"a\nb\n"),
        (b"a\r\nb\r\n", b"a\r\nb"),
        ("\ufeffnaïve 中文 ".encode() + TREE.encode(), "naïve 中文 ".encode() + TREE.encode()),
        (b"\x00\t\x1b[0m", b"\x00\t\x1b[0m"),
        (b" ", b" "),
    ],
)
def test_prompt_over_a_pipe(model, arguments, data, prompt):
    assert piped(data, "--model", model, *arguments) == (prompt + b"\n", "")


def test_prompt_from_a_redirected_file_or_a_socket(model, tmp_path):
    (tmp_path / "prompt.txt").write_text("abc\n")
    ours, theirs = socket.socketpair()
    ours.sendall(b"abc\n")
    ours.shutdown(socket.SHUT_WR)
    with open(tmp_path / "prompt.txt", "rb") as file, ours, theirs:
        for stdin in (file, theirs):
            done = subprocess.run(
                command("generate", "--quiet", "--model", model),
                stdin=stdin,
                capture_output=True,
                env=environment(),
                timeout=120,
            )
            assert (done.returncode, done.stdout) == (0, b"abc\n")


def test_stream_that_a_program_puts_in_place_of_standard_input(model, monkeypatch, capsys):
    for stream in (io.StringIO("abc\n"), io.TextIOWrapper(io.BytesIO(b"abc\n"))):
        monkeypatch.setattr(sys, "stdin", stream)
        assert main(["generate", "--model", str(model), "--quiet"]) == 0
        assert capsys.readouterr().out == "abc\n"


@pytest.mark.parametrize("arguments", [(), ("--prompt", "-"), ("--file", "-")])
@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf"])
def test_empty_standard_input_is_an_error(arguments, data):
    out, err = piped(data, *arguments, status=1)
    assert out == b""
    assert err == "oxibonsai: the prompt is empty: give at least one character\n"


def test_without_input_the_default_prompt_is_continued():
    assert PROMPTS[0] == DEFAULT_PROMPT
    for shell in ("</dev/null", "<&-"):
        line = " ".join(map(str, command("generate", "--quiet", "--max-tokens", 1)))
        done = subprocess.run(
            ["sh", "-c", f"{line} {shell}"], capture_output=True, env=environment(), timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(DEFAULT_PROMPT.encode())
    assert "prompt is empty" in fails_with_input_null("--prompt", "-")


def fails_with_input_null(*arguments: str) -> str:
    done = subprocess.run(
        command("generate", *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    return done.stderr.decode()


def test_prompt_that_is_given_leaves_standard_input_alone(model, tmp_path):
    (tmp_path / "p").write_text("from the file")
    assert piped(b"piped", "--model", model, "--prompt", "given")[0] == b"given\n"
    assert piped(b"piped", "--model", model, "--file", tmp_path / "p")[0] == b"from the file\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xff", "byte 0xff at 0"),
        ("中文".encode()[:-1], "byte 0xe6 at 3"),
        (b"abc\xc0\xaf", "byte 0xc0 at 3"),
        (b"a" * 5000 + b"\xed\xa0\x80", "byte 0xed at 5000"),
        ("\ufeffa".encode() + b"\x80", "byte 0x80 at 4"),
        ("abc".encode("utf-16"), "UTF-16"),
    ],
)
def test_bytes_that_are_no_text_are_an_error_with_their_position(capsys, tmp_path, data, text):
    out, err = piped(data, status=1)
    assert out == b""
    assert err.startswith("oxibonsai: standard input is not UTF-8: ")
    assert text in err
    assert err.count("\n") == 1
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    found = fails(capsys, "generate", "--file", file)
    assert found.startswith(f"oxibonsai: --file {file} is not UTF-8: ")
    assert text in found


def test_encoding_that_is_set_is_that_of_standard_input(model):
    out, _ = piped("naïve".encode("latin-1"), "--model", model, PYTHONIOENCODING="latin-1")
    assert out == "naïve\n".encode("latin-1")
    for encoding in ("ascii", "ascii:strict", "utf-8:surrogateescape"):
        out, _ = piped("naïve".encode(), "--model", model, PYTHONIOENCODING=encoding)
        assert out in (b"na?ve\n", "naïve\n".encode())
        _, err = piped(b"\xff", "--model", model, PYTHONIOENCODING=encoding, status=1)
        assert "byte 0xff at 0" in err


# Files


def test_prompt_from_a_file(model, tmp_path, capsys):
    file = tmp_path / "prompt.txt"
    file.write_bytes("a\r\n中文\n\n".encode())
    assert main(["generate", "--model", str(model), "--quiet", "-f", str(file)]) == 0
    assert capsys.readouterr().out == "a\r\n中文\n\n"


def test_prompt_from_a_named_pipe(model, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    process = subprocess.Popen(
        command("generate", "--quiet", "--model", model, "--file", tmp_path / "fifo"),
        stdout=subprocess.PIPE,
        env=environment(),
    )
    (tmp_path / "fifo").write_text("abc\n")
    assert process.communicate(timeout=120)[0] == b"abc\n"
    assert process.returncode == 0


def test_file_that_cannot_be_read_is_an_error(capsys, tmp_path):
    assert "No such file" in fails(capsys, "generate", "--file", tmp_path / "missing")
    assert "directory" in fails(capsys, "generate", "--file", tmp_path)
    (tmp_path / "empty").touch()
    assert "prompt is empty" in fails(capsys, "generate", "--file", tmp_path / "empty")


def test_two_prompts_are_wrong_usage(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--prompt", "a", "--file", str(tmp_path)])
    assert caught.value.code == 2
    assert "--prompt" in capsys.readouterr().err


# Arguments


def test_argument_that_is_not_utf8_is_an_error_that_names_it(model):
    for option, arguments in (
        ("--prompt", ("generate", "--prompt")),
        ("--stop", ("generate", "--prompt", "a", "--stop")),
        ("--device", ("generate", "--device")),
        ("--system", ("chat", "--message", "a", "--system")),
        ("--message", ("chat", "--message")),
    ):
        done = subprocess.run(
            [*command(*arguments), b"ab\xff"], capture_output=True, env=environment(), timeout=120
        )
        assert (done.returncode, done.stdout) == (1, b"")
        expected = f"oxibonsai: {option} is not UTF-8: byte 0xff at 2 (to Python, a surrogate)\n"
        assert done.stderr.decode() == expected


def test_argument_is_utf8_in_a_locale_that_is_not(model):
    done = subprocess.run(
        [*command("generate", "--quiet", "--model", model, "--prompt"), "na\u00efve".encode()],
        capture_output=True,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"na?ve\n"  # the terminal's encoding is ASCII


def test_lone_surrogate_of_a_program_is_an_error(capsys):
    assert "U+D800" in fails(capsys, "generate", "--prompt", "a\ud800")


@given(st.binary())
def test_every_argument_is_its_text_or_an_error_with_the_position(data):
    text = data.decode("utf-8", "surrogateescape")
    try:
        expected = data.decode()
    except UnicodeDecodeError as error:
        for call in (lambda: argument("--x", text), lambda: decoded(data, "--x")):
            with pytest.raises(
                ValueError, match=rf"--x .* 0x{data[error.start]:02x} at {error.start}"
            ):
                call()
    else:
        assert argument("--x", text) == expected
        assert decoded(data, "--x") == expected.removeprefix("\ufeff")


@given(st.text("a\r\n", max_size=6))
def test_only_the_last_end_of_a_line_goes(text):
    assert without_last_newline(text + "\n") == text.removesuffix("\r")
    assert without_last_newline(text + "a") == text + "a"


# Special tokens and echo


@pytest.fixture
def chatty(tmp_path: Path) -> Path:
    return write_chain(
        tmp_path / "chat.gguf",
        {**chain("\nHeard!"), ord("!"): IM_END},
        vocabulary=chat_vocabulary(),
    )


CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def n_prompt(err: str) -> int:
    return int(err.split("prompt ")[1].split(" token")[0])


@pytest.mark.parametrize("option", ["--special", "--parse-special"])
def test_special_tokens_of_the_prompt_are_read_on_request(chatty, capsys, option):
    plain = ["generate", "--model", str(chatty), "--prompt", CHATML]
    assert main(plain) == 0
    out, err = capsys.readouterr()
    assert out == CHATML + "Heard!\n"
    assert n_prompt(err) == len(CHATML)
    assert main([*plain, option]) == 0
    out, err = capsys.readouterr()
    assert out == CHATML + "Heard!\n"
    assert n_prompt(err) == len("user\nHi\nassistant\n") + 3


def test_special_tokens_of_a_file_are_read_on_request(chatty, capsys, tmp_path):
    (tmp_path / "p").write_text(CHATML + "\n")
    assert (
        main(["generate", "--model", str(chatty), "--file", str(tmp_path / "p"), "--special"]) == 0
    )
    assert n_prompt(capsys.readouterr().err) == len("user\nHi\nassistant\n") + 3


def test_beginning_of_text_that_the_prompt_has_is_not_fed_twice(tmp_path, capsys):
    vocabulary = byte_vocabulary() | {
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.add_bos_token": True,
    }
    path = write_chain(tmp_path / "m.gguf", {}, vocabulary=vocabulary)
    for prompt, n in (("ab", 3), ("<|endoftext|>ab", 3), ("<|endoftext|>", 1)):
        assert main(["generate", "--model", str(path), "--special", "--prompt", prompt]) == 0
        assert n_prompt(capsys.readouterr().err) == n


def test_no_echo_prints_what_is_generated_alone(chatty, capsys):
    options = ["generate", "--model", str(chatty), "--prompt", "a\n", "--no-echo", "--quiet"]
    assert main(options) == 0
    assert capsys.readouterr() == ("Heard!\n", "")
    assert main([*options, "--max-tokens", "0"]) == 0
    assert capsys.readouterr() == ("\n", "")


def test_nfc_reaches_the_tokenizer(tmp_path, capsys):
    model = write_chain(tmp_path / "m.gguf", {})
    plain = ["generate", "--model", str(model), "--prompt", "e\u0301"]
    for options, n in (([], 3), (["--nfc"], 2)):
        assert main([*plain, *options]) == 0
        out, err = capsys.readouterr()
        assert out == "e\u0301\n"  # the prompt as it was given
        assert n_prompt(err) == n


# Ends


def test_stop_texts_end_the_text(capsys, tmp_path):
    path = write_chain(tmp_path / "m.gguf", chain("abcdefgh"))
    plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet"]
    for stops, text in (
        (["d"], "abc"),
        (["ef", "cd"], "ab"),
        (["zz"], "abcdefgh"),
        (["b"], "a"),
        (["hi"], "abcdefgh"),
    ):
        options = [part for stop in stops for part in ("--stop", stop)]
        assert main([*plain, *options]) == 0
        assert capsys.readouterr() == (text + "\n", "")
    assert "stop" in fails(capsys, *plain, "--stop", "")


def test_stop_text_with_scores_and_drafts(capsys, tmp_path):
    path = write_chain(tmp_path / "m.gguf", chain("abcdefgh"))
    plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet", "--stop", "ef"]
    assert main([*plain, "--logprobs", "1", "--draft-tokens", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == "abcd\n"
    assert [line.split("'")[1] for line in err.splitlines()] == ["b", "c", "d"]


def test_control_token_as_stop_text(capsys, tmp_path):
    follows = {**chain("ab"), ord("b"): 257, 257: ord("c")}
    path = write_chain(tmp_path / "m.gguf", follows, vocabulary=chat_vocabulary())
    plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet"]
    assert main([*plain, "--stop", "<|im_start|>"]) == 0
    assert capsys.readouterr().out == "ab\n"


def test_ignore_eos_goes_on(capsys, tmp_path):
    path = write_chain(tmp_path / "m.gguf", {**chain("ab"), 256: ord("c"), ord("c"): ord("d")})
    plain = ["generate", "--model", str(path), "--prompt", "a", "--quiet", "--max-tokens", "4"]
    assert main(plain) == 0
    assert capsys.readouterr().out == "ab\n"
    assert main([*plain, "--ignore-eos"]) == 0
    assert capsys.readouterr().out == "abcd\n"


def test_model_is_loaded_only_for_a_prompt_that_can_be_read(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Model, "load", lambda *_, **__: pytest.fail("loaded"))
    fails(capsys, "generate", "--file", tmp_path / "missing")


def test_output_is_utf8_whatever_the_input(model):
    out, _ = run("generate", "--model", model, "--quiet", "--prompt", TREE, LC_ALL="C")
    assert out == TREE + "\n"
