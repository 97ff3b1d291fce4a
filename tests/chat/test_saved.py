"""Conversations in files: what comes back, what is refused, and what a failure leaves."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talkers import JSON_TEMPLATE, says, write_talker
from tiny_models import CHATML

from oxibonsai import metal
from oxibonsai.chat import Chat, ChatFileError, ChatTemplate
from oxibonsai.chat.saved import SavedChat, read, write
from oxibonsai.model import Model

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def model(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    with Model.load(write_talker(tmp_path / "talker.gguf", JSON_TEMPLATE), device) as model:
        yield model


def ask(chat: Chat, text: str, answer: str) -> str:
    return "".join(chat.send(text, allowed=says(chat.session.model.tokenizer, answer)))


def saved(**kw: Any) -> SavedChat:
    empty = SavedChat("m", [], None, None, None, True, {})
    return empty._replace(**kw)


def test_conversation_comes_back_and_goes_on(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with model.session() as session:
        chat = Chat(
            session,
            system="Be brief: \u00fc\u6771\U0001f600",
            tools=(TOOL,),
            documents=[{"title": "t"}],
            thinking=False,
            show_thinking=False,
            language="de",
        )
        ask(chat, "one", f"<think>\nplan\n</think>\n\nI add.\n{CALL}")
        chat.add_tool_result("1", tool_call_id=chat.tool_calls[0]["id"], name="add")
        chat.save(file)
        messages, calls = list(chat.messages), chat.tool_calls
        tokens_then = session.tokens
        chat.respond(allowed=says(model.tokenizer, "So.")).close()
        prompt = session.tokens
        assert prompt != tokens_then
    with model.session() as session:
        dropped: list[int] = []
        back = Chat.load(file, session, on_drop=dropped.append)
        assert back.messages == messages
        assert back.tool_calls == calls
        assert (back.tools, back.documents) == ([TOOL], [{"title": "t"}])
        assert (back.thinking, back.show_thinking) == (False, False)
        assert back.variables == {"language": "de"}
        assert back.finish_reason is None
        assert back.on_drop == dropped.append
        assert "".join(back.respond(allowed=says(model.tokenizer, "So."))) == "So."
        assert session.tokens[: len(prompt)] == prompt
        back.reset()
        assert back.messages == [{"role": "system", "content": "Be brief: \u00fc\u6771\U0001f600"}]
    assert "\u6771\U0001f600" in file.read_text(encoding="utf-8")  # as a person reads it


def test_other_template_may_be_given(model: Model, tmp_path: Path) -> None:
    write(tmp_path / "c.json", saved(messages=[{"role": "user", "content": "a"}]))
    with model.session() as session:
        chat = Chat.load(
            tmp_path / "c.json", session, template=ChatTemplate(CHATML, model.tokenizer)
        )
        assert chat.template.source == CHATML
        assert "".join(chat.respond(allowed=says(model.tokenizer, "b"))) == "b"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(content=st.text(st.characters()), extra=JSON, variables=st.dictionaries(st.text(), JSON))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_conversation_comes_back_as_it_was(tmp_path, content, extra, variables):
    for name in ("self", "messages", "tools", "documents", "add_generation_prompt"):
        variables.pop(name, None)
    one = saved(
        messages=[{"role": "user", "content": content, "more": extra}],
        variables=variables,
        tools=[{"x": extra}],
    )
    write(tmp_path / "c.json", one)
    assert read(tmp_path / "c.json") == one


# What is refused


GOOD: dict[str, Any] = {
    "format": "oxibonsai chat",
    "version": 1,
    "model": "m",
    "messages": [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "c"},
    ],
    "tools": None,
    "documents": [],
    "thinking": None,
    "show_thinking": True,
    "variables": {"enable_thinking": False},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with another value at a path; without the key for `...`."""
    document = json.loads(json.dumps(GOOD))
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    inside = document
    for step in steps:
        inside = inside[step]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return document


def test_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert read(tmp_path / "c.json").messages == GOOD["messages"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", 'no conversation: it has no "format": "oxibonsai chat"'),
        ("format", ..., 'no conversation: it has no "format"'),
        ("version", 2, "version 2 of the format; this package reads 1"),
        ("version", True, "version True of the format"),
        ("version", ..., "version None of the format"),
        ("more", 1, "'more' is no key of the format; there are documents, "),
        ("model", 7, "model is 7, not text"),
        ("messages", ..., "messages is missing"),
        ("messages", {}, r"messages is \{\}, not a list"),
        ("messages.0", "a", r"messages\[0\] is 'a', not an object"),
        ("messages.0.role", ..., r"messages\[0\].role is missing"),
        ("messages.0.role", None, r"messages\[0\].role is None, not text"),
        ("messages.0.content", 7, r"messages\[0\].content is 7, not text or a list"),
        ("messages.0.content", {"text": "a"}, r"messages\[0\].content is .* not text or a list"),
        ("messages.2.content.0", "x", r"messages\[2\].content\[0\] is 'x', not an object"),
        ("messages.2.content.0", {}, r"messages\[2\].content\[0\].type is None, not 'text'"),
        ("messages.0.content", [{"type": "image"}], r"content\[0\].type is 'image', not 'text'"),
        ("messages.0.content", [{"type": "text"}], r"content\[0\].text is None, not text"),
        ("messages.0.content", [{"type": "text", "text": 1}], r"content\[0\].text is 1, not text"),
        ("messages.1.tool_calls.0.id", 5, r"tool_calls\[0\].id is 5, not text"),
        ("messages.0.reasoning_content", [], r"messages\[0\].reasoning_content is \[\], not text"),
        ("messages.2.tool_call_id", 7, r"messages\[2\].tool_call_id is 7, not text"),
        ("messages.2.name", False, r"messages\[2\].name is False, not text"),
        ("messages.1.tool_calls", {}, r"messages\[1\].tool_calls is \{\}, not a list"),
        ("messages.1.tool_calls.0", 1, r"messages\[1\].tool_calls\[0\] is 1, not an object"),
        ("messages.1.tool_calls.0.function", 1, r"tool_calls\[0\].function is 1, not an object"),
        ("messages.1.tool_calls.0.function.name", ..., r"\[0\].function.name is missing"),
        ("messages.1.tool_calls.0.function.name", 1, r"function.name is 1, not text"),
        (
            "messages.1.tool_calls.0.function.arguments",
            [],
            r"function.arguments is \[\], not text or an object",
        ),
        ("tools", "add", "tools is 'add', not a list"),
        ("tools", [1], r"tools\[0\] is 1, not an object"),
        ("documents", [[]], r"documents\[0\] is \[\], not an object"),
        ("thinking", 1, "thinking is 1, not true or false"),
        ("thinking", True, "thinking and variables.enable_thinking say the same"),
        ("show_thinking", None, "show_thinking is None, not true or false"),
        ("variables", [], r"variables is \[\], not an object"),
        ("variables.messages", [], "variables.messages is no variable"),
        ("variables.self", 1, "variables.self is no variable"),
        ("model", ["x" * 1000], r"model is \['x{50,60}\.\.\., not text"),
    ],
)
def test_wrong_value_is_named_with_file_and_key(model, tmp_path, path, value, message):
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps(changed(path, value)), encoding="utf-8")
    with (
        pytest.raises(ChatFileError, match=rf"wrong\.json: .*{message}"),
        model.session() as session,
    ):
        Chat.load(file, session)


WHOLE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Expecting value"),
        (b"GGUF\x03\x00", "no conversation"),
        (b"\xff\xfe{}", "byte 0 is not UTF-8"),
        (b"[1, 2]", "no conversation: it has no"),
        (b'{"format": "oxibonsai chat", ', "no conversation: .*line 1"),
        (b'{"format": NaN}', "NaN is no JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"format": ' + b"9" * 5000 + b"}", "no conversation"),
        (WHOLE.replace(b'"model"', b'"messages": [], "model"'), "the key 'messages' comes twice"),
        (
            WHOLE.replace(b'"role"', b'"role": "tool", "role"', 1),
            r"the key 'role' comes twice in messages\[0\]",
        ),
        (WHOLE.replace(b"false", b"1e999"), "variables.enable_thinking is .* too large"),
        (
            WHOLE.replace(b"false", b"[0, -1e999]"),
            r"variables.enable_thinking\[1\] is .* too large",
        ),
        (
            WHOLE.replace(b"false", b"9" * 5000),
            "variables.enable_thinking is a number of 5000 digits",
        ),
        (WHOLE.replace(b'"version": 1', b'"version": ' + b"9" * 5000), "version"),
    ],
)
def test_file_that_is_no_conversation_is_refused(tmp_path, raw, message):
    (tmp_path / "wrong.json").write_bytes(raw)
    with pytest.raises(ChatFileError, match=rf"wrong\.json: .*{message}"):
        read(tmp_path / "wrong.json")


def test_endless_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oxibonsai.chat.saved._MAX_BYTES", 1 << 10)
    with pytest.raises(ChatFileError, match="/dev/zero: more than 1024 bytes"):
        read("/dev/zero")


def test_missing_file_is_an_os_error(model: Model, tmp_path: Path) -> None:
    with model.session() as session, pytest.raises(FileNotFoundError, match=r"none\.json"):
        Chat.load(tmp_path / "none.json", session)


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ({"day": object()}, TypeError, r"variables\.day is a object, which JSON has not"),
        ({"x": [1, {"y": b"z"}]}, TypeError, r"variables\.x\[1\]\.y is a bytes"),
        ({"x": {1: 2}}, TypeError, r"variables\.x has the key 1"),
        ({"x": 10**5000}, ValueError, "variables.x is a number of too many digits"),
        ({"x": float("nan")}, ValueError, r"variables\.x is nan"),
        ({"x": {2}}, TypeError, r"variables\.x is a set"),
    ],
)
def test_value_that_json_has_not_is_named_and_the_file_stays(tmp_path, variables, error, message):
    file = tmp_path / "c.json"
    write(file, saved())
    before = file.read_bytes()
    with pytest.raises(error, match=rf"c\.json: {message}"):
        write(file, saved(variables=variables))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"c\.json: variables is nested too deeply"):
        write(file, saved(variables={"deep": deep}))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.json"]


# How it is written


def test_link_is_written_through_and_keeps_its_target(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "real.json"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(target)
    write(link, saved(model="x"))
    assert link.is_symlink()
    assert read(target).model == read(link).model == "x"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling.json"
    dangling.symlink_to(tmp_path / "folder" / "new.json")
    write(dangling, saved(model="y"))
    assert dangling.is_symlink()
    assert read(tmp_path / "folder" / "new.json").model == "y"


def test_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write(tmp_path / "c.json", saved())
    (tmp_path / "other").write_text("")
    assert (tmp_path / "c.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write(pipe, saved(model="x"))
    reader.join(10)
    assert json.loads(got[0])["model"] == "x"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_open_file_is_written_to_by_its_number(tmp_path: Path) -> None:
    with open(tmp_path / "c.json", "w+b") as file:
        number = os.stat(file.fileno()).st_ino
        write(f"/dev/fd/{file.fileno()}", saved(model="x"))
    assert (tmp_path / "c.json").stat().st_ino == number
    assert read(tmp_path / "c.json").model == "x"
    assert os.listdir(tmp_path) == ["c.json"]


def test_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.json"
    write(file, saved(model="old"))

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(file, saved(model="new"))
    assert read(file).model == "old"
    assert os.listdir(tmp_path) == ["c.json"]
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "c.json", saved())
