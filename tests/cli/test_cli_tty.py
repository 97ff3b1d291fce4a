"""Chat and generate in a terminal: what somebody types, and what the screen shows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from speakers import SPOKEN, THOUGHT, write_speaker
from terminals import CHILD, Terminal
from tiny_models import ANSWER, FOLLOWS, IM_END, chain, chat_vocabulary, write_chain

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals on this system")

PROMPT = ">"  # the blank behind it is not told from an empty screen
ECHO = 0o10  # of the line's settings
WITHOUT_EDITOR = "import sys\nsys.modules['prompt_toolkit'] = None\n" + CHILD


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tty") / "chat.gguf"
    return write_chain(path, FOLLOWS, vocabulary=chat_vocabulary(), context=2048)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tty") / "endless.gguf"
    follows = {**chain("\nab"), ord("b"): ord("a")}
    return write_chain(path, follows, vocabulary=chat_vocabulary(), context=100_000)


@pytest.fixture
def chat(model: Path) -> Iterator[Terminal]:
    with Terminal("chat", "--model", model) as terminal:
        terminal.until(PROMPT)
        yield terminal


def last(terminal: Terminal, n: int) -> list[str]:
    return terminal.lines[-n:]


# Typing


def test_conversation(chat):
    assert chat.lines[0].endswith("/help says what can be typed")
    chat.send("Hello\r")
    chat.until("> Hello", ANSWER, PROMPT)
    chat.send("again\n")  # as expect and pipes through a pseudo-terminal end lines
    chat.until("> again", ANSWER, PROMPT)
    chat.send("\r  \r")
    chat.until(PROMPT, ">", PROMPT)
    chat.send("/exit\r")
    chat.ends(0)


def test_line_is_edited(chat):
    chat.send("Hxllo wrld")
    chat.send("\x1b[D\x1b[D\x1b[Do")  # left
    chat.send("\x01\x1b[C\x04e\x05!")  # to the beginning, right, delete, to the end
    chat.until("> Hello world!")
    chat.send("\x17you\r/history\r")  # the last word goes
    chat.wait_for(lambda: "user: Hello you" in chat.lines, "the message")


def test_up_and_down_arrow_go_through_the_history(chat):
    for text in ("first", "second"):
        chat.send(text + "\r")
        chat.until(f"> {text}", ANSWER, PROMPT)
    chat.send("third")
    chat.send("\x1b[A")
    chat.until("> second")
    chat.send("\x1b[A")
    chat.until("> first")
    chat.send("\x1b[B\x1b[B")
    chat.until("> third")
    chat.send("\x1b[A\x1b[A!\r")
    chat.until("> first!", ANSWER, PROMPT)


def test_wide_characters_and_marks_are_typed_and_erased(chat):
    chat.send("\u4e2d\u6587a\U0001f333e\u0301")
    chat.until("> \u4e2d\u6587a\U0001f333e\u0301".replace("e\u0301", "\u00e9"))
    assert chat.cursor[0] == 2 + 4 + 1 + 2 + 1
    chat.send("\x7f\x7f\x7f")  # the accent, its letter, the tree
    chat.until("> \u4e2d\u6587a")
    assert chat.cursor[0] == 2 + 4 + 1
    chat.send("\x7f\x7f")
    chat.until("> \u4e2d")
    chat.send("\U0001f600\r/history\r")
    chat.wait_for(lambda: "user: \u4e2d\U0001f600" in chat.lines, "the message")


def test_wide_characters_are_edited_in_the_middle(chat):
    chat.send("\u4e2d\u6587\u5b57")
    chat.until("> \u4e2d\u6587\u5b57")
    chat.send("\x1b[D\x7f")
    chat.until("> \u4e2d\u5b57")
    assert chat.cursor[0] == 2 + 2
    chat.send("\x1b[D\U0001f333")
    chat.until("> \U0001f333\u4e2d\u5b57")


def test_bytes_that_are_no_text_are_a_note(chat):
    chat.send(b"a\xff\r")
    chat.wait_for(lambda: last(chat, 1) == [PROMPT] and "0xff" in chat.lines[-2], "a note")
    assert chat.lines[-2] == "(the message is not UTF-8: byte 0xff at 1: it was left out)"
    chat.send("a\r")
    chat.until("> a", ANSWER, PROMPT)


# Texts of several lines


def test_paste_of_several_lines_is_one_message(chat):
    chat.paste("one\n  two\n\nthree\n")
    chat.until("> one", "    two", "", "  three")
    chat.send("\x7f\r")  # the break at the end goes
    chat.until("> one", "    two", "", "  three", ANSWER, PROMPT)
    chat.send("/history\r")
    chat.until("user: one", "  two", "", "three", f"assistant: {ANSWER}", PROMPT)


def test_paste_has_no_commands_but_at_its_beginning(chat):
    chat.paste("a\n/exit\nb")
    chat.send("\r/history\r")
    chat.until("user: a", "/exit", "b", f"assistant: {ANSWER}", PROMPT)


def test_message_of_several_lines_is_typed_and_comes_back(chat):
    chat.send("one\x1b\rtwo\r")
    chat.until("> one", "  two", ANSWER, PROMPT)
    chat.send("\x1b[A")
    chat.until("> one", "  two")


# Ctrl-C and Ctrl-D


def test_ctrl_c_at_the_prompt_says_how_to_end(chat):
    chat.send("not sent")
    chat.until("> not sent")
    chat.send("\x03")
    chat.until("> not sent", "(Ctrl-D ends)", PROMPT)
    chat.send("\x03")
    chat.until("(Ctrl-D ends)", PROMPT, "(Ctrl-D ends)", PROMPT)
    chat.send("a\r/history\r")
    chat.until("user: a", f"assistant: {ANSWER}", PROMPT)


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(endless):
    with Terminal("chat", "--model", endless, "--max-tokens", 90_000) as chat:
        chat.until(PROMPT)
        for text in ("first", "second"):
            chat.send(text + "\r")
            shown = len(chat.raw)
            chat.wait_for(lambda at=shown: chat.raw.count(b"a", at) > 20, "an answer")
            chat.send("\x03")
            chat.until("(stopped)", PROMPT)
        chat.send("/undo\r")
        chat.until("undone", PROMPT)
        chat.send("\x04")
        chat.ends(0)
        assert b"Traceback" not in chat.raw


def test_ctrl_d_ends_with_0_and_leaves_the_terminal_as_it_was(model):
    with Terminal("chat", "--model", model) as chat:
        before = chat.settings()
        chat.until(PROMPT)
        assert not chat.settings()[3] & ECHO
        chat.send("abc")
        chat.until("> abc")
        chat.send("\x01\x04")  # deletes: the line is not empty
        chat.until("> bc")
        chat.send("\x7f\x04\x04\x04")
        chat.ends(0)
        assert chat.settings() == before
        assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signal_leaves_the_terminal_as_it_was(model, number):
    with Terminal("chat", "--model", model) as chat:
        before = chat.settings()
        chat.until(PROMPT)
        chat.process.send_signal(number)
        chat.ends(-number)
        assert chat.settings() == before
        assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h")


def test_terminal_that_goes_away_ends_the_chat(model):
    chat = Terminal("chat", "--model", model)
    chat.until(PROMPT)
    chat.hang_up()
    assert chat.process.wait(60) is not None


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_terminal_that_goes_away_from_a_process_that_ignores_it_ends_with_129(model, term):
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + CHILD
    chat = Terminal("chat", "--model", model, code=code, TERM=term)
    chat.until(PROMPT)
    chat.hang_up()
    assert chat.process.wait(60) == 129


# What takes time, and ends of lines


PATIENT = "import oxibonsai.cli.progress as p\np._PATIENCE = p._PAUSE = 0.0\n" + CHILD


@pytest.mark.parametrize("columns", [80, 12])
def test_progress_of_a_long_prompt_is_shown_and_erased(endless, columns):
    text = "x" * 700
    arguments = ("--model", endless, "--max-tokens", 3, "--chunk", 64)
    with Terminal("generate", *arguments, "--prompt", text, "--quiet", code=PATIENT,
                  columns=columns, rows=80) as shown:  # fmt: skip
        shown.ends(0)
        assert b"[reading the prompt: 64 of 700 tokens]" in shown.raw
        assert b"640 of 700" in shown.raw
        assert "".join(shown.lines) == text
    with Terminal("chat", *arguments, "--message", text, code=PATIENT) as shown:
        shown.ends(0)
        assert b"[reading the prompt: 64 of 7" in shown.raw
        assert shown.lines[0] == "aba"
    with Terminal("generate", *arguments, "--prompt", text, code=PATIENT, TERM="dumb") as shown:
        shown.ends(0)
        assert b"reading" not in shown.raw


def test_end_of_a_line_of_windows_is_one(tmp_path):
    path = tmp_path / "crlf.gguf"
    follows = {ord("\n"): ord("a"), ord("a"): ord("\r"), ord("\r"): ord("\t"), ord("\t"): IM_END}
    write_chain(path, follows, vocabulary=chat_vocabulary())
    with Terminal("generate", "--model", path, "--prompt", "one\r\ntwo\rx", "--quiet",
                  "--max-tokens", 0) as shown:  # fmt: skip
        shown.ends(0)
        assert shown.lines == ["one", "two?x"]
    with Terminal("chat", "--model", path, "--message", "x") as shown:
        shown.ends(0)
        assert shown.lines == ["a?"]


# Sizes


def test_resized_while_typing(chat):
    text = "a line that is longer than the terminal will be in a moment, when it is narrow"
    chat.send(text)
    chat.until("> " + text)
    chat.resize(30, 20)
    chat.send("!")
    shown = f"> {text}!"
    wrapped = [shown[i : i + 30].rstrip() for i in range(0, len(shown), 30)]
    chat.until(*wrapped)
    chat.resize(100, 20)
    chat.until(shown)
    chat.send("\r")
    chat.until(shown, ANSWER, PROMPT)


def test_resized_while_an_answer_runs(endless):
    with Terminal("chat", "--model", endless, "--max-tokens", 90_000) as chat:
        chat.until(PROMPT)
        chat.send("x\r")
        for columns, rows in ((40, 10), (120, 40), (1, 1), (80, 24)):
            shown = len(chat.raw)
            chat.wait_for(lambda at=shown: chat.raw.count(b"a", at) > 20, "an answer")
            chat.resize(columns, rows)
        chat.send("\x03")
        chat.until("(stopped)", PROMPT)
        chat.send("abc")
        chat.until("> abc")


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (5, 2)])
def test_terminals_without_a_sensible_size(model, size):
    with Terminal("chat", "--model", model, columns=size[0], rows=size[1]) as chat:
        chat.wait_for(lambda: b"\x1b[?2004h" in chat.raw, "the prompt")
        chat.send("Hello\r")
        chat.wait_for(lambda: ANSWER.encode() in chat.raw, "the answer")
        chat.send("/exit\r")
        chat.ends(0)


# Other terminals


@pytest.mark.parametrize("term", ["dumb", "", None])
def test_dumb_terminal_gets_plain_lines(model, term):
    with Terminal("chat", "--model", model, TERM=term) as chat:
        chat.until(PROMPT)
        chat.send("Hellx\x7fo\r")
        chat.until("> Hello", ANSWER, PROMPT)
        chat.send("abc")
        chat.interrupt("(Ctrl-D ends)", PROMPT)
        chat.send("\u4e2d\r/history\r")
        chat.until("user: \u4e2d", f"assistant: {ANSWER}", PROMPT)
        chat.send("\x04")
        chat.ends(0)
        assert b"\x1b" not in chat.raw.replace(b"\x1b[2m", b"").replace(b"\x1b[0m", b"")


def test_no_color(speaker, model):
    with Terminal("chat", "--model", speaker, NO_COLOR="1") as chat:
        chat.until(PROMPT)
        chat.send("x\r")
        chat.wait_for(lambda: SPOKEN.encode() in chat.raw, "the answer")
        assert b"\x1b[2m" not in chat.raw


def test_without_the_editor_lines_are_read_as_input_does(model):
    with Terminal("chat", "--model", model, code=WITHOUT_EDITOR, columns=120) as chat:
        chat.until(PROMPT)
        assert chat.lines[1].startswith("(pip install prompt_toolkit brings ")
        chat.send("Hello\r")
        chat.until("> Hello", ANSWER, PROMPT)
        chat.interrupt(PROMPT, "(Ctrl-D ends)", PROMPT)
        chat.send(b"\xff\r")
        chat.wait_for(lambda: last(chat, 1) == [PROMPT] and "0xff" in chat.lines[-2], "a note")
        chat.send("\x04")
        chat.ends(0)


def test_standard_input_from_a_pipe_shows_answers_in_the_terminal(tmp_path):
    evil = evil_model(tmp_path)
    code = "import os, sys\nr, w = os.pipe()\nos.write(w, b'x\\n')\nos.close(w)\nos.dup2(r, 0)\n"
    with Terminal("chat", "--model", evil, code=code + CHILD) as chat:
        chat.ends(0)
        assert chat.lines == ["?[b]"]


# What is shown


@pytest.fixture
def speaker(tmp_path: Path) -> Path:
    return write_speaker(tmp_path / "speaker.gguf")


def test_thinking_is_dim(speaker):
    with Terminal("chat", "--model", speaker) as chat:
        chat.until(PROMPT)
        chat.send("x\r")
        chat.until("> x", f"<think>{THOUGHT}</think>{SPOKEN}", PROMPT)
        raw = chat.raw.replace(b"\x1b[0m\x1b[2m", b"").replace(b"\x1b[0m", b"|")
        assert f"\x1b[2m<think>{THOUGHT}</think>|{SPOKEN}".encode() in raw


def evil_model(folder: Path) -> Path:
    """Write a model that says an escape sequence and markup, and has such a name."""
    follows = {ord("\n"): 27, 27: ord("["), ord("["): ord("b"), ord("b"): ord("]")}
    vocabulary = {**chat_vocabulary(), "general.name": "\x1b[31mevil\x9b1m\n\x07"}
    return write_chain(folder / "evil.gguf", follows, vocabulary=vocabulary)


def test_model_does_not_steer_the_terminal(tmp_path):
    with Terminal("chat", "--model", evil_model(tmp_path), columns=120) as chat:
        chat.until(PROMPT)
        assert chat.lines[0].startswith("\\x1b[31mevil\\x9b1m\\n\\x07 on ")
        chat.send("x\r")
        chat.until("> x", "?[b]", PROMPT)
        chat.send("/history\r")
        chat.until("user: x", "assistant: ?[b]", PROMPT)


def test_generate_does_not_steer_the_terminal(tmp_path):
    evil = evil_model(tmp_path)
    with Terminal("generate", "--model", evil, "--prompt", "\x1b[2J\x07\t\n", columns=150) as t:
        t.ends(0)
        assert t.lines[0] == "?[2J?"
        assert t.lines[1] == "?[b]"
        assert t.lines[2].startswith("[\\x1b[31mevil\\x9b1m\\n\\x07 on ")


def test_text_between_colons_and_brackets_is_shown_as_it_is(tmp_path):
    text = "a[:100:] [red]x[/red] https://a.b \\[b]"
    vocabulary = chat_vocabulary()
    token = len(vocabulary["tokenizer.ggml.tokens"])
    vocabulary["tokenizer.ggml.tokens"] += [text]
    vocabulary["tokenizer.ggml.token_type"] += [4]
    path = write_chain(
        tmp_path / "m.gguf", {ord("\n"): token, token: IM_END}, vocabulary=vocabulary
    )
    with Terminal("chat", "--model", path) as chat:
        chat.until(PROMPT)
        chat.send("b[:100:] :smile:\r")
        chat.until("> b[:100:] :smile:", text, PROMPT)
        chat.send("/history\r")
        chat.until("user: b[:100:] :smile:", f"assistant: {text}", PROMPT)
