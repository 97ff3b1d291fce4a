"""The Jinja environment of Hugging Face transformers, in which text knows where it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, generate_lorem_ipsum
from markupsafe import Markup, escape

from oxibonsai.chat import filters
from oxibonsai.chat.formats import formatted
from oxibonsai.chat.origins import Range, number
from oxibonsai.chat.printing import shown, to_json
from oxibonsai.chat.provenance import (
    LITERAL,
    UNKNOWN,
    Runs,
    Traced,
    common_origin,
    join,
    mark,
    plain,
    runs_of,
    settle,
    with_runs,
)

__all__ = ["compiled"]

_COUNTS: Final = ("depth", "depth0", "index", "index0", "length", "revindex", "revindex0")
"""What a loop counts, which says nothing of what it goes through."""


def compiled(source: str) -> Template:
    """Return a template; what it renders is `Traced`."""
    return _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    ).from_string(source)


class _Literals(dict[str, Traced]):
    """The texts of a template, each made when it is first used."""

    def __missing__(self, text: str) -> Traced:
        found = self[text] = mark(text, LITERAL)
        return found


class _Numbers(dict[str, Any]):
    """The numbers of a template, each made when it is first used."""

    def __init__(self, kind: Callable[[str], Any]) -> None:
        super().__init__()
        self._kind = kind

    def __missing__(self, written: str) -> Any:
        found = self[written] = number(self._kind(written), LITERAL)
        return found


class _CodeGenerator(CodeGenerator):
    """Writes texts of the template as literals, and puts texts together with their origins."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        """Write a constant."""
        self.write(_written(node.as_const(frame.eval_ctx)))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        """Write the text between the tags."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_TemplateData(node, frame)
        else:
            self.write(_written(node.data))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """Write the operator ``~``."""
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.chained((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Any) -> str:
        return _written("".join(map(str, group)))

    def _output_child_pre(
        self, node: nodes.Expr, frame: Frame, finalize: CodeGenerator._FinalizeInfo
    ) -> None:
        if frame.eval_ctx.volatile:
            self.write(
                "(environment.escaped if context.eval_ctx.autoescape else environment.shown)("
            )
        elif frame.eval_ctx.autoescape:
            self.write("environment.escaped(")
        else:
            self.write("environment.shown(")


def _written(value: Any) -> str:
    """Return the source of a constant."""
    if type(value) is str:
        return f"environment.literals[{value!r}]"
    if type(value) is list:
        return f"[{', '.join(map(_written, value))}]"
    if type(value) is tuple:
        return f"({''.join(_written(item) + ', ' for item in value)})"
    if type(value) is dict:
        return f"{{{', '.join(f'{_written(k)}: {_written(v)}' for k, v in value.items())}}}"
    if type(value) is int:
        return f"environment.integers['{value:x}']"
    if type(value) is float:
        return f"environment.floats[{str(value)!r}]"
    return repr(value)


class _TracedMarkup(Markup):
    """Text that is escaped for HTML already, with origins while it is whole."""

    __slots__ = ("runs",)
    runs: Runs

    def __new__(cls, base: Any = "", encoding: str | None = None, errors: str = "strict") -> Any:
        new = super().__new__(cls, base, encoding, errors)
        same = isinstance(base, str) and len(base) == len(new)
        new.runs = runs_of(base) if same else runs_of(plain(new))
        return new

    def __str__(self) -> str:
        return with_runs(plain(self), self.runs)

    def __repr__(self) -> str:
        return repr(Markup(plain(self)))

    def __add__(self, other: Any) -> Any:
        if not (isinstance(other, str) or hasattr(other, "__html__")):
            return NotImplemented
        return _TracedMarkup(join([str(self), _html(other)]))

    def __radd__(self, other: Any) -> Any:
        if not (isinstance(other, str) or hasattr(other, "__html__")):
            return NotImplemented
        return _TracedMarkup(join([_html(other), str(self)]))


def _tracked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the texts that a filter makes the origin of the texts that it was given."""
    # What Jinja passes first holds all of the template.
    skipped = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

    @functools.wraps(function)
    def call(*args: Any, **kw: Any) -> Any:
        result = function(*args, **kw)
        is_number = type(result) is int or type(result) is float
        if not isinstance(result, str) and not is_number:
            return result
        if is_number or UNKNOWN in {origin for _, origin in runs_of(result)}:
            # Names that were spread out of a mapping are text as well.
            names = [name for name in kw if isinstance(name, Traced)]
            given = [*args[skipped:], *kw.values(), *names]
            given = [v for v in given if not isinstance(v, Undefined)]
            if is_number:
                return number(result, common_origin(given))
            text = settle(with_runs(plain(result), runs_of(result)), common_origin(given))
            return _TracedMarkup(text) if isinstance(result, Markup) else text
        return result

    return call


def _exact(name: str) -> Callable[..., Any]:
    """Return a method of escaped text that keeps every origin, where it does what str's does."""
    method, escaping = getattr(Traced, name), getattr(Markup, name)

    def call(self: _TracedMarkup, *args: Any, **kw: Any) -> Any:
        text = escaping(self, *args, **kw)
        found = method(str(self), *args, **kw)
        if found != text:  # releases of markupsafe differ in what they escape
            found = mark(plain(text), UNKNOWN)
        return _TracedMarkup(found) if isinstance(text, Markup) else found

    return call


for _name in (
    "__getitem__",
    "__mul__",
    "__rmul__",
    "capitalize",
    "casefold",
    "expandtabs",
    "lower",
    "lstrip",
    "removeprefix",
    "removesuffix",
    "rstrip",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
):
    setattr(_TracedMarkup, _name, _exact(_name))
for _name in ("__mod__", "center", "join", "ljust", "replace", "rjust"):
    setattr(_TracedMarkup, _name, _tracked(getattr(Markup, _name)))


def _safe(value: Any) -> Any:
    """Return text that counts as escaped."""
    return _TracedMarkup(value)


def _escape(value: Any) -> Any:
    """Return text escaped for HTML, a character at a time."""
    if type(value) is not Traced:
        return escape(value)
    pieces, place = [], 0
    for length, origin in value.runs:
        pieces.append(mark(plain(escape(plain(value)[place : place + length])), origin))
        place += length
    return _TracedMarkup(join(pieces))


def _html(value: Any) -> str:
    """Return the text that a value has in HTML."""
    return str(value if isinstance(value, _TracedMarkup) else _escape(value))


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    concat = staticmethod(join)
    shown = staticmethod(shown)
    escaped = staticmethod(_tracked(_escape))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.literals = _Literals()
        self.integers = _Numbers(lambda written: int(written, 16))
        self.floats = _Numbers(float)
        jinjas_join: Callable[..., Any] = self.filters["join"]
        nothing = mark("", LITERAL)

        # Its own separator would be text of nobody.
        @functools.wraps(jinjas_join)
        def join_filter(eval_ctx: Any, value: Any, d: Any = nothing, attribute: Any = None) -> Any:
            if eval_ctx.autoescape:
                return jinjas_join(eval_ctx, value, d, attribute)
            if attribute is not None:
                value = map(make_attrgetter(self, attribute), value)
            return shown(d).join(map(shown, value))

        self.filters |= {"join": join_filter, "string": filters.string, "title": filters.title}
        self.filters |= {"indent": filters.indent, "wordwrap": filters.wordwrap}
        self.filters |= {"e": _escape, "escape": _escape, "safe": _safe}
        self.filters = {name: _tracked(function) for name, function in self.filters.items()}
        self.filters |= dict.fromkeys(("count", "length"), filters.length)
        self.filters |= {"tojson": to_json, "wordcount": filters.wordcount}
        jinjas_range: Any = self.globals["range"]

        @functools.wraps(jinjas_range)
        def range_(*args: Any) -> Range:
            return Range.of(jinjas_range(*args), *args)

        self.globals |= {
            "dict": _TemplateDict(),
            "lipsum": _tracked(generate_lorem_ipsum),
            "namespace": _TemplateNamespace,
            "range": range_,
            "raise_exception": _raise_exception,
            "strftime_now": _tracked(_strftime_now),
        }

    def chained(self, values: Sequence[Any]) -> Traced:
        """Return what the operator ``~`` gives."""
        return join(map(shown, values))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an element; text has the attributes of text and no others."""
        if isinstance(obj, str) and argument == "runs":
            return self.undefined(obj=plain(obj), name="runs")
        if isinstance(obj, LoopContext):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute; text has the attributes of text and no others."""
        if isinstance(obj, str) and attribute == "runs":
            return self.undefined(obj=plain(obj), name="runs")
        found = super().getattr(obj, attribute)
        counts = isinstance(obj, LoopContext) and attribute in _COUNTS
        return number(found, LITERAL) if counts else found

    def wrap_str_format(self, value: Any) -> Any:
        """Return what formats as the sandbox does, for a method of text that formats."""
        inner = super().wrap_str_format(value)
        template = getattr(value, "__self__", None)
        if inner is None or type(template) is not Traced:
            return inner

        @functools.wraps(inner)
        def call(*args: Any, **kw: Any) -> Traced:
            text = plain(inner(*args, **kw))  # refuses what is no call of these methods
            by_name: Mapping[str, Any] = kw
            if value.__name__ == "format_map":
                by_name, args = args[0], ()
            found = formatted(self, template, args, by_name)
            return found if found == text else mark(text, UNKNOWN)

        return call


class _Generation(Extension):
    """``{% generation %}``, which marks what the model said: its body is all that counts."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Any) -> Any:
        """Return the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _TemplateDict:
    """The function ``dict``, without what the class could lead to."""

    def __call__(self, *args: Any, **kw: Any) -> dict[Any, Any]:
        # Names that the template wrote are its text; those of a mapping carry what they are.
        named = {k if isinstance(k, Traced) else mark(k, LITERAL): v for k, v in kw.items()}
        return dict(*args, **{}) | named

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return what dict.fromkeys does."""
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kw: Any) -> None:
        self, *rest = args  # `self` may be one of the names
        values = dict(*rest, **kw)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"{name!r} begins with an underscore: a chat template cannot store it in a namespace"
        )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
