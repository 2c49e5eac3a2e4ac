"""Csv and tsv files as tables of strings. Written by hand, not tangled."""

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from day9.errors import InputError, shortened
from day9.reading.tables import Table, row_name
from day9.reading.textfile import check_bytes, text_file

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # as Excel writes it
IN_QUOTES = re.compile(r'"[^"]*"')
csv.field_size_limit(2**31 - 1)


class Record(NamedTuple):
    """A record of a csv file."""

    row: int  # 0 is the header
    line: int  # where it begins
    lines: list[str]
    cells: list[str]


def csv_records(path: Path, separator: str) -> Iterator[Record]:
    """The records of a csv file, the header first, however many fields they have.

    Lines without names above the header are skipped, and empty lines below it,
    unless a text is all that a row has. Raises InputError at a quote or a NUL
    that is out of place.
    """
    row, width, lines = 0, 0, []

    def keep_lines(file: TextIO) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    with text_file(path) as file:
        reader = csv.reader(keep_lines(file), delimiter=separator, strict=True)
        while True:
            lines, line = [], reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise stray_quote(path, Record(row, line, lines, [])) from error
            if cells is None:
                return
            if line == 1 and SEPARATOR_LINE.fullmatch(lines[0]):
                continue
            if not any(map(str.strip, cells)) if not row else not cells and width > 1:
                continue
            record, width = Record(row, line, lines, cells or [""]), width or len(cells)
            check_marks(path, record, separator)
            yield record
            row += 1


def stray_quote(path: Path, record: Record) -> InputError:
    """What to say of a record with a quote that is only a character, or is never closed."""
    last = record.line + len(record.lines) - 1
    reach = f", up to line {last}," if last > record.line else ""
    backslash = ", without a backslash," if any('\\"' in line for line in record.lines) else ""
    return InputError(
        f"{row_name(path, record.row, record.line)}{reach} has a quote that is only a character or "
        f"is never closed ({shortened(record.lines[0])}): double each quote of a text{backslash} "
        'as in "15"" screen" and close every quote, or give the file as jsonl')


def check_marks(path: Path, record: Record, separator: str) -> None:
    """Raise InputError at a NUL outside quotes, or a space before a quote, which then is none."""
    bare = IN_QUOTES.sub('"', "".join(record.lines))
    if "\0" in bare:
        check_bytes(path)
    if re.search(f'(^|{re.escape(separator)}) +"', bare):
        raise InputError(f"{row_name(path, record.row, record.line)} has a space before a quote "
                         f"({shortened(record.lines[0])}): remove it, or put the whole text in "
                         "quotes")


def check_fields(path: Path, record: Record, header: Record, separator: str) -> None:
    """Raise InputError if a row has too many or too few fields, or ends unlike the header."""
    count = len(record.cells)
    if count != len(header.cells):
        what = f"{count} field{'s' * (count != 1)} and the header {len(header.cells)}"
    elif record.lines[-1].endswith("\r") and header.lines[-1].endswith("\n"):
        what = "a carriage return outside quotes"
    else:
        return
    raise InputError(f"{row_name(path, record.row, record.line)} has {what} "
                     f"({shortened(record.lines[0])}): put texts that hold {separator!r} or line "
                     "ends in quotes, and close every quote")


def swallows_rows(path: Path, separator: str) -> bool:
    """True if texts of several lines are perhaps rows that stray quotes have run together.

    Each line of the file then is a row by itself. And prose has empty fields or
    spaces around its commas: these lines have some only where other rows do.
    """
    width, in_long_texts, elsewhere = 0, set(), set()
    for record in csv_records(path, separator):
        width = width or len(record.cells)
        for line in record.lines:
            fields = line.rstrip("\r\n").split(separator)
            if len(fields) != width or width == 1:
                return False
            prose = {i for i, field in enumerate(fields) if not field or field.startswith(" ")}
            (in_long_texts if len(record.lines) > 1 else elsewhere).update(prose)
    return in_long_texts <= elsewhere


def csv_rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file, without the header, each with the line where it begins.

    Raises InputError as csv_records and check_fields do, and at the end where
    it swallows_rows.
    """
    records = csv_records(path, separator)
    header = next(records)
    long = header if len(header.lines) > 1 else None
    for record in records:
        check_fields(path, record, header, separator)
        long = long or (record if len(record.lines) > 1 else None)
        yield record.line, record.cells
    if long and swallows_rows(path, separator):
        raise stray_quote(path, long)


def csv_header(path: Path, separator: str) -> list[str]:
    """The fields of the first record, if there is one. Raises InputError as csv_records does."""
    return next((record.cells for record in csv_records(path, separator)), [])


def find_separator(path: Path, wanted: list[str]) -> str:
    """The separator of a csv or tsv file; prints a warning where its suffix says another.

    It is what a line `sep=` says, or what gives a header with the most of the
    wanted columns, then with the most columns.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    with text_file(path) as file:
        if said := SEPARATOR_LINE.fullmatch(file.readline()):
            return said[1]
    headers = {}
    for mark in (usual, *SEPARATORS):
        with suppress(InputError):
            headers[mark] = csv_header(path, mark)
    separator = max(headers, default=usual, key=lambda mark: (
        len(set(wanted) & set(headers[mark])), len(headers[mark])))
    if wanted[0] not in headers.get(separator, []):
        csv_header(path, usual)  # perhaps something else is wrong with it
    if separator != usual:
        print(f"warning: {path} is read with {SEPARATORS[separator]} between its columns, "
              f"not {SEPARATORS[usual]}")
    return separator


def check_header(path: Path, separator: str, wanted: list[str]) -> None:
    """Raise InputError if the first record of a csv file is something else than a header."""
    first, *others = islice(csv_records(path, separator), 1000)
    shown = f"{path}, line {first.line}: {shortened(', '.join(first.cells))!r}"
    for line in (line for record in others for line in record.lines):
        names = {name.strip('" \r\n') for name in re.split(r"[,\t;|]", line)}
        if names.issuperset(wanted):
            raise InputError(f"{shown} is above the header: remove what is above it")
    no_name = any(len(cell) > 100 or "\n" in cell for cell in first.cells)
    again = any(cell and cell == other for record in others  # as labels are, but not names
                for cell, other in zip(first.cells, record.cells))
    if no_name or again:
        raise InputError(f"{shown} is a row, not a header: put a header above it, with "
                         f"{' and '.join(wanted)} among its names")
    if len(first.cells) == 1 and wanted[0] in first.cells[0]:
        raise InputError(f"{shown} has no separator: put {' or '.join(SEPARATORS.values())} "
                         "between the columns")


def csv_table(path: Path, wanted: list[str]) -> Table:
    """A csv or tsv file. Raises InputError if its first record is no header."""
    separator = find_separator(path, wanted)
    header = csv_header(path, separator)
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(header)]  # as pandas calls them
    if columns and wanted[0] not in columns:
        check_header(path, separator, wanted)

    def rows(asked: list[str]) -> Iterator[tuple[int, list[str]]]:
        positions = [columns.index(column) for column in asked]
        for line, cells in csv_rows(path, separator):
            yield line, [cells[i] for i in positions]

    return Table(str(path), columns, rows)
