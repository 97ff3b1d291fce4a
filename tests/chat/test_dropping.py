"""Conversations that outgrow their session: which turns go, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talkers import JSON_TEMPLATE, says, write_talker
from tiny_models import ANSWER, FOLLOWS, chat_vocabulary, write_chain

from oxibonsai import metal
from oxibonsai.chat import Chat, Message
from oxibonsai.chat.history import fit, openings
from oxibonsai.model import Model, SessionFullError


def load(path: Path, device: metal.Device, context: int = 256) -> Model:
    file = write_chain(path / "c.gguf", FOLLOWS, context=context, vocabulary=chat_vocabulary())
    return Model.load(file, device)


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.messages]


def test_full_session_drops_the_oldest_turns_and_says_so(
    device: metal.Device, tmp_path: Path
) -> None:
    with load(tmp_path, device) as model, model.session(max_seq=256) as session:
        dropped: list[int] = []
        chat = Chat(session, system="Be brief.", on_drop=dropped.append)
        for turn in range(30):
            before, calls = len(chat.messages), len(dropped)
            assert "".join(chat.send(f"q{turn}")) == ANSWER
            assert chat.finish_reason == "stop"
            assert chat.messages[0] == {"role": "system", "content": "Be brief."}
            assert contents(chat)[-2:] == [f"q{turn}", ANSWER]
            gone = before + 2 - len(chat.messages)
            assert gone == sum(dropped[calls:])
            assert gone % 2 == 0
            prompt = session.position - len(ANSWER)
            assert prompt <= 256 - 64
            if gone:  # half is free, and no turn more is gone than for that
                assert 128 - len("|user\nq10|\n|assistant\nHeard!|\n") < prompt <= 128
        assert sum(dropped) == 61 - len(chat.messages)
        assert 2 < len(dropped) < 30 / 2  # not in each turn


def test_turn_after_a_full_answer_drops_the_oldest(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device) as model, model.session(max_seq=80) as session:
        chat = Chat(session)
        list(chat.send("one"))
        list(chat.send("two", 99, ignore_eos=True))
        assert chat.finish_reason == "context"
        assert session.position == 80
        assert contents(chat)[0] == "one"
        dropped: list[int] = []
        chat.on_drop = dropped.append
        assert "".join(chat.send("three")) == ANSWER
        assert dropped == [4]
        assert contents(chat) == ["three", ANSWER]


def test_turn_with_tools_goes_as_a_whole_and_the_last_never(
    device: metal.Device, tmp_path: Path
) -> None:
    path = write_talker(tmp_path / "talker.gguf", JSON_TEMPLATE)
    with Model.load(path, device) as model, model.session(max_seq=256) as session:
        call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
        dropped: list[int] = []
        chat = Chat(session, tools=[], on_drop=dropped.append)

        def told(text: str) -> dict[str, Any]:
            return {"allowed": says(model.tokenizer, text)}

        list(chat.send("one", **told(call)))
        chat.add_tool_result("x" * 40)
        list(chat.respond(**told("So.")))
        assert [m["role"] for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
        list(chat.send("two", **told(call)))
        chat.add_tool_result("y" * 40)
        assert dropped == []
        list(chat.respond(**told("So.")))
        assert dropped == [4]
        assert [m["content"] for m in chat.messages] == ["two", "", "y" * 40, "So."]
        # A turn that grows until nothing fits: it is never cut.
        list(chat.send("three", **told(call)))
        chat.add_tool_result("z" * 300)
        before, held = list(chat.messages), session.tokens
        with pytest.raises(SessionFullError, match="without the turns before the last do not fit"):
            chat.respond()
        assert chat.messages == before
        assert session.tokens == held
        assert dropped == [4]


def test_failed_call_brings_dropped_turns_back(device: metal.Device, tmp_path: Path) -> None:
    with load(tmp_path, device) as model, model.session(max_seq=80) as session:
        chat = Chat(session)
        list(chat.send("one"))
        before = list(chat.messages)

        def fail(*args: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            chat.send("a message that drops the first", progress=fail)
        assert chat.messages == before
        chat.on_drop = fail
        with pytest.raises(KeyboardInterrupt):
            chat.send("a message that drops the first")
        assert chat.messages == before
        chat.on_drop = None
        assert "".join(chat.send("a message that drops the first")) == ANSWER
        assert len(chat.messages) == 2


def test_prompt_of_just_the_session_leaves_no_room(device: metal.Device, tmp_path: Path) -> None:
    n = len("|user\na|\n|assistant\n")
    with load(tmp_path, device) as model:
        with model.session(max_seq=n) as session:
            with pytest.raises(SessionFullError, match=rf"{n} tokens .* an answer needs one"):
                Chat(session).send("a")
            assert session.position == 0
        with model.session(max_seq=n + 1) as session:
            assert "".join(Chat(session).send("a")) == "H"


ROLES = st.sampled_from(["system", "user", "assistant", "tool"])
HISTORIES = st.lists(st.tuples(ROLES, st.integers(0, 30)), min_size=1, max_size=20)


@given(history=HISTORIES, max_seq=st.integers(1, 120), max_tokens=st.integers(0, 200))
def test_what_is_left_fits_and_is_the_end_of_the_history(history, max_seq, max_tokens):
    messages = [{"role": role, "content": n, "i": i} for i, (role, n) in enumerate(history)]

    def encode(kept: Sequence[Message]) -> list[int]:
        return [0] * sum(message["content"] for message in kept)

    users = [m["i"] for m in messages if m["role"] == "user"]
    others = [m for m in messages if m["role"] != "system"]
    last_turn = users[-1] if users else (others[0]["i"] if others else 0)
    least = [m for m in messages if m["role"] == "system" or m["i"] >= last_turn]
    quarter = max(1, max_seq // 4)
    try:
        kept, ids, n_dropped = fit(messages, encode, max_seq, max_tokens)
    except SessionFullError:
        assert len(encode(least)) >= max_seq
        return
    assert ids == encode(kept)
    assert len(ids) < max_seq
    assert n_dropped == len(messages) - len(kept)
    assert [m for m in kept if m["role"] == "system"] == [
        m for m in messages if m["role"] == "system"
    ]
    rest = [m for m in kept if m["role"] != "system"]
    assert rest == others[len(others) - len(rest) :]
    assert all(m in kept for m in least)
    enough = max(1, min(max_tokens, quarter))
    most = max_seq - len(encode(least))  # room that can be made
    wanted = enough + quarter if most >= enough + quarter else enough
    fits = max_seq - len(encode(messages)) >= enough
    assert (n_dropped == 0) == (fits or len(least) == len(messages))
    if n_dropped:
        assert rest[0]["role"] == "user"
        assert max_seq - len(ids) >= wanted or len(kept) == len(least)
        # One turn more would still have been too much.
        at = max(i for i in [*users, others[0]["i"]] if i < rest[0]["i"])
        more = [m for m in messages if m["role"] == "system" or m["i"] >= at]
        assert max_seq - len(encode(more)) < wanted


def test_long_history_is_rendered_a_few_times() -> None:
    messages = [{"role": role, "content": ""} for _ in range(500) for role in ("user", "assistant")]
    calls: list[int] = []

    def encode(kept: Sequence[Message]) -> list[int]:
        calls.append(len(kept))
        return [0] * len(kept)

    kept, _, n_dropped = fit([*messages, {"role": "user", "content": ""}], encode, 400, 10)
    assert (len(kept), n_dropped) == (289, 712)
    assert len(calls) <= 12


def test_long_system_message_costs_no_more_turns_than_it_must() -> None:
    def encode(kept: Sequence[Message]) -> list[int]:
        return [0] * sum(message["content"] for message in kept)

    system = {"role": "system", "content": 560}
    turns = [{"role": role, "content": 20} for _ in range(7) for role in ("user", "assistant")]
    last = {"role": "user", "content": 20}
    kept, ids, n_dropped = fit([system, *turns, last], encode, 1000, 1024)
    # 250 are enough, and 500 cannot be had: 190 are left for messages of 20.
    assert (n_dropped, len(ids)) == (6, 560 + 9 * 20)
    assert kept == [system, *turns[6:], last]
    # Where not even enough can be had, all that may go goes.
    kept, ids, n_dropped = fit([{**system, "content": 900}, *turns, last], encode, 1000, 1024)
    assert (n_dropped, len(ids)) == (14, 920)


RESULT = "<tool_response>\n3\n</tool_response>"


@pytest.mark.parametrize(
    ("history", "begins"),
    [
        ([("user", RESULT)], [0]),
        ([("user", "a"), ("assistant", "b"), ("user", RESULT)], [0, 2]),
        ([("system", "a"), ("user", RESULT), ("user", RESULT)], [1, 2]),
        ([("user", "a"), ("call", ""), ("user", RESULT), ("user", RESULT)], [0]),
        ([("user", "a"), ("call", ""), ("tool", "3"), ("user", RESULT)], [0]),
        ([("user", "a"), ("call", ""), ("user", RESULT), ("assistant", "b"), ("user", RESULT)],
         [0, 4]),
        ([("user", "a"), ("call", ""), ("user", "b"), ("user", RESULT)], [0, 2, 3]),
        ([("user", "a"), ("assistant", "<tool_call>{}</tool_call>\n"), ("user", RESULT)], [0]),
    ],
)  # fmt: skip
def test_text_of_a_result_is_one_behind_calls_alone(history, begins):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]}
        if role == "call"
        else {"role": role, "content": content}
        for role, content in history
    ]
    assert openings(messages) == begins


def test_users_text_that_looks_like_a_result_is_a_turn(
    device: metal.Device, tmp_path: Path
) -> None:
    with load(tmp_path, device) as model, model.session() as session:
        chat = Chat(session)
        list(chat.send(RESULT))
        list(chat.send(RESULT))
        assert chat.undo()
        assert contents(chat) == [RESULT, ANSWER]
        assert chat.undo()
        assert not chat.undo()
