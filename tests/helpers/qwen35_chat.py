"""A chat template in the form of Qwen3.5's: calls as tags, thinking that the prompt opens.

The tools come before the system's own text; contents are trimmed, and may be lists of parts; what a
turn thought before the user's last question is left out.
"""

from __future__ import annotations

from typing import Final

__all__ = ["QWEN35"]

QWEN35: Final = r"""
{%- macro text_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if 'text' in part %}{{- part.text }}
            {%- else %}{{- raise_exception('A part that is no text.') }}{% endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\n# Tools\n\nThese functions may be called:\n\n<tools>' }}
    {%- for tool in tools %}
        {{- '\n' }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\n</tools>\n\nA call has this form, with nothing behind it:\n\n<tool_call>\n' }}
    {{- '<function=a_name>\n<parameter=a_key>\nits value\n</parameter>\n</function>\n' }}
    {{- '</tool_call>' }}
    {%- if messages[0].role == 'system' %}
        {%- set content = text_of(messages[0].content) | trim %}
        {%- if content %}{{- '\n\n' + content }}{% endif %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + text_of(messages[0].content) | trim + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(seeking=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.seeking and message.role == 'user' %}
        {%- set content = text_of(message.content) | trim %}
        {%- if not (content.startswith('<tool_response>')
            and content.endswith('</tool_response>')) %}
            {%- set ns.seeking = false %}
            {%- set ns.last = (messages | length - 1) - loop.index0 %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = text_of(message.content) | trim %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n') %}
            {%- set reasoning = reasoning.split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\n' + reasoning | trim + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {%- if not loop.first %}{{- '\n' }}{% elif content | trim %}{{- '\n\n' }}{% endif %}
            {{- '<tool_call>\n<function=' + call.name + '>\n' }}
            {%- if call.arguments is mapping %}
                {%- for key, value in call.arguments | items %}
                    {{- '<parameter=' + key + '>\n' }}
                    {%- if value is mapping or (value is sequence and value is not string) %}
                        {{- value | tojson }}
                    {%- else %}
                        {{- value | string }}
                    {%- endif %}
                    {{- '\n</parameter>\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if not loop.previtem or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif message.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n<think>\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
