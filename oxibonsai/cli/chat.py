"""``oxibonsai chat``: a conversation in the terminal, over a pipe line by line, or one message."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TextIO

from oxibonsai.chat import Chat, ChatTemplate, ChatTemplateError
from oxibonsai.cli.conversation import Conversation
from oxibonsai.cli.inputs import read_file, read_input, without_last_newline
from oxibonsai.cli.options import add_model, add_nfc, add_session, load, room
from oxibonsai.cli.parsing import file_name, model_name
from oxibonsai.cli.sampling import add_sampling, sampling, tell_idle
from oxibonsai.cli.saving import check_place
from oxibonsai.cli.screen import Screen
from oxibonsai.cli.terminal import escaped
from oxibonsai.cli.toolfile import read_tools
from oxibonsai.model import Model, Session

__all__ = ["add_options", "run"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(
        parser,
        "a GGUF file of a model for chats; the README names some. Without it, the demo model, "
        "which has no chat template and needs --template",
    )
    parser.add_argument("--system", metavar="TEXT", help="a message that comes before all others")
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="TEXT",
        help='a message to answer, after which the command ends; repeatable; "-" reads standard '
        "input as one message",
    )
    parser.add_argument(
        "--template",
        type=file_name,
        metavar="FILE",
        help="a Jinja chat template to take, not the file's",
    )
    parser.add_argument(
        "--think",
        action=argparse.BooleanOptionalAction,
        help="tell the template (enable_thinking) whether the model should think before an answer",
    )
    parser.add_argument(
        "--hide-thinking", action="store_true", help="do not print what the model thinks"
    )
    parser.add_argument(
        "--tools",
        type=file_name,
        metavar="FILE",
        help="a JSON list of the functions' schemas that the model may call; each call is printed "
        'as a line of JSON; "-" reads standard input',
    )
    parser.add_argument(
        "--session",
        type=model_name,
        metavar="FILE",
        help="a saved conversation that goes on, and is saved after each answer; it need not exist",
    )
    add_nfc(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=1024, metavar="N", help="the most of an answer (1024)"
    )
    add_sampling(parser, temperature=0.7)
    add_session(parser)


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Run the command and return its exit status."""
    if [*args.message, str(args.tools)].count("-") > 1:
        raise ValueError(
            "standard input is read to its end once: give one --message - or --tools -"
        )
    messages = [without_last_newline(read_input()) if m == "-" else m for m in args.message]
    if not all(message.strip() for message in messages):
        raise ValueError("a --message is empty: give at least one character")
    if args.session is not None:
        check_place(args.session, read=True)
    tools = None if args.tools is None else read_tools(args.tools)
    source = None if args.template is None else read_file(args.template, "--template")
    with (
        load(args) as model,
        model.session(args.max_seq, args.kv_dtype, chunk=args.chunk) as session,
    ):
        screen = Screen(out)
        template = _template(args, model, source)
        options = sampling(args, model)
        session.check_options(args.max_tokens, n_best=args.logprobs or 0, **options)
        tell_idle(args, options)

        limit = room(session, args.max_seq)

        def dropped(n: int) -> None:
            screen.note(
                f"(the context is full: the {n} oldest message{'s were' if n > 1 else ' was'} "
                f"dropped; {limit})"
            )

        chat = _chat(args, session, template, dropped)
        chat.show_thinking = not args.hide_thinking
        if args.think is not None:
            chat.thinking = args.think
        if tools is not None:
            chat.tools = tools
        conversation = Conversation(
            chat,
            screen,
            options,
            max_tokens=args.max_tokens,
            limit=limit,
            file=args.session,
            n_best=args.logprobs,
        )
        if messages:
            conversation.tell_resumed()
            return conversation.answer_all(messages)
        name, device = escaped(model.name), escaped(model.device.name)
        screen.open(f"{name} on {device}; /help says what can be typed")
        conversation.tell_resumed()
        return conversation.converse()


def _template(args: argparse.Namespace, model: Model, source: str | None) -> ChatTemplate:
    """Return the template of the option or of the model."""
    if source is None and model.tokenizer.chat_template is None:
        raise ValueError(
            f"{model.name!r} ({model.path}) has no chat template: name a model for chats with "
            "--model FILE (the README lists some), or give a template with --template FILE; "
            "oxibonsai generate continues a text with this one"
        )
    try:
        return ChatTemplate.of(model, source=source)
    except ChatTemplateError as error:
        if source is None:
            raise
        line = getattr(error.__cause__, "lineno", None)
        place = f"{args.template}" if line is None else f"{args.template}, line {line}"
        raise ValueError(f"--template {place}: {error}") from None


def _chat(
    args: argparse.Namespace,
    session: Session,
    template: ChatTemplate,
    on_drop: Callable[[int], object],
) -> Chat:
    """Return a new conversation, or the saved one."""
    if args.session is None or not args.session.exists():
        return Chat(session, system=args.system, template=template, on_drop=on_drop)
    chat = Chat.load(args.session, session, template=template, on_drop=on_drop)
    if not chat.messages:
        begun = Chat(session, system=args.system, template=template, on_drop=on_drop)
        begun.tools, begun.documents = chat.tools, chat.documents
        begun.thinking, begun.variables = chat.thinking, chat.variables
        return begun
    first = chat.messages[0] if chat.messages else {}
    system = {"role": "system", "content": args.system}
    if args.system is not None and any(first.get(key) != system[key] for key in system):
        raise ValueError(
            f"--system: the conversation in {args.session} begins otherwise; leave --system out, "
            "or name another file"
        )
    return chat
