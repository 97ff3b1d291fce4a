"""Counts of the kernels' compiled code, taken anew: NVRTC compiles, nvdisasm prints."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost import sass

ROOT = Path(__file__).resolve().parent.parent.parent
STORE = Path(__file__).with_name("counted.json")
ARCHITECTURE = 90


@dataclass(frozen=True)
class Kernel:
    """A kernel as it is compiled for a shape: its name, and the function constants in order."""

    family: str
    name: str
    constants: tuple[int, ...]

    @property
    def pipe(self) -> str:
        """A pipe that the main loop uses, and what is left for rare rows does not."""
        return {
            "gemv": "shared",
            "swiglu": "shared",
            "shuffle": "shuffle",
            "select": "fma",
            "gemm": "shuffle",
            "recurrent": "fma",
        }.get(self.family, "mma")

    @property
    def key(self) -> str:
        """The name in the store."""
        return " ".join([self.name, *map(str, self.constants)])


FORMS = {"gemv": "", "shuffle": "_shuffle", "select": "_select"}
"""Files of the GEMVs in shaders/, and the ends of their kernels' names."""
SLICES_TILES = (1, 2, 3, 4, 6)
"""Tiles of 16 rows of a SIMD-group in the slices; a SwiGLU has twice as many (shaders/slices.h)."""
HALF_SHAPES = (444, 442, 242)
"""Tiles, eights of vectors and SIMD-groups over the rows (shaders/gemm_half.h)."""
CODED = ("q1_g128", "q2_g128", "q2_g64")
KERNELS = [
    *(
        Kernel(family, f"gemv_{fmt}{form}{end}", (rows,))
        for family, end in FORMS.items()
        for fmt in CODED
        for form in ("", "_norm")
        for rows in (1, 2, 4)
    ),
    *(
        Kernel("swiglu" if not end else family, f"fused_gate_up_swiglu_{fmt}_norm{end}", (rows,))
        for family, end in FORMS.items()
        for fmt in CODED
        for rows in (1, 2)
    ),
    *(Kernel("gemm", f"gemm_{fmt}", (eights,)) for fmt in CODED for eights in (1, 2, 4)),
    *(
        Kernel("gemm_halves", f"gemm_{fmt}_halves", (10 * tiles + wide, 1))
        for fmt in CODED
        for tiles in (2, 4)
        for wide in (1, 2)
    ),
    *(
        Kernel("slices", f"gemv_{fmt}{form}_slices", (tiles,))
        for fmt in CODED
        for form in ("", "_norm")
        for tiles in SLICES_TILES
    ),
    *(
        Kernel("slices", f"fused_gate_up_swiglu_{fmt}_norm_slices", (tiles,))
        for fmt in CODED
        for tiles in SLICES_TILES[:3]
    ),
    *(Kernel("gemm_half", f"gemm_{fmt}_half", (n,)) for fmt in CODED for n in HALF_SHAPES),
    Kernel("attention_prompt", "attention_f16_prompt", (128,)),
    Kernel("attention_step", "attention_f16_step", (128, 16)),
    Kernel("recurrent", "delta_rule", (128,)),
]


PROMPT, STEP, DELTA = KERNELS[-3:]
"""Attention on matrix units, of a prompt and of one token; a token of the delta rule."""


class Compiler:
    """NVRTC, by the helper of the tests that calls it as the driver does."""

    def __init__(self) -> None:
        sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "helpers"), str(ROOT)]
        shaders = importlib.import_module("embed_shaders")
        self._nvrtc = importlib.import_module("nvrtc")
        self._prelude: dict[str, str] | str = shaders.cuda_prelude()
        families = shaders.cuda_families()
        self._sources: dict[str, str] = {f.name: f.source for f in families}
        self.kernels: set[str] = {name for f in families for name in f.functions}
        self.version: str = ".".join(map(str, self._nvrtc.version()))

    def cubin(self, kernel: Kernel) -> tuple[bytes, str]:
        """Return the machine code of one kernel, and what the assembler says of its resources."""
        constants = [f"-DMSL_CONSTANT_{i}={value}u" for i, value in enumerate(kernel.constants)]
        options = ["--ptxas-options=-v", "-DMSL_ONE", f"-DMSL_ONE_{kernel.name}", *constants]
        compile_cubin: Callable[..., tuple[bytes, str]] = self._nvrtc.compile_cubin
        return compile_cubin(self._sources[kernel.family], self._prelude, ARCHITECTURE, options)


def resources(log: str) -> tuple[int, int]:
    """Return the registers of a thread and the bytes of threadgroup memory, from a log."""
    registers = re.search(r"Used (\d+) registers", log)
    memory = re.search(r"(\d+) bytes smem", log)
    assert registers, log
    return int(registers[1]), int(memory[1]) if memory else 0


def length_of(cubin: bytes) -> int:
    """Return the number of instructions in a cubin with one kernel: its section of code."""

    def word(at: int, size: int) -> int:
        return int.from_bytes(cubin[at : at + size], "little")

    first, each, n = word(0x28, 8), word(0x3A, 2), word(0x3C, 2)
    names = word(first + word(0x3E, 2) * each + 0x18, 8)
    total = 0
    for section in range(first, first + n * each, each):
        at = names + word(section, 4)
        if cubin[at : cubin.index(b"\0", at)].startswith(b".text."):
            total += word(section + 0x20, 8) // 16
    return total


def counted(compiler: Compiler, kernel: Kernel, nvdisasm: str) -> dict[str, Any]:
    """Return what the store holds of a kernel."""
    cubin, log = compiler.cubin(kernel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        code = sass.disassemble(path, nvdisasm)
    registers, memory = resources(log)
    return {
        "registers": registers,
        "group_memory": memory,
        "length": length_of(cubin),
        "pipes": sass.count(code.main_loop(kernel.pipe)),
    }


def update(nvdisasm: str | None = None) -> int:
    """Count the kernels that are there, keep what is known of others, and return how many."""
    tool = shutil.which(nvdisasm or "nvdisasm")
    if tool is None:
        raise FileNotFoundError(
            f"no {nvdisasm or 'nvdisasm'} to run: it comes with the CUDA toolkit, and with triton"
        )
    compiler = Compiler()
    known = json.loads(STORE.read_text())["kernels"] if STORE.exists() else {}
    found = {}
    for one in KERNELS:
        if one.name in compiler.kernels:
            found[one.key] = counted(compiler, one, tool)
        elif one.key in known:
            found[one.key] = known[one.key]
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in found.items())
    source = json.dumps(f"NVRTC {compiler.version}, sm_{ARCHITECTURE}")
    STORE.write_text(f'{{"source": {source},\n"kernels": {{\n{lines}\n}}}}\n')
    return len(found)
