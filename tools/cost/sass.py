"""Instructions of a kernel's main loop, counted in NVIDIA's machine code.

`nvdisasm` prints the code; the loops are found in it, and of the heaviest the shortest way round
that enters no other loop is counted: what the loop does for finite scales, without the paths by the
definition, which are longer or loops. Each instruction belongs to the pipe that executes it.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_ENDS = ("EXIT", "RET", "BRX", "JMX")

PIPES = {
    "fma": ("FADD", "FMUL", "FFMA"),
    "half": ("HADD2", "HFMA2", "HMUL2", "HSETP2", "HMNMX2"),
    "imad": ("IMAD", "IDP"),
    "convert": ("F2F", "F2I", "I2F", "FRND", "F2FP"),
    "sfu": ("MUFU",),
    "shared": ("LDS", "STS", "ATOMS", "LDSM"),
    "shuffle": ("SHFL", "R2UR", "REDUX", "VOTE"),
    "memory": ("LDG", "STG", "LD", "ST", "LDC", "LDL", "STL", "LDGSTS", "RED", "ATOMG"),
    "mma": ("HMMA", "IMMA", "QMMA"),
    "control": (
        *("BRA", "BSSY", "BSYNC", "WARPSYNC", "NOP", "BAR", "EXIT", "CALL", "RET", "YIELD"),
        *("BREAK", "DEPBAR", "LDGDEPBAR", "ACQBULK", "NANOSLEEP", "MEMBAR", "ERRBAR", "CCTL"),
    ),
}
"""Instructions of each pipe; those of no other are "alu"."""
_PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names}
# Of "fma" by name, but executed as integers: a packed conversion, and the addition of a half.
_BY_TEXT = {"HADD2.F32": "half", "I2FP": "alu"}


def pipe_of(opcode: str) -> str:
    """Return the pipe that executes an instruction, such as "LOP3.LUT"."""
    if opcode.startswith("U"):
        return "uniform"
    for start, pipe in _BY_TEXT.items():
        if opcode.startswith(start):
            return pipe
    return _PIPE_OF.get(opcode.split(".")[0], "alu")


def shared_cycles(opcode: str) -> int:
    """Return the cycles of threadgroup memory that 32 lanes take without a bank conflict.

    Wide loads of the shaders read what several lanes share, 128 bytes in all; wide stores do not.
    """
    if not opcode.startswith("STS"):
        return 1
    return 4 if ".128" in opcode else 2 if ".64" in opcode else 1


@dataclass(frozen=True)
class Instruction:
    """One instruction: its place, whether it has a predicate, its name, and where it may go."""

    address: int
    predicated: bool
    opcode: str
    targets: tuple[str, ...] = ()

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may follow."""
        if self.predicated:
            return True
        name = self.opcode.split(".")[0]
        if name == "BRA":
            return self.opcode.startswith("BRA.DIV")
        return name not in _ENDS


@dataclass
class Code:
    """The instructions of a kernel, and where its labels stand."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Code:
        """Return the code that `nvdisasm -c` has printed for one kernel."""
        code = cls()
        for line in text.splitlines():
            label = _LABEL.match(line)
            if label:
                code.labels[label[1]] = len(code.instructions)
                continue
            found = _LINE.search(line)
            if found:
                jumps = found[3].split(".")[0] == "BRA"
                targets = tuple(_TARGET.findall(found[4])) if jumps else ()
                code.instructions.append(
                    Instruction(int(found[1], 16), found[2] is not None, found[3], targets)
                )
        return code

    def next_of(self, at: int) -> list[int]:
        """Return the places that may follow an instruction."""
        one = self.instructions[at]
        after = [self.labels[t] for t in one.targets if t in self.labels]
        if one.falls_through and at + 1 < len(self.instructions):
            after.append(at + 1)
        return after

    def back_edges(self) -> list[tuple[int, int]]:
        """Return first and last instruction of each loop."""
        return [
            (target, at)
            for at in range(len(self.instructions))
            for target in self.next_of(at)
            if target < at
        ]

    def way_round(self, first: int, last: int) -> list[int] | None:
        """Return the shortest way round a loop that enters no loop within it, if there is one."""
        inner = [
            range(a, b + 1)
            for a, b in self.back_edges()
            if first <= a and b <= last and (a, b) != (first, last)
        ]
        queue = deque([first])
        before = {first: first}
        while queue:
            at = queue.popleft()
            if at == last:
                path = [last]
                while path[-1] != first:
                    path.append(before[path[-1]])
                return path[::-1]
            for after in self.next_of(at):
                inside = first < after <= last and not any(after in one for one in inner)
                if inside and after not in before:
                    before[after] = at
                    queue.append(after)
        return None

    def main_loop(self, pipe: str) -> list[Instruction]:
        """Return the longest such way round a loop on which a pipe is used."""
        ways = [self.way_round(first, last) for first, last in self.back_edges()]
        loops = [[self.instructions[at] for at in way] for way in ways if way]
        loops = [one for one in loops if any(pipe_of(i.opcode) == pipe for i in one)]
        if not loops:
            raise ValueError(f"the code has no loop with the pipe {pipe!r}")
        return max(loops, key=len)


def count(instructions: list[Instruction]) -> dict[str, int]:
    """Return how many instructions each pipe has, and the cycles of threadgroup memory."""
    pipes = Counter(pipe_of(one.opcode) for one in instructions)
    pipes["total"] = len(instructions)
    pipes["shared_cycles"] = sum(
        shared_cycles(one.opcode) for one in instructions if pipe_of(one.opcode) == "shared"
    )
    return dict(sorted(pipes.items()))


def disassemble(cubin: Path, nvdisasm: str) -> Code:
    """Return the code of a cubin with one kernel."""
    done = subprocess.run([nvdisasm, "-c", cubin], capture_output=True, text=True, check=True)
    return Code.parse(done.stdout)
