"""The source line of each address of a shared library, from its DWARF 4 line table."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE = 1, 2, 3, 4
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2


def _section(data: bytes, wanted: bytes) -> bytes:
    """Give a section of an ELF file of 64 bits, empty where there is none."""
    table_offset = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table_offset + i * size) for i in range(count)]
    names = headers[names_index]
    for name, _type, _flags, _address, offset, length in headers:
        begin = names[4] + name
        if data[begin : data.index(b"\0", begin)] == wanted:
            return data[offset : offset + length]
    return b""


@dataclass
class _Reader:
    data: bytes
    at: int

    def unpack(self, form: str) -> int:
        value: int = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def signed(self) -> int:
        begin = self.at
        value = self.unsigned()
        bits = 7 * (self.at - begin)
        return value - (1 << bits) if value >> (bits - 1) else value


@dataclass
class Row:
    """Code from an address on belongs to this line; line 0 ends a stretch of code."""

    address: int
    file: str
    line: int


def _unit(reader: _Reader) -> Iterator[Row]:
    """Run the line program of one compilation unit."""
    end = reader.unpack("<I") + reader.at
    version = reader.unpack("<H")
    if version != 4:
        raise ValueError(f"a DWARF line table of version {version}, not 4")
    program = reader.unpack("<I") + reader.at
    minimum = reader.unpack("<B")
    reader.unpack("<B")  # operations of an instruction
    reader.unpack("<B")  # whether rows are statements at first
    base, span, first_special = reader.unpack("<b"), reader.unpack("<B"), reader.unpack("<B")
    operands = [reader.unpack("<B") for _ in range(first_special - 1)]
    folders = [""]
    while folder := reader.text():
        folders.append(folder + "/")
    files = [""]
    while name := reader.text():
        files.append(folders[reader.unsigned()] + name)
        reader.unsigned()  # time
        reader.unsigned()  # length
    reader.at = program
    address, file, line = 0, 1, 1
    while reader.at < end:
        opcode = reader.unpack("<B")
        if opcode >= first_special:
            advance = opcode - first_special
            address += advance // span * minimum
            line += base + advance % span
            yield Row(address, files[file], line)
        elif opcode == 0:
            after = reader.unsigned() + reader.at
            extended = reader.unpack("<B")
            if extended == _END_SEQUENCE:
                yield Row(address, "", 0)
                address, file, line = 0, 1, 1
            elif extended == _SET_ADDRESS:
                address = reader.unpack("<Q")
            reader.at = after
        elif opcode == _COPY:
            yield Row(address, files[file], line)
        elif opcode == _ADVANCE_PC:
            address += reader.unsigned() * minimum
        elif opcode == _ADVANCE_LINE:
            line += reader.signed()
        elif opcode == _SET_FILE:
            file = reader.unsigned()
        elif opcode == _CONST_ADD_PC:
            address += (255 - first_special) // span * minimum
        elif opcode == _FIXED_ADVANCE_PC:
            address += reader.unpack("<H")
        else:
            for _ in range(operands[opcode - 1]):
                reader.unsigned()
    reader.at = end


def read_lines(path: Path) -> list[Row]:
    """Give the rows of all units by ascending address."""
    table = _section(path.read_bytes(), b".debug_line")
    reader = _Reader(table, 0)
    rows: list[Row] = []
    while reader.at < len(table):
        rows += _unit(reader)
    # An end and a beginning at one address: the beginning counts.
    rows.sort(key=lambda row: (row.address, row.line != 0))
    return rows
