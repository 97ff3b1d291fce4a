"""A conversation on a screen: messages, commands, answers and what is to be said of them."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from oxibonsai import metal
from oxibonsai.chat import Chat
from oxibonsai.chat.history import ConversationFullError
from oxibonsai.cli.commands import ALIASES, HELP, help_text
from oxibonsai.cli.options import fewest_tokens
from oxibonsai.cli.progress import Progress
from oxibonsai.cli.sampling import score_line
from oxibonsai.cli.saving import check_place, path_of
from oxibonsai.cli.screen import Screen
from oxibonsai.model import ScoredToken

__all__ = ["HELP", "Conversation"]

INTERRUPTED = 130


class _TooLong(ConversationFullError):
    """A message does not fit by its length alone; the number of its tokens is the least."""


class Conversation:
    """A chat on a screen.

    Parameters
    ----------
    chat : Chat
        The chat.
    screen : Screen
        The screen.
    options : dict
        For ``Chat.send``.
    max_tokens : int
        The most of an answer.
    limit : str
        How much the session holds, for people.
    file : Path, optional
        Where the chat is saved after each answer.
    n_best : int, optional
        How many of the most probable tokens are told with each; None tells nothing.
    """

    def __init__(
        self,
        chat: Chat,
        screen: Screen,
        options: dict[str, Any],
        *,
        max_tokens: int,
        limit: str,
        file: Path | None = None,
        n_best: int | None = None,
    ) -> None:
        self._chat = chat
        self._screen = screen
        self._options = options
        self._max_tokens = max_tokens
        self._limit = limit
        self._file = file
        self._n_best = n_best
        self._unanswered = False
        self._n_first = len(chat.messages)  # the system's, or those of a saved conversation

    def tell_resumed(self) -> None:
        """Say that a saved conversation goes on, and what it waits for."""
        n = len([m for m in self._chat.messages if m["role"] != "system"])
        if self._file is None or n == 0:
            return
        count = f"{n} message{'' if n == 1 else 's'}"
        self._screen.note(f"({self._file} goes on behind {count}; /history shows them)")
        for call in self._waiting()[:1]:
            shown = json.dumps(call, ensure_ascii=False)
            self._screen.note(f"(/result TEXT gives the result that the model waits for: {shown})")

    def answer_all(self, messages: list[str]) -> int:
        """Answer messages, one after the other, and return the exit status.

        Parameters
        ----------
        messages : list of str
            The messages.

        Returns
        -------
        int
            0, or 130 after Ctrl-C.

        Raises
        ------
        ValueError
            If one does not fit, or the template does not take it.
        """
        for i, message in enumerate(messages):
            try:
                finished = self._answer(self._sending(message))
            except ConversationFullError as error:
                which = "the --message" if len(messages) == 1 else f"--message {i + 1}"
                raise ValueError(self._too_long(which, error)) from None
            if not finished:
                return INTERRUPTED
        return 0

    def converse(self) -> int:
        """Read and answer until the input ends, and return the exit status.

        Returns
        -------
        int
            0; over a pipe 1 where a message was not answered.
        """
        while self._go_on():
            pass
        if len(self._chat.messages) > self._n_first or (self._file and self._file.exists()):
            self._keep()
        return 1 if self._unanswered and not self._screen.interactive else 0

    def _go_on(self) -> bool:
        """Take a turn, which Ctrl-C in a terminal ends; return whether others follow."""
        try:
            return self._take_turn()
        except KeyboardInterrupt:
            if not self._screen.interactive:
                raise
            self._screen.note("(Ctrl-D ends)")
            return True

    def _take_turn(self) -> bool:
        """Read a message or a command and do what it asks for; return whether others follow."""
        try:
            line = self._screen.read()
        except EOFError:
            return False
        except ValueError as error:
            self._leave_out(f"({error}: it was left out)")
            return True
        begun = line.lstrip()
        if begun.startswith("//"):
            self._try(self._sending(line.replace("/", "", 1)))
        elif begun.startswith("/"):
            name, _, rest = line.strip().partition(" ")
            return self._run_command(ALIASES.get(name, name), rest.strip())
        elif begun:
            self._try(self._sending(line))
        return True

    def _leave_out(self, text: str) -> None:
        """Tell why a message gets no answer: the conversation goes on."""
        self._unanswered = True
        self._screen.note(text)

    def _too_long(self, which: str, error: ConversationFullError) -> str:
        others = [m for m in self._chat.messages if m["role"] != "system"]
        without = ", also without the messages before" if others else ""
        least = "at least " if isinstance(error, _TooLong) else ""
        return (
            f"{which} was not answered: with what the template adds its {least}{error.n_tokens} "
            f"tokens do not fit the context of {error.max_seq}{without}; "
            f"give a shorter one; {self._limit}"
        )

    # Answers

    def _sending(self, text: str) -> Callable[..., Generator[str, None, None]]:
        def send(**options: Any) -> Generator[str, None, None]:
            session = self._chat.session
            fewest = fewest_tokens(session, text.strip())
            if fewest > session.max_seq:
                raise _TooLong(fewest, session.max_seq)
            return self._chat.send(text, self._max_tokens, **options)

        return send

    def _responding(self) -> Callable[..., Generator[str, None, None]]:
        return lambda **options: self._chat.respond(self._max_tokens, **options)

    def _try(
        self, begin: Callable[..., Generator[str, None, None]], *, result: bool = False
    ) -> None:
        """Answer, and tell what prevents it: the conversation goes on."""
        place = self._screen.place
        try:
            self._answer(begin)
        except ConversationFullError as error:
            if result:
                self._leave_out(
                    f"(the model cannot go on: with the result, its turn takes {error.n_tokens} "
                    f"tokens, and the context holds {error.max_seq}; /undo takes the turn back; "
                    f"{self._limit})"
                )
            else:
                self._leave_out(f"({self._too_long(place, error)})")
        except ValueError as error:  # such as a message that the template does not take
            self._leave_out(f"({place} was not answered: {error})")
        except MemoryError as error:
            if not self._screen.interactive:
                raise
            self._leave_out(f"({place} was not answered: out of memory: {error})")
        except metal.MetalGraphError as error:
            if not self._screen.interactive:
                raise
            self._leave_out(f"({place} was not answered: {error})")

    def _answer(self, begin: Callable[..., Generator[str, None, None]]) -> bool:
        """Show an answer and what belongs to it; return whether it came to its end."""
        chat, screen = self._chat, self._screen
        scores: list[ScoredToken] = []
        options = self._options
        if self._n_best is not None:
            options = {**options, "on_token": scores.append, "n_best": self._n_best}
        finished, begun = True, False
        progress = Progress()
        try:
            with closing(begin(progress=progress, **options)) as pieces:
                for piece in pieces:
                    begun = True
                    screen.piece(piece, thinking=chat.is_thinking)
            screen.piece("\n")
        except KeyboardInterrupt:
            finished = False
            progress.close()
            screen.piece("\n")
            screen.note("(stopped)")
        except (metal.MetalGraphError, MemoryError):
            if begun:
                screen.piece("\n")
            raise
        finally:
            progress.close()
        for call in chat.tool_calls if finished else ():
            screen.piece(json.dumps(call, ensure_ascii=False) + "\n")
        for scored in scores:
            screen.note(score_line(scored, chat.session.model.tokenizer))
        if finished and chat.finish_reason == "context":
            screen.note(f"(the context is full, and the answer ends here; {self._limit})")
        elif finished and chat.finish_reason == "length":
            screen.note(f"(the answer ends here because of --max-tokens {self._max_tokens})")
        self._keep()
        return finished

    def _keep(self) -> None:
        """Save the conversation, where it is to be saved."""
        if self._file is None:
            return
        try:
            self._chat.save(self._file)
        except OSError as error:
            if not self._screen.interactive:
                raise
            self._screen.note(f"(not saved: {error})")

    # Commands

    def _run_command(self, name: str, rest: str) -> bool:
        """Do what a command asks for; return whether others follow."""
        commands: dict[str, Callable[[], None]] = {
            "/reset": self._reset,
            "/undo": self._undo,
            "/history": self._show_history,
            "/help": self._help,
        }
        with_text: dict[str, Callable[[str], None]] = {
            "/result": self._give_result,
            "/save": self._save,
        }
        if name in with_text:
            with_text[name](rest)
        elif name in commands and not rest:
            commands[name]()
        elif name == "/exit" and not rest:
            return False
        else:
            known = [*commands, *with_text, "/exit"]
            self._screen.note(self._no_command(f"{name} {rest}".strip(), name, known))
        return True

    def _no_command(self, line: str, name: str, known: list[str]) -> str:
        if name in known:
            return f"{name} stands alone; /{name} and what follows is sent as a message"
        first = line.splitlines()[0]
        first = first if len(first) <= 60 else f"{first[:60]}..."
        alike = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {alike[0]}?" if alike else ""
        return (
            f"no command {first!r}; there are {', '.join(known[:-1])} and {known[-1]}{meant} "
            f"A message that begins with / is sent with one more: /{first.split()[0]}"
        ).replace(f"{known[-1]} A", f"{known[-1]}. A")

    def _help(self) -> None:
        self._screen.note(help_text(shutil.get_terminal_size().columns))

    def _reset(self) -> None:
        self._chat.reset()
        self._screen.note("the conversation is forgotten")
        self._keep()

    def _undo(self) -> None:
        undone = self._chat.undo()
        self._screen.note("undone" if undone else "there is nothing to undo")
        if undone:
            self._keep()

    def _show_history(self) -> None:
        for message in self._chat.messages:
            self._screen.note(f"{message['role']}: {_content(message)}")
            for call in message.get("tool_calls") or ():
                self._screen.note(f"  calls {json.dumps(call, ensure_ascii=False)}")

    def _waiting(self) -> list[dict[str, Any]]:
        """Return the calls of the last answer that no result was given for."""
        n_given = 0
        for message in reversed(self._chat.messages):
            if message["role"] != "tool":
                break
            n_given += 1
        # Not by their ids, which a saved conversation need not have: results come in order.
        return list(self._chat.tool_calls[n_given:])

    def _give_result(self, text: str) -> None:
        waiting = self._waiting()
        if not waiting:
            self._screen.note("the model waits for no result")
            return
        if not text:
            shown = json.dumps(waiting[0], ensure_ascii=False)
            self._screen.note(f"give the result of {shown}: /result TEXT")
            return
        call = waiting.pop(0)
        number = call.get("id")
        self._chat.add_tool_result(
            text,
            tool_call_id=number if isinstance(number, str) else None,
            name=call.get("function", call).get("name"),
        )
        if waiting:
            following = json.dumps(waiting[0], ensure_ascii=False)
            self._screen.note(f"the next result is for {following}")
        else:
            self._try(self._responding(), result=True)

    def _save(self, name: str) -> None:
        if not name:
            self._screen.note("name the file: /save FILE")
            return
        path = path_of(name)
        try:
            check_place(path, read=False)
            self._chat.save(path)
        except (OSError, ValueError) as error:
            self._screen.note(f"not saved: {error}")
        else:
            self._screen.note(f"saved in {name}")


def _content(message: Any) -> str:
    """Return the text of a message, also where it is a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") if isinstance(part, dict) else None for part in content]
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return json.dumps(content, ensure_ascii=False)
