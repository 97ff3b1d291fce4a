"""Chat templates in the style of well-known models, and a vocabulary with their tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from qwen35_chat import QWEN35
from tiny_models import byte_vocabulary

from oxibonsai.model.tokenizer import Tokenizer

CONTROL: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|end|>",
    "<|end|><|end|>",  # begins with another
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
USER_DEFINED: Final = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# So that plain text beside and within the names of tokens makes tokens across their ends.
MERGES: Final = (
    *("< |", "| >", "e n", "en d", "i m", "im _", "s t", "h e", "> >", "< <|", "|> <", "> <"),
    *("\u0120 t", "\u0120t he", "\u010a \u010a", "[ I", "t >", "u s", "us e", "use r", "> a"),
)


def vocabulary() -> dict[str, Any]:
    """Return the metadata of a tokenizer with all of them."""
    found = byte_vocabulary()
    tokens: list[str] = found["tokenizer.ggml.tokens"][:256]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    n_plain = len(tokens)
    found["tokenizer.ggml.tokens"] = [*tokens, *CONTROL, *USER_DEFINED]
    found["tokenizer.ggml.token_type"] = (
        [1] * n_plain + [3] * len(CONTROL) + [4] * len(USER_DEFINED)
    )
    found["tokenizer.ggml.merges"] = list(MERGES)
    found["tokenizer.ggml.eos_token_id"] = n_plain
    return found


def tokenizer(metadata: dict[str, Any] | None = None) -> Tokenizer:
    """Return the tokenizer of a vocabulary."""
    found = vocabulary() if metadata is None else metadata
    return Tokenizer(
        found["tokenizer.ggml.tokens"],
        found["tokenizer.ggml.merges"],
        pre="qwen2",
        token_types=found["tokenizer.ggml.token_type"],
    )


def byte_tokenizer(control: Iterable[str], user_defined: Iterable[str] = ()) -> Tokenizer:
    """Return a tokenizer of bytes and some special tokens behind them."""
    control, user_defined = list(control), list(user_defined)
    plain = byte_vocabulary()["tokenizer.ggml.tokens"][:256]
    return Tokenizer(
        [*plain, *control, *user_defined],
        [],
        pre="qwen2",
        token_types=[1] * 256 + [3] * len(control) + [4] * len(user_defined),
    )


# ChatML with tools and thinking: looks at contents, walks backwards, cuts reasoning out of answers.
QWEN = r"""
{%- macro opened(role) %}{{ '<|im_start|>' + role + '\n' }}{% endmacro %}
{%- if tools %}
    {{- opened('system') }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content ~ '\n\n' }}{% endif %}
    {{- '# Tools\n\nThe functions are within <tools></tools>:\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\n</tools>\n\nCall them within <tool_call></tool_call>:\n<tool_call>\n' }}
    {{- '{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- opened('system') + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(seeking=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- set result = message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>') %}
    {%- if ns.seeking and message.role == 'user' and not result %}
        {%- set ns.seeking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n') %}
            {%- set reasoning = reasoning.split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- opened(message.role) }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if content or not loop.first %}{{- '\n' }}{% endif %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}
                {{- call.arguments }}
            {%- else %}
                {{- call.arguments | tojson }}
            {%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role != 'system' or not loop.first %}
        {{- opened(message.role) + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- opened('assistant') }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""

# Headers around roles, trimmed contents, documents, JSON with indents in a user's turn.
LLAMA = r"""
{{- bos_token }}
{%- if documents is not none %}
    {{- '<|start_header_id|>documents<|end_header_id|>\n\n' }}
    {%- for document in documents %}
        {{- document.title | upper ~ ': ' ~ document.text | trim ~ '\n' }}
    {%- endfor %}
    {{- '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {{- message.content | tojson }}{{- '<|eot_id|>' }}
    {%- endif %}
    {%- if loop.first and tools is not none %}
        {%- for tool in tools %}{{- tool | tojson(indent=4) }}{{- '\n\n' }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# The system's text goes before the last user's; names and lists through join and replace.
MISTRAL = r"""
{{- bos_token }}
{%- set system = messages | selectattr('role', 'equalto', 'system')
    | map(attribute='content') | join('\n\n') %}
{%- for message in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' }}
        {%- if loop.last and system %}{{- system + '\n\n' }}{% endif %}
        {{- message.content.replace('\t', ' ') + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {{- call.function | tojson }}{{- ', ' if not loop.last else ']' }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": %s}[/TOOL_RESULTS]' % (message.content | tojson) }}
    {%- else %}
        {{- ' {}{}'.format(message.content, eos_token) }}
    {%- endif %}
{%- endfor %}"""

# Other names for roles; a block of set; contents as they are.
GEMMA = r"""
{{- bos_token }}
{%- set prefix = '' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix %}{{ messages[0]['content'] }}{{ '\n\n' }}{% endset %}
{%- endif %}
{%- for message in (messages[1:] if prefix else messages) %}
    {%- if message['role'] == 'assistant' %}{% set role = 'model' %}
    {%- else %}{% set role = message['role'] %}{% endif %}
    {{- ['<start_of_turn>', role, '\n', prefix if loop.first else ''] | join }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""

# Names of tokens are put together from roles.
PHI = r"""
{%- for message in messages %}
    {%- if message['role'] == 'system' and tools is not none %}
        {{- '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' }}
        {{- tools | tojson }}{{- '<|end|>' }}
    {%- else %}
        {{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% else %}{{- eos_token }}{% endif %}"""

# One system text from all; reasoning is cut off; a namespace collects.
DEEPSEEK = r"""
{%- set ns = namespace(system='', first=true) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- if not ns.first %}{% set ns.system = ns.system + '\n\n' %}{% endif %}
        {%- set ns.system = ns.system + message['content'] %}
        {%- set ns.first = false %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{- ns.system }}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if message['role'] == 'user' %}
        {{- '<BARUserBAR>' + content }}
    {%- elif message['role'] == 'assistant' %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- '<BARAssistantBAR>' + content + '<BARendLOWofLOWsentenceBAR>' }}
    {%- elif message['role'] == 'tool' %}
        {{- '```json\n' ~ {'result': content, 'of': message.get('name', 'a tool')} | tojson }}
        {{- '\n```' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<BARAssistantBAR><think>\n' }}{% endif %}""".replace(
    "BAR", "\uff5c"
).replace("LOW", "\u2581")

TEMPLATES: Final = {
    "qwen": QWEN,
    "qwen35": QWEN35,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi": PHI,
    "deepseek": DEEPSEEK,
}
SPECIAL_TOKENS: Final = {
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen35": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "phi": {"eos_token": "<|endoftext|>"},
    "deepseek": {
        "bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>",
    },
}
