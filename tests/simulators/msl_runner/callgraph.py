"""Who calls whom, read from LLVM's text form: recursion, threadgroup memory of each kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_DEFINE = re.compile(r'define .*?@"?([\w.$]+)"?\(.*?(?:!dbg !(\d+))?[ {]*$')
_CALL = re.compile(r'\bcall [^@]*@"?([\w.$]+)"?\(')
_VARIABLE = re.compile(r"@msl_rt_variable\(i32 [^,\d]*(\d+), i64 [^,\d]*(\d+),")
_PROGRAM = re.compile(
    r"!(\d+) = distinct !DISubprogram\(name: \"([^\"]*)\".*?file: !(\d+), line: (\d+)"
)
_FILE = re.compile(r'!(\d+) = !DIFile\(filename: "([^"]*)"')
LIMIT = 32768  # bytes of threadgroup memory


@dataclass
class _Function:
    debug: str | None
    calls: set[str] = field(default_factory=set)
    variables: dict[int, int] = field(default_factory=dict)  # number: bytes


@dataclass
class CallGraph:
    """The functions of a compiled program."""

    functions: dict[str, _Function]
    places: dict[str, tuple[str, str]]  # debug number: (name, FILE:LINE)

    def reachable(self, name: str) -> set[str]:
        """Give what a function calls, directly or not; itself only where it is recursive."""
        seen: set[str] = set()
        todo = list(self.functions[name].calls)
        while todo:
            callee = todo.pop()
            if callee in self.functions and callee not in seen:
                seen.add(callee)
                todo += self.functions[callee].calls
        return seen

    def group_bytes(self, entry: str) -> int:
        """Add up the threadgroup variables of a kernel, each at a multiple of 16 bytes."""
        variables: dict[int, int] = {}
        for name in {entry} | self.reachable(entry):
            variables.update(self.functions[name].variables)
        return sum(-(-size // 16) * 16 for size in variables.values())

    def recursion_errors(self) -> list[str]:
        """Report each function that calls itself, directly or not."""
        errors = []
        for name, function in self.functions.items():
            if name in self.reachable(name):
                called, place = self.places.get(function.debug or "", (name, "<unknown>:0"))
                errors.append(f"{place}: error: '{called}' is recursive")
        return errors


def read_call_graph(llvm: str) -> CallGraph:
    """Read the text form of a module."""
    functions: dict[str, _Function] = {}
    current: _Function | None = None
    files = dict(_FILE.findall(llvm))
    places = {
        number: (name, f"{files.get(file, '?')}:{line}")
        for number, name, file, line in _PROGRAM.findall(llvm)
    }
    for line in llvm.splitlines():
        define = _DEFINE.match(line)
        if define:
            current = functions.setdefault(define[1], _Function(define[2]))
        elif line == "}":
            current = None
        elif current:
            current.calls.update(_CALL.findall(line))
            for number, size in _VARIABLE.findall(line):
                current.variables[int(number)] = int(size)
    return CallGraph(functions, places)
