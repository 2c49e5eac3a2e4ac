"""Tables, the text files they are in, and rows that are checked. Written by hand, not tangled."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from day9.errors import InputError, shortened
from day9.reading.values import LONE_SURROGATE, NOT_PLAIN, ONE_PER_ROW, is_missing, look, tidy

Convert = Callable[[object], str | None]  # raises ValueError, with a kind and a remedy


@dataclass
class Table:
    """A file, or a split on the hub: its columns, and its rows as often as asked for."""

    name: str  # for messages
    columns: list[str]
    rows: Callable[[list[str]], Iterator[tuple[str, Sequence]]]  # name of a row, some columns


def with_names(table: Table, wanted: list[str]) -> Table:
    """A table in which names of columns that are tidily a wanted one are that very one."""
    names = {tidy(name): name for name in wanted if name not in table.columns}
    columns = [names.get(tidy(column), column) for column in table.columns]
    own = dict(zip(columns, table.columns))
    return Table(table.name, columns, lambda asked: table.rows([own[name] for name in asked]))


MAGIC = {  # how a file begins, what it is, and the remedy
    rb"\x1f\x8b": ("packed by gzip", "unpack it"),
    rb"PK\x03\x04": ("a zip archive, as a workbook of Excel is", "unpack it, or save it as csv"),
    rb"\xd0\xcf\x11\xe0": ("a workbook of Excel", "save it as csv"),
    rb"%PDF-": ("a pdf", "give its texts as csv"),
    rb"(?i)\s*<(!doctype html|html)\b": ("a web page", "download the file that it shows"),
    rb"PAR1\x15": ("parquet", "end its name in .parquet"),
    rb"\xff\xfe|\xfe\xff": ("text in UTF-16", "save the file as UTF-8")}


def check_kind(path: Path) -> None:
    """Raise InputError for a file that is, by its first bytes, none of its suffix."""
    with path.open("rb") as file:
        start = file.read(200)
    for magic, (kind, remedy) in MAGIC.items():
        if re.match(magic, start) and path.suffix.lower() != f".{kind}":
            raise InputError(f"{path} is {kind}, whatever its name says: {remedy}")


def check_bytes(path: Path) -> None:
    """Raise InputError, with line and byte, where a file is not UTF-8 or holds a NUL byte."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}, byte"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{where} {error.start + 1} ({line[error.start]:#04x}): not "
                                 "UTF-8: save the file as UTF-8") from error
            if b"\0" in line:
                raise InputError(f"{where} {line.index(0) + 1}: a NUL byte: remove it, or save "
                                 "the file as UTF-8")


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """An open text file, its line ends as they are. Raises InputError where it is not UTF-8."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        check_bytes(path)
        raise


def strings(table: Table, convert: dict[str, Convert]) -> Iterator[list[str | None]]:
    """The rows, with the given columns as strings. Raises InputError at a value that is none."""
    for row_name, values in table.rows(list(convert)):
        cells = []
        for (column, function), value in zip(convert.items(), values):
            try:
                cells.append(function(value))
            except ValueError as error:
                kind, remedy = error.args
                shown = "" if is_missing(value) else f" ({shortened(str(value))})"
                what = f"{kind} in column {column!r}{shown}"
                raise InputError(f"{row_name} has {what}: {remedy}") from error
        yield cells


def require_column(table: Table, column: str, option_name: str) -> None:
    """Raise InputError unless there is exactly one such column, of a name that can be written."""
    count = table.columns.count(column)
    if LONE_SURROGATE.search(column):
        raise InputError(f"{table.name} has half a character (a lone surrogate) in the name of "
                         f"column {column!r}: rename it")
    if count > 1:
        raise InputError(f"{table.name} has {count} columns called {column!r}: rename all but one")
    if count == 1:
        return
    for name in table.columns:
        if look(name) == look(column):
            raise InputError(f"{table.name}: no column {ascii(column)}, but {ascii(name)}: rename "
                             f"it, or choose it with {option_name}")
    names = [name for name in table.columns if table.columns.count(name) == 1]
    _, values = next(table.rows(names), ("", [None] * len(names)))
    kinds = [NOT_PLAIN.get(type(value), ("", ""))[0] for value in values]
    there = (shortened(name) + (kind and f" ({kind})") for name, kind in zip(names, kinds))
    remedies = [f"choose with {option_name}"] * ("" in kinds) + [ONE_PER_ROW] * any(kinds)
    raise InputError(f"{table.name}: no column {column!r}; there are "
                     f"{shortened(', '.join(there), 200)}: {', or '.join(remedies)}")
