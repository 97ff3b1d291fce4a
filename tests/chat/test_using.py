"""Conversations that are used while they are in use: other chats, threads, callbacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talkers import JSON_TEMPLATE, says, write_talker

from oxibonsai import metal
from oxibonsai.chat import Chat, parse_answer
from oxibonsai.chat.guard import Guard
from oxibonsai.model import Model, Session

USES = {
    "send": lambda chat: chat.send("two"),
    "respond": lambda chat: chat.respond(),
    "reset": Chat.reset,
    "undo": Chat.undo,
    "add_tool_result": lambda chat: chat.add_tool_result("1"),
}
EDITS: dict[str, Callable[[Chat], object]] = {
    "append": lambda chat: chat.messages.append({"role": "user", "content": "more"}),
    "clear": lambda chat: chat.messages.clear(),
    "change": lambda chat: chat.messages[0].update(content="other"),  # type: ignore[attr-defined]
    "rebind": lambda chat: setattr(chat, "messages", [{"role": "user", "content": "more"}]),
}


@pytest.fixture
def model(device: metal.Device, tmp_path: Path) -> Iterator[Model]:
    with Model.load(write_talker(tmp_path / "t.gguf", JSON_TEMPLATE), device) as model:
        yield model


@pytest.fixture
def chat(model: Model) -> Iterator[Chat]:
    with model.session() as session:
        yield Chat(session)


def saying(chat: Chat, text: str) -> dict[str, Any]:
    return {"allowed": says(chat.session.model.tokenizer, text)}


def ask(chat: Chat, text: str, answer: str, **kw: Any) -> str:
    return "".join(chat.send(text, **saying(chat, answer), **kw))


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.messages]


# Sessions that move


def other_chat(session: Session) -> None:
    ask(Chat(session), "Another conversation", "Other")


@pytest.mark.parametrize(
    "move",
    [
        other_chat,
        lambda session: session.rewind(session.position - 1),
        lambda session: session.rewind(0),
        lambda session: session.forward([65]),
        lambda session: list(session.generate(1)),
    ],
    ids=["other chat", "rewind", "rewind all", "forward", "generate"],
)
@pytest.mark.parametrize("taken", [0, 2])
def test_answer_ends_where_its_session_is_moved(chat, move, taken):
    answer = chat.send("one", **saying(chat, "A long answer"))
    for _ in range(taken):
        next(answer)
    move(chat.session)
    with pytest.raises(RuntimeError, match="the session was moved while an answer"):
        next(answer)
    assert list(answer) == []
    assert contents(chat) == ["one", "A long answer"[:taken]]
    assert chat.finish_reason is None
    assert ask(chat, "two", "Yes") == "Yes"


def test_callback_that_moves_the_session_ends_the_answer(chat):
    answer = chat.send("one", 9, on_token=lambda scored: chat.session.rewind(3), ignore_eos=True)
    with pytest.raises(RuntimeError, match="the session was moved"):
        list(answer)
    assert ask(chat, "two", "Yes") == "Yes"


def test_two_chats_take_turns_in_one_session(chat):
    other = Chat(chat.session)
    assert ask(chat, "one", "Yes") == "Yes"
    assert ask(other, "two", "No") == "No"
    assert ask(chat, "three", "So") == "So"
    assert contents(chat) == ["one", "Yes", "three", "So"]
    assert contents(other) == ["two", "No"]


def test_epoch_is_that_of_the_text(chat):
    session = chat.session
    session.forward([65])
    before = session.epoch
    tokens = session.generate(3, ignore_eos=True)
    next(tokens)
    started = session.epoch
    assert started != before
    next(tokens)
    assert session.epoch == started
    session.rewind(1)
    assert session.epoch != started


# Callbacks


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("callback", ["progress", "on_drop"])
def test_callback_of_a_call_cannot_use_the_chat(device, tmp_path, use, callback):
    file = write_talker(tmp_path / "t.gguf", JSON_TEMPLATE, context=256)
    with Model.load(file, device) as model, model.session() as session:
        chat = Chat(session)
        seen: list[str] = []

        def reenter(*args: int) -> None:
            with pytest.raises(RuntimeError, match="callbacks must not use the chat") as caught:
                USES[use](chat)
            seen.append(str(caught.value))

        if callback == "on_drop":
            chat.on_drop = reenter
        for turn in range(8):
            kw = {"progress": reenter} if callback == "progress" else {}
            assert ask(chat, f"q{turn}", "Yes", **kw) == "Yes"
            assert contents(chat)[-2:] == [f"q{turn}", "Yes"]
        assert seen
        assert len(contents(chat)) % 2 == 0


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("callback", ["progress", "on_drop"])
def test_callback_that_edits_the_history_is_an_error_that_changes_nothing(
    chat, edit, callback, monkeypatch
):
    ask(chat, "one", "Yes")
    if callback == "on_drop":
        everything = contents(chat)
        monkeypatch.setattr("oxibonsai.chat.conversation.fit", _dropping)
    before, held = [dict(m) for m in chat.messages], chat.messages
    change = EDITS[edit]
    kw: dict[str, Any] = {}
    if callback == "progress":
        kw["progress"] = lambda *args: change(chat)
    else:
        chat.on_drop = lambda n: change(chat)
    with pytest.raises(RuntimeError, match="a callback changed the messages"):
        chat.send("two", **kw)
    assert chat.messages is held
    assert chat.messages == before
    monkeypatch.undo()
    chat.on_drop = None
    assert ask(chat, "two", "No") == "No"
    if callback == "on_drop":
        assert contents(chat)[:2] == everything


def _dropping(messages, encode, max_seq, max_tokens):
    kept = messages[2:]
    return kept, encode(kept), 2


def test_callback_may_save_and_look(chat, tmp_path):
    seen: list[Any] = []

    def look(scored: Any) -> None:
        chat.save(tmp_path / "c.json")
        seen.append((chat.tool_calls, chat.finish_reason))

    assert ask(chat, "one", "Yes", on_token=look) == "Yes"
    assert seen == [([], None)] * 3


# Threads


@pytest.mark.parametrize("use", [*USES, "next", "close"])
def test_second_thread_is_refused_while_a_step_runs(chat, use):
    inside, go_on = threading.Event(), threading.Event()

    def wait(scored: Any) -> None:
        inside.set()
        assert go_on.wait(30)

    answer = chat.send("one", **saying(chat, "Yes"), on_token=wait)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.extend(answer))
    thread.start()
    assert inside.wait(30)
    try:
        uses = {**USES, "next": lambda chat: next(answer), "close": lambda chat: answer.close()}
        with pytest.raises(RuntimeError, match="the chat is in use by another thread"):
            uses[use](chat)
    finally:
        go_on.set()
        thread.join(30)
    assert "".join(said) == "Yes"
    assert contents(chat) == ["one", "Yes"]


def test_threads_that_ask_at_once_leave_a_whole_history(chat):
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            ask(chat, f"q{i}" * 50, f"a{i}")
        except BaseException as error:
            errors.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert {type(error) for error in errors} <= {RuntimeError}
        assert all("in use by another thread" in str(error) for error in errors)
        roles = [message["role"] for message in chat.messages]
        assert roles[0::2] == ["user"] * len(roles[0::2])
        assert roles[1::2] == ["assistant"] * len(roles[1::2])
        assert ask(chat, "Last?", "Yes") == "Yes"
        prompt = chat.template.render(chat.messages[:-1])
        text = chat.session.model.tokenizer.decode(chat.session.tokens, skip_special=False)
        assert text == f"{prompt}Yes"
        chat.reset()


def test_guard_that_ctrl_c_left_shut_lets_its_thread_in():
    guard = Guard()

    def interrupted() -> None:
        guard.enter()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with guard, pytest.raises(RuntimeError, match="callbacks"), guard:
        pass
    assert guard.enter()
    guard.leave()


# Answers that nobody takes


@pytest.mark.parametrize("leave", ["drop", "close", "keep"])
def test_message_whose_answer_never_began_gives_way_to_the_next(chat, leave):
    ask(chat, "zero", "0")
    answer = chat.send("one", **saying(chat, "Never"))
    if leave == "drop":
        del answer
    elif leave == "close":
        answer.close()
    assert contents(chat) == ["zero", "0", "one"]
    with pytest.raises(ValueError, match="top_p"):
        chat.send("two", top_p=2)
    assert contents(chat) == ["zero", "0", "one"]
    assert ask(chat, "two", "Yes") == "Yes"
    assert contents(chat) == ["zero", "0", "two", "Yes"]
    if leave == "keep":
        assert list(answer) == []
        assert contents(chat) == ["zero", "0", "two", "Yes"]


def test_message_whose_answer_never_began_can_be_answered(chat):
    chat.send("one", **saying(chat, "Never"))
    chat.respond(**saying(chat, "Never"))
    assert "".join(chat.respond(**saying(chat, "Yes"))) == "Yes"
    assert contents(chat) == ["one", "Yes"]
    chat.send("two", **saying(chat, "Never"))
    chat.respond(**saying(chat, "Never"))
    assert ask(chat, "three", "No") == "No"
    assert contents(chat) == ["one", "Yes", "three", "No"]


def test_users_own_unanswered_message_stays(chat):
    chat.messages.append({"role": "user", "content": "mine"})
    ask(chat, "one", "Yes")
    assert contents(chat) == ["mine", "one", "Yes"]


def test_answer_that_was_left_in_thinking_is_not_thought_of(chat):
    answer = chat.send("one", **saying(chat, "<think>hm"))
    next(answer)
    assert chat.is_thinking
    chat.send("two", **saying(chat, "Yes"))
    assert not chat.is_thinking
    answer = chat.send("one", **saying(chat, "<think>hm"))
    next(answer)
    chat.reset()
    assert not chat.is_thinking


# Beginnings


@pytest.mark.parametrize("role", ["system", "developer"])
def test_reset_keeps_what_begins_the_history_now(chat, role):
    now = {"role": role, "content": "Now."}
    old = Chat(chat.session, system="Old.")
    for edit in ("item", "list", "appended"):
        chat = old if edit != "appended" else Chat(chat.session)
        if edit == "item":
            chat.messages[0] = now
        elif edit == "list":
            chat.messages = [now]
        else:
            chat.messages.append(now)
        ask(chat, "one", "Yes")
        chat.reset()
        assert chat.messages == [now]
    chat.messages.clear()
    chat.reset()
    assert chat.messages == []
    chat.messages += [now, {"role": "user", "content": "a"}, now]
    chat.reset()
    assert chat.messages == [now]


def test_loaded_conversation_keeps_its_developers_message(chat, tmp_path):
    chat.messages.append({"role": "developer", "content": "Be brief."})
    ask(chat, "one", "Yes")
    chat.save(tmp_path / "c.json")
    loaded = Chat.load(tmp_path / "c.json", chat.session)
    loaded.reset()
    assert contents(loaded) == ["Be brief."]


# Wrong kinds


@pytest.mark.parametrize(
    ("kw", "match"),
    [
        ({"template": 5}, "template is a int, not a ChatTemplate or the text of one"),
        ({"template": b"x"}, "template is a bytes"),
        ({"on_drop": 5}, "on_drop = 5"),
        ({"show_thinking": "no"}, "show_thinking = 'no': True or False"),
        ({"show_thinking": None}, "show_thinking = None"),
        ({"system": 5}, "system is a int, not a str"),
    ],
)
def test_option_of_a_wrong_kind_is_named(chat, kw, match):
    with pytest.raises(TypeError, match=match):
        Chat(chat.session, **kw)
    for name, value in kw.items():
        if name != "system":
            setattr(chat, name, value)
            with pytest.raises(TypeError, match=match):
                chat.send("one")
            assert chat.messages == []


@pytest.mark.parametrize("name", ["on_token", "progress"])
def test_callback_of_a_wrong_kind_is_named_before_anything_is_fed(chat, name):
    with pytest.raises(TypeError, match=rf"{name} = 5 is a int"):
        chat.send("one", **{name: 5})
    assert chat.session.position == 0
    assert chat.messages == []


def test_text_of_a_template_is_one(chat):
    other = Chat(chat.session, template="{{ messages[-1].content }}{{ eos_token }}!")
    ask(other, "one", "Yes")
    assert chat.session.model.tokenizer.decode(chat.session.tokens) == "one!Yes"
    other.template = "{{ messages[-1].content }}?"
    ask(other, "one", "Yes")
    assert chat.session.model.tokenizer.decode(chat.session.tokens) == "one?Yes"


@pytest.mark.parametrize("use", [*USES, "tool_calls", "save"])
@pytest.mark.parametrize(
    ("messages", "match"),
    [
        (["hello"], "message 0 is a str; a mapping"),
        ([{"role": "user", "content": "a"}, None], "message 1 is a NoneType"),
        ([{"role": "assistant", "tool_calls": 5}], "the tool_calls of message 0 are a int"),
        ([{"role": "assistant", "tool_calls": ["f"]}], r"tool_calls\[0\] of message 0 is a str"),
        ("text", "messages is a str, not a list"),
    ],
)
def test_message_of_a_wrong_kind_is_named(chat, tmp_path, use, messages, match):
    chat.messages = messages
    if use == "reset":
        chat.messages = list(messages)
        chat.reset()  # a way out
        assert chat.messages == []
        return
    uses = {
        **USES,
        "tool_calls": lambda chat: chat.tool_calls,
        "save": lambda chat: chat.save(tmp_path / "c.json"),
    }
    with pytest.raises((TypeError, ValueError), match=match):
        uses[use](chat)
    assert not (tmp_path / "c.json").exists()
    assert chat.messages == messages


def test_what_is_no_session_or_answer_is_named(model):
    with pytest.raises(TypeError, match=r"session is a Model, .* model.session\(\) makes one"):
        Chat(model)
    with pytest.raises(TypeError, match="text is a NoneType, not a str"):
        parse_answer(None)
