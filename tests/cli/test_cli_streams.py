"""The command line with streams that are closed or full, signals at odd times, and odd names."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails
from model_files import Q1_MODEL
from places import ROOT
from tiny_models import (
    ANSWER,
    FOLLOWS,
    Tiny,
    byte_vocabulary,
    chat_vocabulary,
    random_tensors,
    write,
    write_chain,
)

from oxibonsai.cli import app, main
from oxibonsai.cli.terminal import escaped, tame
from oxibonsai.model import Model

COMMANDS = {
    "generate": ("generate", "--quiet", "--prompt", "a", "--max-tokens", 2),
    "chat": ("chat", "--message", "a"),
    "info": ("info", "--tensors", Q1_MODEL),
    "devices": ("devices",),
    "tune": ("tune",),
    "version": ("--version",),
    "help": ("generate", "--help"),
    "usage": ("generate", "--nonsense"),
}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams") / "chat.gguf"
    return write_chain(path, FOLLOWS, vocabulary=chat_vocabulary())


def shell(redirection: str, *arguments: Any, **env: str | None) -> tuple[int, str, str]:
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(command(*arguments))} {redirection}"],
        capture_output=True,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def arguments_of(name: str, chat_model: Path) -> tuple[Any, ...]:
    return (*COMMANDS[name], "--model", chat_model) if name == "chat" else COMMANDS[name]


# Closed and full streams


@pytest.mark.parametrize("name", COMMANDS)
def test_closed_standard_output_is_an_error(name, chat_model):
    status, out, err = shell(">&-", *arguments_of(name, chat_model))
    assert (status, out) == (1, "")
    assert err == "oxibonsai: standard output is closed: there is nowhere to write to\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_closed_standard_error_is_no_error(name, chat_model):
    status, out, err = shell("2>&-", *arguments_of(name, chat_model))
    assert (status, err) == (2 if name == "usage" else 0, "")
    assert "oxibonsai:" not in out


@pytest.mark.parametrize("redirection", [">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("name", COMMANDS)
def test_everything_closed_ends_with_1(name, redirection, chat_model):
    assert shell(redirection, *arguments_of(name, chat_model)) == (1, "", "")


def test_closed_standard_input_is_an_error_where_it_is_read(chat_model):
    for arguments in (
        ("chat", "--model", chat_model),
        ("chat", "--model", chat_model, "--message", "-"),
        ("generate", "--prompt", "-"),
    ):
        status, out, err = shell("<&-", *arguments)
        assert (status, out) == (1, "")
        assert err == "oxibonsai: standard input is closed: there is nothing to read\n"
    assert shell("<&-", "chat", "--model", chat_model, "--message", "a")[:2] == (0, f"{ANSWER}\n")


def test_error_with_standard_error_closed_is_its_status(tmp_path):
    assert shell("2>&-", "info", tmp_path / "missing") == (1, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", COMMANDS)
def test_full_disk_ends_with_one_line(name, chat_model):
    status, out, err = shell(">/dev/full", *arguments_of(name, chat_model))
    if name == "usage":
        assert status == 2
    else:
        assert (status, out) == (1, "")
        assert err == "oxibonsai: [Errno 28] No space left on device\n"


def test_standard_error_that_is_full_or_gone_does_not_end_a_text():
    arguments = ("generate", "--prompt", "a", "--max-tokens", 2, "--logprobs", 1)
    expected = shell("", *arguments)[1].encode()
    read, gone = os.pipe()
    os.close(read)
    ends = [gone]
    if Path("/dev/full").exists():
        ends.append(os.open("/dev/full", os.O_WRONLY))
    for end in ends:
        done = subprocess.run(
            command(*arguments),
            stdout=subprocess.PIPE,
            stderr=end,
            env=environment(),
            timeout=120,
        )
        os.close(end)
        assert (done.returncode, done.stdout) == (0, expected)


# Ctrl-C


INTERRUPTER = """
import os, signal, sys
class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
            sum(range(1000))  # where Python notices the signal
sys.meta_path.insert(0, Interrupter())
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


@pytest.mark.parametrize(
    "module",
    ["oxibonsai.cli", "argparse", "numpy", "oxibonsai.metal._core", "oxibonsai.chat", "tokenizers"],
)
@pytest.mark.parametrize("script", [False, True])
def test_interrupt_while_modules_are_imported(tmp_path, module, script):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER.format(name=module))
    argv = command("generate", "--prompt", "a")
    if script:  # as pip's script for the entry point does
        code = "import sys; from oxibonsai.__main__ import run; sys.exit(run())"
        argv = [sys.executable, "-c", code, "generate", "--prompt", "a"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(argv, capture_output=True, env=environment(PYTHONPATH=path), timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_script_is_the_entry_point_that_takes_ctrl_c():
    assert 'oxibonsai = "oxibonsai.__main__:run"' in (ROOT / "pyproject.toml").read_text()


def test_interrupt_that_was_ignored_stays_so(tmp_path):
    """As of a command in the background of a shell, which keeps Ctrl-C for itself."""
    (tmp_path / "sitecustomize.py").write_text(
        INTERRUPTER.format(name="oxibonsai.cli").replace("default_int_handler", "SIG_IGN")
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        command("devices"), capture_output=True, env=environment(PYTHONPATH=path), timeout=120
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_interrupt_at_any_time(monkeypatch, capsys):
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for place, name in ((app, "_parse"), (Model, "load"), (Model, "session"), (Model, "close")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            assert main(["generate", "--prompt", "a", "--max-tokens", "0", "--quiet"]) == 130
        assert capsys.readouterr().err == ""


def test_terminated_process_ends_by_the_signal(chat_model):
    process = subprocess.Popen(
        command("chat", "--model", chat_model),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"a\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"{ANSWER}\n".encode()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == -signal.SIGTERM


# Errors


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "oxibonsai: out of memory\n"),
        (MemoryError("1 GiB"), "oxibonsai: out of memory: 1 GiB\n"),
        (RecursionError("too deep"), "oxibonsai: the input is nested too deeply: too deep\n"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "can't decode byte 0xff"),
        (OverflowError("too large"), "oxibonsai: too large\n"),
        (ValueError("a\nb\x1b[2J"), "oxibonsai: a\\nb\\x1b[2J\n"),
        (OSError(28, "No space", "a\x1bb"), "a\\x1bb"),
    ],
)
def test_error_is_one_line(monkeypatch, capsys, error, text):
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Model, "load", fail)
    assert text in fails(capsys, "generate", "--prompt", "a")


@pytest.mark.parametrize(
    "option",
    ["seed", "top-k", "penalty-window", "max-tokens", "max-seq", "chunk", "threads", "logprobs",
     "draft-tokens"],
)  # fmt: skip
@pytest.mark.parametrize("value", ["-7", "9" * 30])
def test_number_out_of_range_is_an_error_that_names_it(capsys, option, value):
    if option in ("top-k", "max-tokens") and value.startswith("9"):
        return  # as many as there are
    text = fails(capsys, "generate", "--prompt", "a", f"--{option}", value)
    name = "n_best" if option == "logprobs" else option
    assert name in text or name.replace("-", "_") in text


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999"])
@pytest.mark.parametrize("option", ["temperature", "top-p", "min-p", "repetition-penalty"])
def test_number_that_is_none_is_an_error_that_names_it(capsys, option, value):
    assert option.replace("-", "_") in fails(
        capsys, "generate", "--prompt", "a", f"--{option}", value
    )


# Variables of the environment


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OXIBONSAI_THREADS", "abc"),
        ("OXIBONSAI_THREADS", "0"),
        ("OXIBONSAI_THREADS", "1025"),
        ("OXIBONSAI_THREADS", "2 "),
        ("OXIBONSAI_CPU_VARIANT", "mmx"),
        ("OXIBONSAI_TRACE", "yes"),
    ],
)
def test_devices_tell_what_is_wrong_with_a_variable(variable, value):
    status, out, err = shell("", "devices", **{variable: value})
    assert status == 1
    assert "cpu:" not in out
    assert err.startswith("oxibonsai: ")
    assert variable in err
    assert value in err
    assert err.count("\n") == 1


def test_devices_take_good_variables():
    status, out, err = shell("", "devices", OXIBONSAI_THREADS="3", OXIBONSAI_CPU_VARIANT="")
    assert (status, err) == (0, "")
    assert "3 threads" in out


# Names that would steer a terminal


EVIL = "\x1b]0;title\x07\x1b[31mred\x9b2J\r\n\u202egnp\u2028"
SHOWN = "\\x1b]0;title\\x07\\x1b[31mred\\x9b2J\\r\\n\\u202egnp\\u2028"


def test_what_is_not_printable_is_escaped():
    assert escaped(EVIL) == SHOWN
    assert (
        escaped("na\u00efve \u4e2d\u6587 \U0001f333 a\\b")
        == "na\u00efve \u4e2d\u6587 \U0001f333 a\\b"
    )
    assert escaped("\udcff") == "\\udcff"
    for number in (*range(32), *range(127, 160)):
        assert escaped(chr(number)).isprintable()
        assert tame(chr(number)) == (chr(number) if chr(number) in "\t\n" else "?")


def test_names_of_a_file_are_escaped_in_what_is_printed(tmp_path, capsys):
    tiny = Tiny(n_layers=1, vocab=257)
    vocabulary = byte_vocabulary() | {"general.name": EVIL, "evil\x1b[2J": EVIL}
    tensors = random_tensors(tiny)
    path = tmp_path / "evil\x1b[2J.gguf"
    write(path, tiny, tensors, vocabulary)
    assert main(["info", "--tensors", str(path)]) == 0
    out = capsys.readouterr().out
    assert "evil\\x1b[2J = " in out
    assert "evil\\x1b[2J.gguf" in out
    assert main(["generate", "--model", str(path), "--prompt", "a", "--max-tokens", "1"]) == 0
    out, err = capsys.readouterr()
    assert f"[{SHOWN} on " in err
    arguments = ("--tokens", "1", "--prompt-tokens", "1", "--repeat", "1")
    assert main(["bench", "--model", str(path), *arguments]) == 0
    assert SHOWN in capsys.readouterr().out
    for text in (err, fails(capsys, "info", f"{path}.missing")):
        assert all(line.isprintable() for line in text.splitlines())


def test_arguments_are_escaped_in_messages_about_usage(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--max-tokens", "\x1b[2J"])
    assert "\x1b" not in capsys.readouterr().err
