"""The compiler's flags for the C files, by which setup.py and the cross compilation build them.

One set for every file: variants for an instruction set are chosen by function attribute, and a
universal2 Python compiles each file for both architectures in one command. No fast math.
"""

from __future__ import annotations

C_FLAGS = [
    "-O3",
    "-std=c11",
    "-g0",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-pthread",
]
# The C that Cython writes checks arguments and passes pointers on: some megabytes that take three
# times as long to compile at -O3.
CYTHON_FLAGS = ["-O1"]
# What no C file of ours may give cause for; not of a user's build, whose compiler may be newer.
C_WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"]
