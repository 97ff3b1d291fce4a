"""Conversations that go on: files, results of calls, and messages that get no answer."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails
from speakers import write_speaker
from tiny_models import ANSWER, CHATML, FOLLOWS, chat_vocabulary, write_chain

from oxibonsai.cli import main
from oxibonsai.cli.inputs import InputLines
from oxibonsai.cli.screen import Screen
from oxibonsai.cli.terminal import Tamer, tame
from oxibonsai.metal import MetalGraphError
from oxibonsai.model import Session

CALLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("a", "b")
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_chain(tmp_path / "chat.gguf", FOLLOWS, vocabulary=chat_vocabulary())


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    return write_speaker(tmp_path / "speaker.gguf")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OXIBONSAI_DEVICE", "cpu")


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(model: Path, lines: str, *arguments: Any, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        found = main(["chat", "--model", str(model), *map(str, arguments)])
        out, err = capsys.readouterr()
        assert found == status, err
        return out, err

    return run


def saved(file: Path, messages: list[Any], **changes: Any) -> Path:
    document = {
        "format": "oxibonsai chat",
        "version": 1,
        "model": "tiny",
        "messages": messages,
        "tools": None,
        "documents": None,
        "thinking": None,
        "show_thinking": True,
        "variables": {},
    }
    file.write_text(json.dumps(document | changes))
    return file


# Messages without an answer


REFUSES = CHATML.replace(
    "{% for", "{% if 'BAD' in messages[-1].content %}{{ raise_exception('a bad word') }}"
    "{% endif %}{% for", 1,
)  # fmt: skip


@pytest.mark.parametrize("bad", [b"BAD", b"a\xff", b"a" * 400])
def test_line_without_an_answer_is_a_note_and_the_next_goes_on(tmp_path, bad):
    assert REFUSES != CHATML
    model = write_chain(tmp_path / "m.gguf", FOLLOWS, vocabulary=chat_vocabulary(REFUSES))
    done = subprocess.run(
        command("chat", "--model", model), input=b"a\n" + bad + b"\nb\n", capture_output=True,
        env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.decode() == f"{ANSWER}\n" * 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("(line 2 ")
    assert "reset" not in line
    assert "max_seq" not in line


def test_advice_is_what_helps(talk, path):
    _, err = talk(path, "", "--message", "a" * 200, "--max-seq", 100, status=1)
    assert "--max-seq is 100, and can be 256" in err
    _, err = talk(path, "", "--message", "b", "--message", "a" * 400, status=1)
    assert "--message 2 was not answered" in err
    assert "also without the messages before" in err
    assert "--max-seq can be no more than the model's context_length, 256" in err
    assert "reset" not in err
    assert "undo" not in err


def test_result_that_does_not_fit_can_be_undone(talk, speaker, tmp_path):
    file = saved(
        tmp_path / "c.json",
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        ],
    )
    lines = f"/result {'x' * 200}\n/undo\n/history\n"
    out, err = talk(speaker, lines, "--session", file, "--max-seq", 150, status=1)
    assert out == ""
    assert "the model cannot go on" in err
    assert "/undo takes the turn back" in err
    assert err.endswith("undone\n")


@pytest.mark.parametrize("error", [MemoryError("1 GiB"), MetalGraphError("the device is lost")])
def test_error_of_the_device_ends_a_pipe_and_no_terminal(path, monkeypatch, capsys, error):
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Session, "forward", fail)
    for interactive in (False, True):
        monkeypatch.setattr(sys, "stdin", io.StringIO("a\n/history\n"))
        with monkeypatch.context() as patch:
            if interactive:
                patch.setattr(Screen, "open", open_lines)
            assert main(["chat", "--model", str(path)]) == (not interactive)
        err = capsys.readouterr().err
        assert str(error) in err
        assert ("the message was not answered" in err) == interactive


def test_error_in_an_answer_ends_its_line(path, monkeypatch, capsys):
    stream = Session.stream

    def broken(*arguments: Any, **options: Any) -> Any:
        pieces = stream(*arguments, **options)
        yield next(pieces)
        raise MetalGraphError("the device is lost")

    monkeypatch.setattr(Session, "stream", broken)
    monkeypatch.setattr(Screen, "open", open_lines)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    assert main(["chat", "--model", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{ANSWER[0]}\n" * 2
    assert err.count("the device is lost") == 2


def open_lines(screen: Screen, greeting: str) -> None:
    """Read lines, and behave as in a terminal."""

    class Reader:
        def __init__(self) -> None:
            self._lines = InputLines()

        def read(self) -> str:
            line = self._lines.read()
            if line is None:
                raise EOFError
            return line

    screen._reader = Reader()
    screen.interactive = True
    screen._print = lambda text, **_: print(text, file=sys.stderr)  # type: ignore[method-assign]


# Places


def test_place_of_a_session_is_checked_before_anything_is_said(capsys, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    os.symlink("nowhere/x", "dangling")
    for place, text in (
        ("missing/c.json", "there is no folder"),
        ("chat.gguf/c.json", "Not a directory"),
        (".", "not a directory"),
        ("fifo", "regular file"),
        ("loop", "symbolic links"),
        ("dangling", "there is no folder"),
        ("/dev/null", "regular file"),
    ):
        for more in (("--message", "a"), ()):
            found = fails(capsys, "chat", "--model", path, "--session", place, *more)
            assert text in found
            assert f"'{place}'" in found
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = fails(capsys, "chat", "--model", path, "--session", "c.json", "--message", "a")
    assert "nothing can be written in" in found
    assert "'c.json'" in found


def test_saving_in_a_pipe_does_not_wait(talk, path, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    _, err = talk(path, f"/save {tmp_path / 'fifo'}\n/save {tmp_path}\n/save /dev/null\n")
    assert [line.split(":")[0] for line in err.splitlines()] == [
        *("not saved", "not saved", "saved in /dev/null")
    ]


def test_name_of_a_saved_file_is_utf8_in_every_locale(path, tmp_path):
    done = subprocess.run(
        command("chat", "--model", path), input="a\n/save é.json\n".encode(), cwd=tmp_path,
        capture_output=True, timeout=120,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "é.json".encode() in os.listdir(os.fsencode(tmp_path))


def test_session_is_saved_after_reset_and_undo(path, tmp_path, monkeypatch):
    file = tmp_path / "c.json"
    counts = []
    read = Screen.read

    def noted(screen: Screen) -> str:
        counts.append(len(json.loads(file.read_text())["messages"]) if file.exists() else None)
        return read(screen)

    monkeypatch.setattr(Screen, "read", noted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n/undo\n/reset\n"))
    assert main(["chat", "--model", str(path), "--session", str(file)]) == 0
    assert counts == [None, 2, 4, 2, 0]


def test_system_message_of_a_conversation_without_messages(talk, path, tmp_path):
    file = saved(tmp_path / "c.json", [], thinking=False, tools=[])
    out, err = talk(path, "a\n", "--session", file, "--system", "S")
    assert (out, err) == (f"{ANSWER}\n", "")
    found = json.loads(file.read_text())
    assert found["messages"][0] == {"role": "system", "content": "S"}
    assert (found["thinking"], found["tools"]) == (False, [])


def test_thinking_is_the_files_and_then_the_options(talk, speaker, tmp_path):
    file = tmp_path / "c.json"
    talk(speaker, "x\n", "--no-think", "--session", file)
    assert talk(speaker, "x\n", "--session", file)[0] == "No.\n"
    assert "think" in talk(speaker, "x\n", "--session", file, "--think")[0]
    assert "think" in talk(speaker, "x\n", "--session", file)[0]
    assert json.loads(file.read_text())["thinking"] is True


def test_resumed_conversation_says_so(talk, path, tmp_path):
    file = saved(tmp_path / "c.json", [{"role": "user", "content": "q"}])
    for more in ((), ("--message", "a")):
        err = talk(path, "", "--session", file, *more)[1]
        assert err.startswith(f"({file} goes on behind 1 message; /history shows them)\n")


# Standard input


def test_standard_input_is_read_once(capsys, path):
    for options in (("--message", "-", "--message", "-"), ("--message", "-", "--tools", "-")):
        assert "read to its end once" in fails(capsys, "chat", "--model", path, *options)


def test_tools_come_over_standard_input(talk, speaker):
    schemas = json.dumps([{"type": "function", "function": {"name": "add"}}])
    assert '"name": "add"' in talk(speaker, schemas, "--tools", "-", "--message", "x")[0]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({}, 'it has no "name"'),
        ({"type": "function"}, 'it has no "name"'),
        ({"function": {}}, 'its function has no "name"'),
        ({"function": []}, '"function" is a list'),
        ({"function": {"name": 5}}, "is a number"),
        ({"function": {"name": ""}}, "is empty"),
        ({"name": "f", "parameters": []}, "\"parameters\" of 'f' is a list: give an object"),
        ({"name": "f", "description": 5}, "\"description\" of 'f' is a number: give a text"),
    ],
)
def test_shape_of_schemas_is_checked(capsys, path, tmp_path, schema, text):
    file = tmp_path / "t.json"
    file.write_text(json.dumps([{"name": "good"}, schema]))
    found = fails(capsys, "chat", "--model", path, "--tools", file, "--message", "a")
    assert f"--tools {file}: item 1" in found
    assert text in found


def test_template_that_is_none_is_named_with_its_line(capsys, path, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("a\nb\n{% if %}")
    found = fails(capsys, "chat", "--model", path, "--template", file, "--message", "a")
    assert f"--template {file}, line 3: " in found


# Results


@pytest.mark.parametrize("ids", [(), ("same", "same"), ("one", "two")])
@pytest.mark.parametrize("flat", [False, True])
def test_results_are_counted_whatever_the_ids(talk, speaker, tmp_path, ids, flat):
    calls = [dict(call["function"]) if flat else dict(call) for call in CALLS]
    for call, number in zip(calls, ids, strict=False):
        call["id"] = number
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]
    file = saved(tmp_path / "c.json", messages)
    out, err = talk(speaker, "/result\n/result 1\n/result 2\n/result 3\n", "--session", file)
    assert out == "3\n"
    resumed, waits, asks, following, none = err.splitlines()
    assert resumed.startswith(f"({file} goes on behind 2 messages")
    assert '"name": "a"' in waits
    assert asks.startswith("give the result of ")
    assert '"name": "b"' in following
    assert none == "the model waits for no result"
    found = json.loads(file.read_text())["messages"][2:4]
    assert [m["content"] for m in found] == ["1", "2"]
    assert [m.get("tool_call_id") for m in found] == list(ids or (None, None))


# Commands


def test_word_that_is_no_command_says_how_to_send_it(talk, path):
    _, err = talk(path, "/etc/hosts what is it\n/undoo\n/reset now\n")
    first, second, third = err.splitlines()
    assert first.startswith("no command '/etc/hosts what is it'; there are /reset, ")
    assert first.endswith("A message that begins with / is sent with one more: //etc/hosts")
    assert "did you mean /undo?" in second
    assert "//reset" in third


@pytest.mark.parametrize("text", ["/exit", "  /exit", "/exit ", "/quit", " /quit"])
def test_words_that_end(talk, path, text):
    assert talk(path, f"{text}\na\n") == ("", "")


@pytest.mark.parametrize("text", ["/help", "  /help", "/?"])
def test_words_that_help(talk, path, text):
    assert "/exit     end" in talk(path, f"{text}\n")[1]


def test_history_shows_parts_as_their_text(talk, path, tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    file = saved(tmp_path / "c.json", [{"role": "user", "content": parts}])
    assert talk(path, "/history\n", "--session", file)[1].splitlines()[1:] == ["user: onetwo"]


# Ends of lines


@pytest.mark.parametrize(
    "pieces", [["a\r\nb"], ["a\r", "\nb"], ["a", "\r", "\n", "b"], ["a\r", "", "\nb"]]
)
def test_end_of_a_line_in_pieces_is_one(pieces):
    tamer = Tamer()
    assert "".join(map(tamer.push, pieces)) == "a\nb"


def test_return_alone_is_a_control_character():
    tamer = Tamer()
    assert tamer.push("a\rb\r") + tamer.push("c") == "a?b?c"
    assert tame("a\r\r\n") == "a?\n"
