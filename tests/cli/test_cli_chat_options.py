"""The options of chat: one message, thinking, templates, tools and saved conversations."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, fails, run
from speakers import CALL, PLAIN, SPOKEN, THOUGHT, write_speaker
from tiny_models import ANSWER, FOLLOWS, chain, chat_vocabulary, write_chain

from oxibonsai.cli import main
from oxibonsai.model import Model

THINKING = f"<think>{THOUGHT}</think>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


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
    """Run chat with lines on standard input, and return what it printed."""

    def run(model: Path, lines: str, *arguments: Any, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        found = main(["chat", "--model", str(model), *map(str, arguments)])
        out, err = capsys.readouterr()
        assert found == status, err
        return out, err

    return run


# One shot


def test_message_is_answered_and_standard_input_is_left_alone(talk, path):
    assert talk(path, "not read\n", "--message", "Hello") == (f"{ANSWER}\n", "")


def test_messages_are_one_conversation(talk, path, tmp_path):
    file = tmp_path / "c.json"
    out, _ = talk(path, "", "--message", "a", "--message", "b", "--session", file)
    assert out == f"{ANSWER}\n{ANSWER}\n"
    assert [m["content"] for m in json.loads(file.read_text())["messages"]] == [
        *("a", ANSWER, "b", ANSWER)
    ]


def test_message_from_standard_input_is_one_message(talk, path, tmp_path):
    file = tmp_path / "c.json"
    out, _ = talk(path, "one\ntwo\n", "--message", "-", "--session", file)
    assert out == f"{ANSWER}\n"
    assert json.loads(file.read_text())["messages"][0]["content"] == "one\ntwo"


def test_message_that_begins_with_a_slash_is_a_message(talk, path):
    assert talk(path, "", "--message", "/exit") == (f"{ANSWER}\n", "")


def test_empty_message_is_an_error(capsys, path):
    for text in ("", " \n"):
        assert "--message is empty" in fails(capsys, "chat", "--model", path, "--message", text)


def test_message_that_does_not_fit_is_an_error(talk, path):
    out, err = talk(path, "", "--message", "a" * 200, "--max-seq", 100, status=1)
    assert out == ""
    assert "do not fit" in err
    assert err.count("\n") == 1


def test_interrupted_message_ends_with_130(path, monkeypatch, capsys):
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            super().write(text)
            if text == "a":
                raise KeyboardInterrupt
            return len(text)

    out = Interrupted()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["chat", "--model", str(path), "--message", "x", "--message", "y"]) == 130
    assert out.getvalue() == "Hea\n"
    assert capsys.readouterr().err == "(stopped)\n"


# Thinking


def test_thinking_is_the_templates_default(talk, speaker):
    assert talk(speaker, "x\n") == (f"{THINKING}{SPOKEN}\n", "")
    assert talk(speaker, "x\n", "--think") == (f"{THINKING}{SPOKEN}\n", "")


def test_no_think_reaches_the_template(talk, speaker):
    assert talk(speaker, "x\n", "--no-think") == (f"{PLAIN}\n", "")


def test_hidden_thinking_is_not_printed_but_kept(talk, speaker, tmp_path):
    file = tmp_path / "c.json"
    out, err = talk(speaker, "x\n", "--hide-thinking", "--session", file)
    assert (out, err) == (f"{SPOKEN}\n", "")
    assert json.loads(file.read_text())["messages"][-1] == {
        "role": "assistant",
        "content": SPOKEN,
        "reasoning_content": THOUGHT,
    }


# Templates


def test_template_of_a_file_is_taken(talk, tmp_path, path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[-1].content }}\n\n")
    assert talk(path, "x\n", "--template", file) == (f"{ANSWER}\n", "")
    file.write_text("{{ messages[-1].content }}")  # so the message is what is continued
    assert talk(path, "xyH\n", "--template", file)[0] == ANSWER[1:] + "\n"


def test_template_gives_a_conversation_to_a_model_without_one(talk, tmp_path):
    model = write_chain(tmp_path / "m.gguf", FOLLOWS, vocabulary=chat_vocabulary(template=None))
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[-1].content }}\n\n")
    assert talk(model, "x\n", "--template", file) == (f"{ANSWER}\n", "")


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"{% if %}", "chat template"), (b"a\xff", "byte 0xff at 1"), (None, "No such file")],
)
def test_template_that_is_none_is_an_error(capsys, tmp_path, path, data, text):
    file = tmp_path / "template.jinja"
    if data is not None:
        file.write_bytes(data)
    assert text in fails(capsys, "chat", "--model", path, "--template", file, "--message", "x")


def test_conversation_that_the_template_refuses_is_an_error(capsys, tmp_path, path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ raise_exception('not\x1b[31m\nthis') }}")
    text = fails(capsys, "chat", "--model", path, "--template", file, "--message", "x")
    assert "not\\x1b[31m\\nthis" in text


# Tools


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL]))
    return file


def test_calls_are_lines_of_json(talk, speaker, tools):
    out, err = talk(speaker, "x\n", "--tools", tools)
    (line,) = out.strip().splitlines()
    call = json.loads(line)
    assert call["type"] == "function"
    assert call["function"]["name"] == json.loads(CALL)["name"]
    assert json.loads(call["function"]["arguments"]) == json.loads(CALL)["arguments"]
    assert err == ""


def test_result_answers_the_call(talk, speaker, tools):
    out, err = talk(speaker, "/result 1\nx\n/result 3\n/result 4\n/history\n", "--tools", tools)
    call, answer = out.strip().splitlines()
    assert json.loads(call)["function"]["name"] == "add"
    assert answer == "3"
    lines = err.splitlines()
    assert lines[:2] == ["the model waits for no result"] * 2
    assert lines[2] == "user: x"
    assert lines[-2:] == ["tool: 3", "assistant: 3"]


def test_call_of_a_saved_conversation_can_be_answered(talk, speaker, tools, tmp_path):
    file = tmp_path / "c.json"
    talk(speaker, "x\n", "--tools", tools, "--session", file)
    out, err = talk(speaker, "/result 3\n", "--session", file)
    assert out == "3\n"
    assert err.splitlines()[0] == f"({file} goes on behind 2 messages; /history shows them)"
    assert '"name": "add"' in err.splitlines()[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has an object: give a JSON list"),
        ("[1]", "item 0 is a number"),
        ("[{}, null]", "item 1 is null"),
        ("[", "is no JSON"),
        ("", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_tools_that_are_none_are_an_error(capsys, path, tmp_path, text, message):
    file = tmp_path / "tools.json"
    file.write_text(text)
    found = fails(capsys, "chat", "--model", path, "--tools", file, "--message", "x")
    assert found.startswith(f"oxibonsai: --tools {file}")
    assert message in found


# Saved conversations


def test_session_is_made_saved_and_goes_on(talk, path, tmp_path):
    file = tmp_path / "c.json"
    assert talk(path, "a\n", "--session", file, "--system", "Be brief.")[0] == f"{ANSWER}\n"
    out, err = talk(path, "b\n/history\n", "--session", file)
    assert out == f"{ANSWER}\n"
    assert err == (
        f"({file} goes on behind 2 messages; /history shows them)\n"
        f"system: Be brief.\nuser: a\nassistant: {ANSWER}\nuser: b\nassistant: {ANSWER}\n"
    )


def test_session_is_saved_after_each_answer(path, tmp_path):
    file = tmp_path / "c.json"
    out, err = run("chat", "--model", path, "--message", "a", "--message", "b" * 900,
                   "--session", file, status=1)  # fmt: skip
    assert out == f"{ANSWER}\n"
    assert "do not fit" in err
    assert [m["content"] for m in json.loads(file.read_text())["messages"]] == ["a", ANSWER]


def test_commands_change_what_is_saved(talk, path, tmp_path):
    file, copy = tmp_path / "c.json", tmp_path / "copy.json"
    out, err = talk(path, f"a\n/save {copy}\n/reset\n/save\n", "--session", file)
    assert out == f"{ANSWER}\n"
    assert err.startswith(f"saved in {copy}\nthe conversation is forgotten\n")
    assert "/save FILE" in err
    assert json.loads(copy.read_text())["messages"][0]["content"] == "a"
    assert json.loads(file.read_text())["messages"] == []


def test_nothing_said_saves_nothing(talk, path, tmp_path):
    talk(path, "", "--session", tmp_path / "c.json", "--system", "x")
    assert not (tmp_path / "c.json").exists()


def test_place_that_cannot_be_written_is_told(talk, path, tmp_path):
    missing = tmp_path / "no" / "c.json"
    out, err = talk(path, f"/save {missing}\na\n")
    assert out == f"{ANSWER}\n"
    assert err.startswith("not saved: ")
    assert "No such file" in err
    out, err = talk(path, "a\n", "--session", missing, status=1)
    assert out == ""
    assert str(missing) in err
    assert err.startswith("oxibonsai: ")
    assert str(missing.parent) in err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "x"}', "\x00"])
def test_file_that_holds_no_conversation_is_an_error(capsys, path, tmp_path, text):
    file = tmp_path / "c.json"
    file.write_text(text)
    found = fails(capsys, "chat", "--model", path, "--session", file, "--message", "x")
    assert str(file) in found
    assert file.read_text() == text


def test_system_message_of_a_saved_conversation_is_its_own(talk, path, tmp_path):
    file = tmp_path / "c.json"
    talk(path, "a\n", "--session", file, "--system", "A")
    assert talk(path, "b\n", "--session", file, "--system", "A")[0] == f"{ANSWER}\n"
    err = talk(path, "b\n", "--session", file, "--system", "B", status=1)[1]
    assert "--system" in err
    assert str(file) in err


# Ends


def test_stop_text_ends_an_answer(talk, path):
    assert talk(path, "a\n", "--stop", "r", "--stop", "zz") == (f"{ANSWER[:3]}\n", "")


def test_answer_that_max_tokens_ends_is_told(talk, path):
    assert talk(path, "a\n", "--max-tokens", 3) == (
        f"{ANSWER[:3]}\n",
        "(the answer ends here because of --max-tokens 3)\n",
    )


def test_full_context_ends_an_answer_with_a_note_and_drops_old_turns(talk, tmp_path):
    follows = {**chain("\nab"), ord("b"): ord("a")}  # an answer without end
    model = write_chain(tmp_path / "m.gguf", follows, vocabulary=chat_vocabulary())
    out, err = talk(model, "x\ny\nz\n", "--max-seq", 64, "--max-tokens", 1000)
    answers = out.splitlines()
    assert len(answers) == 3
    assert all(("ab" * 64).startswith(answer) and answer for answer in answers)
    notes = err.splitlines()
    assert notes[0] == (
        "(the context is full, and the answer ends here; --max-seq is 64, and can be 256, the "
        "model's context_length)"
    )
    assert notes[1] == (
        "(the context is full: the 2 oldest messages were dropped; --max-seq is 64, and can be "
        "256, the model's context_length)"
    )


# Lines


def test_line_that_is_not_utf8_is_left_out(path):
    lines = b"a\n\xc3\n\xef\xbb\xbfb\r\nc\xffd\ne"
    done = subprocess.run(
        command("chat", "--model", path), input=lines, capture_output=True, env=environment()
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.decode() == f"{ANSWER}\n" * 3
    assert done.stderr.decode().splitlines() == [
        "(line 2 is not UTF-8: byte 0xc3 at 0: it was left out)",
        "(line 4 is not UTF-8: byte 0xff at 1: it was left out)",
    ]


def test_nfc_reaches_the_tokenizer(talk, path, monkeypatch):
    asked = []
    load = Model.load

    def noted(*arguments: Any, **options: Any) -> Model:
        asked.append(options["nfc"])
        return load(*arguments, **options)

    monkeypatch.setattr(Model, "load", noted)
    talk(path, "a\n")
    talk(path, "a\n", "--nfc")
    assert asked == [False, True]
