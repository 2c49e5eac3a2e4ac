"""Csv and tsv files as tables. Written by hand, not tangled."""

import csv
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from day9.errors import InputError, shortened
from day9.reading.tables import Table, check_bytes, text_file
from day9.reading.values import tidy

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "pipes"}
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)  # as Excel writes it
IN_QUOTES = re.compile(r'"[^"]*"')
csv.field_size_limit(2**31 - 1)


class Record(NamedTuple):
    """A record of a csv file, and the lines that it takes up."""

    name: str  # for messages
    line: int  # where it begins
    lines: list[str]
    cells: list[str]


def refusal(record: Record, what: str, remedy: str) -> InputError:
    """What to say of a record that cannot be read."""
    return InputError(f"{record.name} {what} ({shortened(record.lines[0])}): {remedy}")


def stray_quote(record: Record) -> InputError:
    """What to say of a record with a quote that is only a character, or is never closed."""
    last = record.line + len(record.lines) - 1
    reach = f", up to line {last}," if last > record.line else ""
    return refusal(record._replace(name=record.name + reach),
                   "has a quote that is only a character or is never closed",
                   "double each quote of a text, without a backslash, as in \"15\"\" screen\" and "
                   "close every quote, or give the file as jsonl")


def csv_records(path: Path, separator: str) -> Iterator[Record]:
    """The records of a csv file, the header first. Raises InputError at one that is in doubt."""
    header, row, lines = None, 0, []

    def keep_lines(file: TextIO) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    def record(cells: list[str]) -> Record:
        line = reader.line_num - len(lines) + 1
        name = f"{path}, line {line}: {f'row {row}' if header else 'the header'}"
        return Record(name, line, lines, cells)

    with text_file(path) as file:
        reader = csv.reader(keep_lines(file), delimiter=separator, strict=True)
        try:
            for cells in reader:
                if not is_skipped(header, lines, cells):
                    found = record(cells or [""])
                    header = header or found
                    check_record(path, found, header, separator)
                    yield found
                    row += 1
                lines = []
        except csv.Error as error:
            raise stray_quote(record([])) from error


def is_skipped(header: Record | None, lines: list[str], cells: list[str]) -> bool:
    """True for a line without names above the header, and for an empty one that is not a text."""
    if header:
        return not cells and len(header.cells) > 1
    return not any(map(str.strip, cells)) or SEPARATOR_LINE.fullmatch(lines[0]) is not None


def check_record(path: Path, record: Record, header: Record, separator: str) -> None:
    """Raise InputError at fields and characters that are out of place in a record."""
    bare = IN_QUOTES.sub('"', "".join(record.lines))
    if "\0" in bare:
        check_bytes(path)
    if re.search(f'(^|{re.escape(separator)}) +"', bare):
        raise refusal(record, "has a space before a quote",
                      "remove it, or put the whole text in quotes")
    count, width = len(record.cells), len(header.cells)
    if count != width:
        what = f"has {count} field{'s' * (count != 1)} and the header {width}"
    elif record.lines[-1].endswith("\r") and header.lines[-1].endswith("\n"):
        what = "has a carriage return outside quotes"
    else:
        return
    raise refusal(record, what, f"put texts that hold {separator!r} or line ends in quotes, and "
                                "close every quote")


def check_long_texts(path: Path, separator: str) -> None:
    """Raise InputError if texts of several lines may be rows that stray quotes run together.

    Every line of the file is a row by itself then. And prose has spaces after
    commas, or line ends: such fields are in these lines only where others have them.
    """
    long, in_long, elsewhere = None, set(), set()
    for record in csv_records(path, separator):
        lines = [line.rstrip("\r\n").split(separator) for line in record.lines]
        if any(len(fields) == 1 or len(fields) != len(record.cells) for fields in lines):
            return
        prose = {i for fields in lines for i, field in enumerate(fields)
                 if not field or field.startswith(" ")}
        (in_long if len(lines) > 1 else elsewhere).update(prose)
        long = long or (record if len(lines) > 1 else None)
    if long and in_long <= elsewhere:
        raise stray_quote(long)


def find_separator(path: Path, wanted: list[str]) -> str:
    """What a line `sep=` says, else what finds most wanted columns; a warning if not the usual."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    with text_file(path) as file:
        first = next((line for line in file if line.strip()), "")
    if said := SEPARATOR_LINE.fullmatch(first):
        return said[1]
    names = {mark: next(csv.reader([first], delimiter=mark), []) for mark in (usual, *SEPARATORS)}
    best = max(names, key=lambda mark: (len(set(wanted) & set(names[mark])), len(names[mark])))
    if best != usual:
        print(f"warning: {path} is read with {SEPARATORS[best]} between its columns, not "
              f"{SEPARATORS[usual]}")
    return best


def check_header(path: Path, separator: str, header: Record, wanted: list[str]) -> None:
    """Raise InputError if the first record, which lacks a wanted column, is not a header."""
    shown = f"{path}, line {header.line}: {shortened(', '.join(header.cells))!r}"
    with text_file(path) as file:
        lines = list(islice(file, 1000))
    for line in lines:
        if {name.strip('" \r\n') for name in re.split(r"[,\t;|]", line)}.issuperset(wanted):
            raise InputError(f"{shown} is above the header: remove what is above it")
    rows = [cells for cells in csv.reader(lines, delimiter=separator)
            if len(cells) == len(header.cells)]
    again = any(name and column.count(name) > 1 for name, *column in zip(header.cells, *rows))
    if again or any(len(name) > 100 or "\n" in name for name in header.cells):  # texts, labels
        raise InputError(f"{shown} is a row, not a header: put a header above it, with "
                         f"{' and '.join(wanted)} among its names")
    if len(header.cells) == 1 and wanted[0] in header.cells[0]:
        raise InputError(f"{shown} has no separator: put {' or '.join(SEPARATORS.values())} "
                         "between the columns")


def csv_table(path: Path, wanted: list[str]) -> Table:
    """A csv or tsv file. Raises InputError if its first record is no header."""
    separator = find_separator(path, wanted)
    header = next(csv_records(path, separator), Record("", 0, [], []))
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(header.cells)]  # as pandas does
    if columns and tidy(wanted[0]) not in map(tidy, columns):
        check_header(path, separator, header, wanted)

    def rows(asked: list[str]) -> Iterator[tuple[str, list[str]]]:
        positions = [columns.index(column) for column in asked]
        for record in islice(csv_records(path, separator), 1, None):
            yield record.name, [record.cells[i] for i in positions]
        check_long_texts(path, separator)

    return Table(str(path), columns, rows)
