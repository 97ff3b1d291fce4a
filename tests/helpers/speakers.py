"""A model for the command chat that thinks, answers or calls a tool, as its prompt ends."""

from __future__ import annotations

from pathlib import Path

from tiny_models import CHATML, IM_END, THINK, chain, chat_vocabulary, write_chain

CALL = '{"name": "add", "arguments": {"a": 1}}'
# The answer after this byte; each byte may come once in all of them.
THOUGHT, SPOKEN, PLAIN = "hm", "OK!", "No."
ASKS = (
    "{%- if messages[-1].role == 'tool' %}{{ '\\r' }}"
    "{%- elif tools %}{{ '\\f' }}"
    "{%- elif enable_thinking is defined and not enable_thinking %}{{ '\\t' }}"
    "{%- else %}{{ '\\v' }}{% endif %}"
)
TEMPLATE = CHATML.replace("assistant\\n'", "assistant'").replace(
    "{{ '<|im_start|>assistant' }}", "{{ '<|im_start|>assistant' }}" + ASKS
)


def write_speaker(path: Path, *, context: int = 2048) -> Path:
    """Write the model: it thinks THOUGHT and says SPOKEN, or without thinking says PLAIN.

    With tools it makes CALL, and to the result of one it says "3".
    """
    vocabulary = chat_vocabulary(TEMPLATE)
    first = len(vocabulary["tokenizer.ggml.tokens"])
    vocabulary["tokenizer.ggml.tokens"] += ["</think>", "<tool_call>", "</tool_call>", CALL]
    vocabulary["tokenizer.ggml.token_type"] += [4] * 4
    end_think, call, end_call, called = range(first, first + 4)
    follows = {
        ord("\v"): THINK,
        THINK: ord("h"),
        **chain(THOUGHT),
        ord(THOUGHT[-1]): end_think,
        end_think: ord("O"),
        **chain(SPOKEN),
        ord(SPOKEN[-1]): IM_END,
        **chain("\t" + PLAIN),
        ord(PLAIN[-1]): IM_END,
        ord("\f"): call,
        call: called,
        called: end_call,
        end_call: IM_END,
        **chain("\r3"),
        ord("3"): IM_END,
    }
    return write_chain(path, follows, context=context, vocabulary=vocabulary)
