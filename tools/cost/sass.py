"""Instructions of a kernel's main loop, counted in NVIDIA's machine code.

`nvdisasm` prints the code; the loops are found in it, and of the heaviest the shortest way round is
counted: what the loop does for finite scales, without the paths by the definition, which are
longer. Each instruction belongs to the pipe that executes it.
"""

from __future__ import annotations

import heapq
import re
import subprocess
from collections import Counter
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

    def way(self, start: int, end: int) -> list[int] | None:
        """Return the shortest way from one instruction to another, within [start, end]."""
        best, queue = {start: 1}, [(1, start, [start])]
        while queue:
            length, at, path = heapq.heappop(queue)
            if at == end:
                return path
            for after in self.next_of(at):
                inside = start <= after <= end
                if inside and length + 1 < best.get(after, len(self.instructions) + 1):
                    best[after] = length + 1
                    heapq.heappush(queue, (length + 1, after, [*path, after]))
        return None

    def loops(self) -> list[list[int]]:
        """Return the shortest way round each loop, the longest first."""
        found = []
        for at in range(len(self.instructions)):
            for target in self.next_of(at):
                if target <= at:
                    path = self.way(target, at)
                    if path and len(path) > 1:
                        found.append(path)
        return sorted(found, key=len, reverse=True)

    def main_loop(self) -> list[Instruction]:
        """Return the longest way round a loop that has no other loop within it."""
        loops = self.loops()
        inner = [
            one
            for one in loops
            if not any(
                o is not one and one[0] <= o[0] and o[-1] <= one[-1] and len(o) > len(one) // 2
                for o in loops
            )
        ]
        if not inner:
            raise ValueError("the code has no loop")
        return [self.instructions[i] for i in inner[0]]


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
