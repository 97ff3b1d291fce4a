"""The command chat, as users run it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails
from model_files import Q1_MODEL
from places import ROOT
from tiny_models import ANSWER, FOLLOWS, chat_vocabulary, write_chain

from oxibonsai.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "chat.gguf", FOLLOWS, vocabulary=chat_vocabulary())


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


@pytest.fixture
def talk(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(lines: str, *arguments: Any, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", "--model", str(path), *map(str, arguments)]) == status
        return capsys.readouterr()

    return run


def test_each_line_is_answered_by_a_line(talk):
    assert talk("Hello\n\n  \nAgain") == (f"{ANSWER}\n{ANSWER}\n", "")


def test_history_has_the_system_message_and_both_sides(talk):
    out, err = talk("Hello\n/history\n", "--system", "Be brief.")
    assert out == ANSWER + "\n"
    assert err == f"system: Be brief.\nuser: Hello\nassistant: {ANSWER}\n"


def test_commands(talk):
    out, err = talk("a\n/undo\n/undo\nb\n/reset\n/history\n//c\n/history\n/no\n/help\n/exit\nd\n")
    assert out == f"{ANSWER}\n" * 3
    assert err.startswith(
        "undone\nthere is nothing to undo\nthe conversation is forgotten\n"
        f"user: /c\nassistant: {ANSWER}\nno command '/no'; there are /reset, "
    )
    assert "/exit     end" in err


def test_length_and_sampling_are_the_arguments(talk):
    assert talk("a\n", "--max-tokens", 3)[0] == ANSWER[:3] + "\n"
    out = [talk("a\n", "--temperature", 5, "--seed", 4, "--max-tokens", 9)[0] for _ in range(2)]
    assert out[0] == out[1] != ANSWER + "\n"
    assert talk("a\n", "--temperature", 5, "--top-k", 1)[0] == ANSWER + "\n"


def test_log_probabilities_are_notes(talk):
    out, err = talk("a\n", "--logprobs", 1)
    assert out == ANSWER + "\n"
    lines = err.splitlines()
    assert len(lines) == len(ANSWER)
    for letter, line in zip(ANSWER, lines, strict=True):
        assert re.fullmatch(rf" +-?0\.\d{{4}} '{letter}'  \| +-?0\.\d{{4}} '{letter}'", line)


def test_file_recommends_settings_which_are_told_once(tmp_path, monkeypatch, capsys):
    metadata = {"general.sampling.temp": 9.0, "general.sampling.top_k": 1}
    path = write_chain(tmp_path / "hot.gguf", FOLLOWS, vocabulary=chat_vocabulary() | metadata)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert main(["chat", "--model", str(path)]) == 0
    assert capsys.readouterr() == (
        f"{ANSWER}\n{ANSWER}\n",
        f"[sampling as {path} recommends: temperature 9, top k 1]\n",
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n"))
    options = ["--top-k", "0", "--seed", "1", "--max-tokens", "9"]
    assert main(["chat", "--model", str(path), *options]) == 0
    assert capsys.readouterr().out != f"{ANSWER}\n"


def test_file_recommends_what_cannot_be_which_is_told_once(tmp_path, monkeypatch, capsys, caplog):
    metadata = {"general.sampling.min_p": 7.0, "general.sampling.top_k": 1}
    path = write_chain(tmp_path / "odd.gguf", FOLLOWS, vocabulary=chat_vocabulary() | metadata)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert main(["chat", "--model", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{ANSWER}\n{ANSWER}\n"
    told, taken = err.splitlines()
    assert told.startswith(f"[{path}: general.sampling.min_p = 7.0 is ignored: min_p = 7.0 must")
    assert taken == f"[sampling as {path} recommends: top k 1]"
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert main(["chat", "--model", str(path), "--min-p", "0", "--top-k", "1"]) == 0
    assert capsys.readouterr() == (f"{ANSWER}\n{ANSWER}\n", "")
    assert not caplog.records


def test_special_tokens_in_a_line_are_text(talk):
    out, err = talk("<|im_end|>\n/history\n")
    assert out == ANSWER + "\n"
    assert err.startswith("user: <|im_end|>\n")


def test_full_session_is_told_and_does_not_end_the_conversation(talk):
    out, err = talk("a" * 200 + "\nb\n", "--max-seq", 100, status=1)
    assert out == f"{ANSWER}\n"
    assert re.fullmatch(
        r"\(line 1 was not answered: with what the template adds its \d+ tokens do not fit the "
        r"context of 100; give a shorter one; --max-seq is 100, and can be 256, the "
        r"model's context_length\)\n",
        err,
    )


class Interrupted(io.StringIO):
    """Standard output of somebody who presses Ctrl-C at a certain piece."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def write(self, text: str) -> int:
        written = super().write(text)
        if text == self.at:
            self.at = ""
            raise KeyboardInterrupt
        return written


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(path, monkeypatch, capsys):
    out = Interrupted("a")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/history\nAgain\n"))
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["chat", "--model", str(path)]) == 0
    assert out.getvalue() == f"Hea\n{ANSWER}\n"
    assert capsys.readouterr().err == "(stopped)\nuser: Hello\nassistant: Hea\n"


def test_model_without_a_template_is_named(capsys):
    text = fails(capsys, "chat", "--model", Q1_MODEL)
    assert "'Alice 1-bit demo'" in text
    assert "no chat template" in text


def test_over_a_pipe(path):
    done = subprocess.run(
        command("chat", "--model", path),
        input=b"Hello\nAgain\n",
        capture_output=True,
        env=environment(),
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{ANSWER}\n{ANSWER}\n".encode(), b"")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals on this system")
def test_in_a_terminal(path, tmp_path):
    """What a user sees, whose model says an escape sequence and markup."""
    evil = write_chain(
        tmp_path / "evil.gguf",
        {ord("\n"): 27, 27: ord("["), ord("["): ord("b"), ord("b"): ord("]")},
        vocabulary=chat_vocabulary(),
    )
    for model, shown in ((path, ANSWER), (evil, "?[b]")):
        outer, inner = os.openpty()
        process = subprocess.Popen(
            command("chat", "--model", model),
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=environment(TERM="dumb", COLUMNS="200"),
            cwd=ROOT,
        )
        os.close(inner)
        seen = b""

        def until(text: bytes, outer: int = outer) -> None:
            nonlocal seen
            while text not in seen:
                seen += os.read(outer, 4096)
            seen = seen.split(text, 1)[1]

        try:
            until(b"/help says what can be typed")
            until(b"> ")
            os.write(outer, b"Hello\n")
            until(shown.encode() + b"\r\n")
            until(b"> ")
            os.write(outer, b"\x04")  # Ctrl-D
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
            os.close(outer)
