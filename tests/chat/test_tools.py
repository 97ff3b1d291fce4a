"""Conversations with tools and with thinking: what models write, what comes back to them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talkers import JSON_TEMPLATE, TAGS_TEMPLATE, plain_tokenizer, says, write_talker
from tiny_models import CHATML, IM_END, THINK

from oxibonsai import metal
from oxibonsai.chat import Chat, ChatTemplate
from oxibonsai.chat.prompt import takes_mapping
from oxibonsai.model import Model

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        },
    },
}
JSON_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1,"b": 20}}\n</tool_call>'
TAGS_CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n20\n</parameter>\n"
    "</function>\n</tool_call>"
)
FORMS = {
    "json": (JSON_TEMPLATE, JSON_CALL, '{"a": 1,"b": 20}', "<think>\n"),
    "tags": (TAGS_TEMPLATE, TAGS_CALL, '{"a": 1, "b": 20}', ""),
}


def load(path: Path, device: metal.Device, template: str, **kw: Any) -> Model:
    return Model.load(write_talker(path / "talker.gguf", template, **kw), device)


@pytest.fixture(params=[4, 0, 3], ids=["user-defined tags", "tags as text", "control tags"])
def tags(request: pytest.FixtureRequest) -> int:
    """The type of tokens that the tags are; 0 where they are none."""
    return int(request.param)


def ask(chat: Chat, text: str, answer: str, **kw: Any) -> str:
    return "".join(chat.send(text, allowed=says(chat.session.model.tokenizer, answer), **kw))


def go_on(chat: Chat, answer: str, **kw: Any) -> str:
    return "".join(chat.respond(allowed=says(chat.session.model.tokenizer, answer), **kw))


def prompt_of(chat: Chat, n: int) -> str:
    """The text in the session, up to the n-th last token."""
    tokens = chat.session.tokens
    return chat.session.model.tokenizer.decode(tokens[: len(tokens) - n], skip_special=False)


# Calls


@pytest.mark.parametrize("form", FORMS)
def test_call_is_answered_and_the_history_repeats_what_the_model_wrote(
    device: metal.Device, tmp_path: Path, form: str, tags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, call, arguments, opening = FORMS[form]
    with load(tmp_path, device, template, tags=tags) as model, model.session() as session:
        chat = Chat(session, system="Be brief.", tools=[ADD])
        said = f"{opening}plan\n</think>\n\nI add.\n{call}"
        shown = ask(chat, "1 + 20?", said)
        assert shown == f"{opening}plan\n</think>\n\nI add.\n"
        (made,) = chat.tool_calls
        assert made["function"] == {"name": "add", "arguments": arguments}
        assert chat.messages[-1] == {
            "role": "assistant",
            "content": "I add.",
            "reasoning_content": "plan",
            "tool_calls": [made],
        }
        assert chat.finish_reason == "tool_calls"

        chat.add_tool_result("21", tool_call_id=made["id"])
        assert chat.messages[-1] == {"role": "tool", "content": "21", "tool_call_id": made["id"]}
        fed: list[list[int]] = []
        forward = session.forward

        def counted(ids: list[int], **kw: Any) -> Any:
            fed.append(list(ids))
            return forward(ids, **kw)

        monkeypatch.setattr(session, "forward", counted)
        held = session.position
        assert go_on(chat, f"{opening}easy</think>It is 21.").endswith("It is 21.")
        assert chat.messages[-1]["content"] == "It is 21."
        assert chat.messages[-1]["reasoning_content"] == "easy"
        assert chat.tool_calls == []
        assert chat.finish_reason == "stop"
        whole = model.tokenizer.decode(session.tokens, skip_special=False)
        assert f"{call}<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n</tool_response>" in whole
        if tags:  # what the model said was in the session already
            assert len(fed[0]) < held / 2

        # A new question strips the thinking of the turn before it.
        ask(chat, "Thanks", "</think>You are welcome." if form == "tags" else "You are welcome.")
        whole = model.tokenizer.decode(session.tokens, skip_special=False)
        assert "plan" not in whole
        assert "easy" not in whole
        assert f"I add.\n{call}<|im_end|>" in whole
        assert chat.messages[2]["reasoning_content"] == "plan"


def test_callback_sees_tags_that_are_control_tokens(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, JSON_TEMPLATE, tags=3) as model, model.session() as session:
        chat = Chat(session, tools=[ADD])
        seen: list[int] = []
        said = f"<think>x</think>y{JSON_CALL}"
        pieces = ask(chat, "?", said, on_token=lambda scored: seen.append(scored.token))
        assert pieces == "<think>x</think>y"
        assert seen == model.tokenizer.encode(said, parse_special=True)
        assert len(chat.tool_calls) == 1
        assert ask(chat, "?", "y<think>") == "y<think>"  # the last token has no piece behind it


HALF = b"\xc3"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["<think>", HALF, "</think>", "ok"], "<think>\ufffd</think>ok"),
        (["<think>", HALF, "</think>", b"\xa9", "ok"], "<think>\ufffd</think>\ufffdok"),
        (["<think>", HALF], "<think>\ufffd"),
        (["<think>", "a", HALF, "</think>"], "<think>a\ufffd</think>"),
        (["<think>", "\u00e9", "</think>", "\u00e9"], "<think>\u00e9</think>\u00e9"),
        (["a", HALF, "<think>", HALF, "<think>", "b", HALF], "a\ufffd<think>\ufffd<think>b\ufffd"),
        (["a<think>b", HALF, "b"], "a<think>b\ufffdb"),
    ],
)
@pytest.mark.parametrize("stop", [None, "\n\n\n"])
def test_tag_stands_where_it_came_beside_half_a_character(
    device: metal.Device,
    tmp_path: Path,
    tags: int,
    parts: list[str | bytes],
    said: str,
    stop: str | None,
) -> None:
    with load(tmp_path, device, JSON_TEMPLATE, tags=tags) as model, model.session() as session:
        ids: list[int] = []
        for part in parts:
            encode = model.tokenizer.encode
            ids += part if isinstance(part, bytes) else encode(part, parse_special=True)
        tokens = iter([*ids, IM_END])
        chat = Chat(session)
        assert "".join(chat.send("?", allowed=lambda text: [next(tokens)], stop=stop)) == said


def test_call_that_ends_open_thinking_is_answered(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, TAGS_TEMPLATE) as model, model.session() as session:
        chat = Chat(session, tools=[ADD])
        assert ask(chat, "?", TAGS_CALL) == TAGS_CALL
        assert chat.finish_reason == "tool_calls"
        assert set(chat.messages[-1]) == {"role", "content", "tool_calls"}
        chat.add_tool_result("21")
        assert go_on(chat, "</think>\n\n21.") == "</think>\n\n21."
        assert f"assistant\n{TAGS_CALL}<|im_end|>" in prompt_of(chat, 0)


def test_several_calls_are_answered_in_order(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, JSON_TEMPLATE) as model, model.session() as session:
        chat = Chat(session, tools=[ADD])
        second = JSON_CALL.replace("20", "30")
        assert ask(chat, "?", f"{JSON_CALL}\n{second}") == ""
        assert chat.messages[-1]["content"] == ""
        for call in chat.tool_calls:
            total = sum(json.loads(call["function"]["arguments"]).values())
            chat.add_tool_result(str(total), tool_call_id=call["id"], name="add")
        assert [m["content"] for m in chat.messages[-2:]] == ["21", "31"]
        assert len(chat.tool_calls) == 2
        go_on(chat, "21 and 31.")
        assert (
            f"{JSON_CALL}\n{second}<|im_end|>\n<|im_start|>user\n<tool_response>\n21\n"
            "</tool_response>\n<tool_response>\n31\n</tool_response><|im_end|>\n"
        ) in prompt_of(chat, 0)


def test_broken_call_is_shown_as_text(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, JSON_TEMPLATE) as model, model.session() as session:
        chat = Chat(session, tools=[ADD])
        broken = JSON_CALL.replace("}}", "}")
        assert ask(chat, "?", f"So: {broken}") == f"So: {broken}"
        assert chat.messages[-1] == {"role": "assistant", "content": f"So: {broken}"}
        assert (chat.tool_calls, chat.finish_reason) == ([], "stop")
        n = len(model.tokenizer.encode(JSON_CALL, parse_special=True)) - 3
        assert ask(chat, "?", JSON_CALL, max_tokens=n) == JSON_CALL[: -len("}\n</tool_call>")]
        assert (chat.tool_calls, chat.finish_reason) == ([], "length")


def test_without_tools_a_call_is_text(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, JSON_TEMPLATE) as model, model.session() as session:
        chat = Chat(session)
        assert ask(chat, "?", JSON_CALL) == JSON_CALL
        assert chat.messages[-1] == {"role": "assistant", "content": JSON_CALL}
        chat.tools = []
        assert ask(chat, "?", JSON_CALL) == ""
        assert len(chat.tool_calls) == 1


def test_left_answer_keeps_what_the_model_wrote_of_a_call(
    device: metal.Device, tmp_path: Path
) -> None:
    with load(tmp_path, device, JSON_TEMPLATE) as model, model.session() as session:
        chat = Chat(session, tools=[ADD])
        seen: list[Any] = []

        def stop(scored: Any) -> None:
            seen.append(scored)
            if len(seen) == 12:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask(chat, "?", f"Ab{JSON_CALL}", on_token=stop)
        # All but the token that the callback did not take; what begins a call had been held back.
        assert chat.messages[-1] == {"role": "assistant", "content": 'Ab<tool_call>\n{"name"'}
        assert chat.finish_reason is None
        assert ask(chat, "Again", "Yes.") == "Yes."


def test_users_own_calls_reach_the_template_in_either_form(
    device: metal.Device, tmp_path: Path
) -> None:
    def history(arguments: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        return [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "21"},
        ]

    for form, (template, call, text, _) in FORMS.items():
        (tmp_path / form).mkdir()
        with load(tmp_path / form, device, template) as model, model.session() as session:
            for arguments in (text, json.loads(text)):
                chat = Chat(session, tools=[ADD])
                chat.messages += history(arguments)
                go_on(chat, "</think>21." if form == "tags" else "21.")
                as_written = call.replace(
                    text, text if arguments is text else json.dumps(arguments)
                )
                assert f"{as_written}<|im_end|>" in prompt_of(chat, 0)
                assert chat.messages[1]["tool_calls"][0]["function"]["arguments"] is arguments


@pytest.mark.parametrize(
    ("arguments", "mapping"),
    [
        ("{{ a }}", False),
        ("{{ a if a is string else a | tojson }}", False),
        ("{{ a | tojson }}", True),
        ("{% for k, v in a | items %}{{ k }}={{ v }}{% endfor %}", True),
        ("{% for k in a %}{{ k }}={{ a[k] }}{% endfor %}", True),
        ("{% if a is string %}x{% else %}{{ a.values() | first }}{% endif %}", True),
        ("{{ 'json ' + a }}", False),
        ("", False),
        ("{{ raise_exception('no tools') }}", False),
    ],
)  # fmt: skip
def test_what_a_template_does_with_arguments_is_found_out(arguments, mapping):
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        f"{{% set a = c.function.arguments %}}{arguments}{{% endfor %}}{{% endfor %}}"
    )
    assert takes_mapping(ChatTemplate(source, plain_tokenizer()), {}) is mapping


@pytest.fixture
def chat(device: metal.Device, tmp_path: Path) -> Iterator[Chat]:
    with load(tmp_path, device, JSON_TEMPLATE) as model, model.session() as session:
        yield Chat(session, tools=[ADD])


def test_result_of_no_call_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"tool_call_id = 'call_x': .*there are none"):
        chat.add_tool_result("1", tool_call_id="call_x")
    ask(chat, "?", JSON_CALL)
    with pytest.raises(ValueError, match=rf"tool_call_id = 'x': .*'{chat.tool_calls[0]['id']}'"):
        chat.add_tool_result("1", tool_call_id="x")
    with pytest.raises(TypeError, match=r"content is a dict, not a str.*json\.dumps"):
        chat.add_tool_result({"a": 1})  # type: ignore[arg-type]
    assert len(chat.messages) == 2
    chat.add_tool_result("")
    assert chat.messages[-1] == {"role": "tool", "content": ""}


def test_history_with_nothing_to_answer_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"history is empty: send\(\)"):
        chat.respond()
    ask(chat, "?", "Yes.")
    with pytest.raises(ValueError, match=r"ends with an answer: send\(\) a message first"):
        chat.respond()
    ask(chat, "?", JSON_CALL)
    with pytest.raises(ValueError, match=r"ends with an answer: add_tool_result\(\) first"):
        chat.respond()
    assert len(chat.messages) == 4
    assert chat.finish_reason == "tool_calls"
    # Another answer to the same question.
    del chat.messages[-1]
    assert go_on(chat, "No.") == "No."
    assert chat.messages[-1] == {"role": "assistant", "content": "No."}


def test_undo_takes_a_turn_with_its_calls(chat: Chat) -> None:
    ask(chat, "one", "1")
    ask(chat, "two", JSON_CALL)
    chat.add_tool_result("21")
    go_on(chat, "21")
    assert chat.undo()
    assert [m["content"] for m in chat.messages] == ["one", "1"]
    assert (chat.tool_calls, chat.finish_reason) == ([], None)
    ask(chat, "two", JSON_CALL)
    chat.messages.append({"role": "user", "content": "<tool_response>\n21\n</tool_response>"})
    assert chat.undo()
    assert [m["content"] for m in chat.messages] == ["one", "1"]


# Thinking


@pytest.mark.parametrize("show", [True, False])
def test_thinking_is_shown_or_not_and_never_in_the_content(
    device: metal.Device, tmp_path: Path, show: bool, tags: int
) -> None:
    with load(tmp_path, device, JSON_TEMPLATE, tags=tags) as model, model.session() as session:
        chat = Chat(session, show_thinking=show)
        said = "<think>\n1 < 2\n</think>\n\nYes, <b>."
        told = chat.send("?", allowed=says(model.tokenizer, said))
        pieces = [(piece, chat.is_thinking) for piece in told]
        thought = "".join(piece for piece, thinking in pieces if thinking)
        assert thought == ("<think>\n1 < 2\n</think>\n\n" if show else "")
        assert "".join(piece for piece, thinking in pieces if not thinking) == "Yes, <b>."
        assert chat.messages[-1] == {
            "role": "assistant",
            "content": "Yes, <b>.",
            "reasoning_content": "1 < 2",
        }
        assert ask(chat, "?", "<think>\nhm", max_tokens=4096 if tags else 99) == (
            "<think>\nhm" if show else ""
        )
        assert chat.messages[-1]["content"] == ""
        assert chat.messages[-1]["reasoning_content"] == "hm"


def test_thinking_is_switched_by_the_template(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device, TAGS_TEMPLATE) as model, model.session() as session:
        for thinking, end in (
            (None, "<think>\n"),
            (True, "<think>\n"),
            (False, "<think>\n\n</think>\n\n"),
        ):
            chat = Chat(session, thinking=thinking)
            ask(chat, "?", "Yes")
            assert prompt_of(chat, len("Yes")).endswith(f"<|im_start|>assistant\n{end}")
            last = chat.messages[-1]
            assert (last["content"], last.get("reasoning_content")) == (
                ("Yes", None) if thinking is False else ("", "Yes")
            )
        chat = Chat(session, enable_thinking=False)
        assert ask(chat, "?", "Yes") == chat.messages[-1]["content"] == "Yes"
        chat.variables = {}
        chat.thinking = True
        ask(chat, "?", "plan</think>Yes")
        assert chat.messages[-1]["reasoning_content"] == "plan"


def test_templates_that_ask_for_thinking_by_its_short_name_are_told(
    device: metal.Device, tmp_path: Path
) -> None:
    source = CHATML + "{{ thinking is defined and thinking }}"
    with load(tmp_path, device, source) as model, model.session() as session:
        for thinking, end in ((None, "False"), (True, "True"), (False, "False")):
            ask(Chat(session, thinking=thinking), "?", "Yes")
            assert model.tokenizer.decode(session.tokens[:-3]).endswith(end)


def test_users_tag_opens_no_thinking(device: metal.Device, tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with load(tmp_path, device, plain) as model, model.session() as session:
        chat = Chat(session)
        ask(chat, "Say <think>", "Yes")
        assert chat.messages[-1] == {"role": "assistant", "content": "Yes"}
    (tmp_path / "thinks").mkdir()
    with load(tmp_path / "thinks", device, TAGS_TEMPLATE) as model, model.session() as session:
        chat = Chat(session)
        ask(chat, "Say <think>", "plan")
        assert chat.messages[-1]["reasoning_content"] == "plan"
        assert session.tokens.count(THINK) >= 1


@pytest.mark.parametrize(
    ("kw", "error", "match"),
    [
        ({"thinking": 1}, TypeError, "thinking = 1: True, False or None"),
        ({"thinking": True, "enable_thinking": True}, ValueError, "give one of them"),
        ({"tools": ADD}, TypeError, "tools is a dict, not a list of dicts"),
        ({"tools": [len]}, TypeError, r"tools\[0\] is a builtin_.*JSON schemas"),
        ({"tools": "add"}, TypeError, "tools is a str"),
        ({"documents": ["text"]}, TypeError, r"documents\[0\] is a str"),
        ({"messages": []}, TypeError, "messages is no variable of a template"),
        ({"add_generation_prompt": False}, TypeError, "add_generation_prompt is no variable"),
    ],
)
def test_wrong_options_are_named(chat: Chat, kw: dict[str, Any], error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        Chat(chat.session, **kw)


def test_tools_and_documents_reach_the_template(device: metal.Device, tmp_path: Path) -> None:
    source = "{{ tools[0].function.name }} {{ documents[0].title }} {{ documents | length }}"
    with load(tmp_path, device, source) as model, model.session() as session:
        chat = Chat(session, tools=[ADD], documents=[{"title": "Alice", "text": "Down."}])
        ask(chat, "?", "Yes")
        assert model.tokenizer.decode(session.tokens) == "add Alice 1Yes"


# Several at a time


def test_new_question_ends_an_answer_that_is_being_given(chat: Chat) -> None:
    tokenizer = chat.session.model.tokenizer
    first = chat.send("one", allowed=says(tokenizer, "A long answer"))
    assert next(first) + next(first) == "A "
    second = chat.send("two", allowed=says(tokenizer, "Yes"))
    assert list(first) == []
    assert "".join(second) == "Yes"
    assert [m["content"] for m in chat.messages] == ["one", "A ", "two", "Yes"]
    assert chat.finish_reason == "stop"


@pytest.mark.parametrize(
    "use",
    [
        lambda chat: chat.send("two"),
        lambda chat: chat.respond(),
        lambda chat: chat.reset(),
        lambda chat: chat.undo(),
        lambda chat: chat.add_tool_result("1"),
    ],
    ids=["send", "respond", "reset", "undo", "add_tool_result"],
)
def test_callback_of_an_answer_cannot_use_the_chat(
    chat: Chat, use: Callable[[Chat], object]
) -> None:
    def on_token(scored: Any) -> None:
        with pytest.raises(RuntimeError, match="an answer is being given"):
            use(chat)

    assert ask(chat, "one", "Yes", on_token=on_token) == "Yes"
    assert [m["content"] for m in chat.messages] == ["one", "Yes"]


@pytest.mark.parametrize("use", [Chat.reset, Chat.undo])
def test_left_answer_does_not_come_back(chat: Chat, use: Callable[[Chat], object]) -> None:
    answer = chat.send("one", allowed=says(chat.session.model.tokenizer, "A long answer"))
    next(answer)
    use(chat)
    assert list(answer) == []
    assert chat.messages == []
    assert chat.finish_reason is None


def test_answer_that_nobody_asked_for_is_none(chat: Chat) -> None:
    chat.send("one", allowed=says(chat.session.model.tokenizer, "Yes"))
    assert [m["role"] for m in chat.messages] == ["user"]
    assert chat.finish_reason is None
    assert go_on(chat, "Yes") == "Yes"
