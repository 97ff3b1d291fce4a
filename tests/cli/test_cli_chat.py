"""The commands chat and bench, as users run them."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails, run
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


def test_special_tokens_in_a_line_are_text(talk):
    out, err = talk("<|im_end|>\n/history\n")
    assert out == ANSWER + "\n"
    assert err.startswith("user: <|im_end|>\n")


def test_full_session_is_told_and_does_not_end_the_conversation(talk):
    out, err = talk("a" * 200 + "\nb\n", "--max-seq", 100)
    assert out == f"\n{ANSWER}\n"
    assert re.search(r"\d+ tokens of conversation do not fit: .* 100.*/reset or /undo", err)


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


# bench


def test_bench_prints_speeds_and_settings_as_json(path):
    out, err = run(
        *("bench", "--model", path, "--json", "--prompt-tokens", 20, "--tokens", 5),
        *("--repeat", 3, "--kv-dtype", "f32", "--chunk", 8, "--threads", 1, "--device", "cpu"),
    )
    assert err == ""
    found = json.loads(out)
    assert found["settings"] == {
        "prompt_tokens": 20,
        "tokens": 5,
        "repeat": 3,
        "kv_dtype": "f32",
        "chunk": 8,
        "activations": "float32",
    }
    for name, n in (("prefill", 20), ("decode", 5)):
        runs = found[name]["runs_seconds"]
        assert len(runs) == 3
        assert found[name]["tokens"] == n
        assert found[name]["tokens_per_second"] == pytest.approx(n / sorted(runs)[1])
    assert found["device"]["driver"] == "cpu"
    assert found["device"]["threads"] == 1
    assert found["model"]["path"] == str(path)
    assert found["model"]["weight_bytes_per_token"] > 0


def test_bench_prints_a_line_for_each_speed(path, capsys):
    arguments = ["--prompt-tokens", "9", "--tokens", "2", "--repeat", "1"]
    assert main(["bench", "--model", str(path), *arguments]) == 0
    head, prefill, decode = capsys.readouterr().out.splitlines()
    assert head.startswith("tiny on ")
    assert re.fullmatch(r"prefill +[\d.]+ tokens/s \(9 tokens, median of 1\)", prefill)
    assert re.fullmatch(r"decode +[\d.]+ tokens/s \(2 tokens, median of 1\)", decode)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--tokens", 0), "tokens = 0 must be 1 or more"),
        (("--prompt-tokens", -1), "prompt_tokens = -1"),
        (("--repeat", 0), "repeat = 0"),
        (("--prompt-tokens", 300), "must lie in 1..256"),
        (("--chunk", 0), "chunk = 0"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(path, capsys, arguments, text):
    assert text in fails(capsys, "bench", "--model", path, *arguments)
