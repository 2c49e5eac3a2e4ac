"""Json and jsonl files as tables, whatever shape they have. Written by hand, not tangled."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from day9.errors import InputError, shortened
from day9.reading.tables import Table, row_name
from day9.reading.textfile import check_bytes, text_file
from day9.reading.values import PLAIN, Number, Repeated

SHAPE = 'give one object per row, as in {"text": "...", "label": "..."}, in a list or one per line'
BROKEN = (json.JSONDecodeError, RecursionError)  # the other is raised where it is nested too deeply
SPACE = re.compile(r"\s*")
PIECE = 2**20  # characters of a list that are read at a time


def mark_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; a name that is given more than once has the value Repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found |= {name: Repeated() for name in found if counts[name] > 1}
    return found


DECODER = json.JSONDecoder(
    object_pairs_hook=mark_repeated, parse_int=Number, parse_float=Number,
    parse_constant=lambda name: None if name == "NaN" else Number(name))


def not_json(path: Path, where: str, error: Exception) -> InputError:
    """What to say of a file, or a part of one, that is not JSON."""
    check_bytes(path)
    what = "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        rest = shortened(error.doc[error.pos:])
        what = f"{error.msg.removesuffix(' at')} at {repr(rest) if rest else 'its end'}"
    return InputError(f"cannot read {where} is not JSON: {what}: {SHAPE}")


def json_lines(path: Path, file: TextIO) -> Iterator[tuple[int, object]]:
    """The values of a file with one a line, and their lines. Raises InputError at a broken one."""
    row = 0
    for line, text in enumerate(file, start=1):
        if text.strip():
            row += 1
            try:
                value = DECODER.decode(text)
            except BROKEN as error:
                raise not_json(path, row_name(path, row, line), error) from error
            yield line, value


def json_list(path: Path, file: TextIO) -> Iterator[object]:
    """The items of a JSON list, read a piece at a time. Raises InputError where it is broken."""
    text, at, row = file.read(PIECE).lstrip(), 0, 1  # text[at] is the mark before an item
    if text[1:].lstrip().startswith("]"):
        return
    while text[at] != "]":
        try:
            value, end = DECODER.raw_decode(text, SPACE.match(text, at + 1).end())
            end = SPACE.match(text, end).end()
            if text[end:end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        except BROKEN as error:
            if not (more := file.read(max(PIECE, len(text)))):
                raise not_json(path, row_name(path, row), error) from error
            text, at = text[at:] + more, 0
        else:
            yield value
            at, row = end, row + 1
    if rest := (text[at + 1:] + file.read()).strip():
        raise InputError(f"{path} goes on after its list ({shortened(rest)}): {SHAPE}")


def rows_of(whole: dict[str, object], text_column: str) -> list[dict] | None:
    """The rows of an object; None where it is not clear what they are.

    It is a row, or has rows under names, or one list of rows, or columns, which
    are lists or, as pandas writes them, objects.
    """
    def is_row(value: object) -> bool:
        return isinstance(value, dict) and text_column in value

    values = list(whole.values())
    nested = [value for value in values if isinstance(value, (list, dict))]
    if not nested or isinstance(whole.get(text_column), PLAIN):
        return [whole]
    if all(map(is_row, values)):
        return values
    if text_column not in whole:
        lists = [value for value in nested if isinstance(value, list) and any(map(is_row, value))]
        return lists[0] if len(lists) == 1 else None
    columns = [dict(enumerate(value)) if isinstance(value, list) else value for value in nested]
    if len(nested) < len(values) or any(list(each) != list(columns[0]) for each in columns):
        return None
    return [dict(zip(whole, cells)) for cells in zip(*(column.values() for column in columns))]


def json_object(path: Path, file: TextIO, text_column: str) -> list[object]:
    """The rows_of a file that holds a single object. Raises InputError if they are not clear."""
    try:
        whole = DECODER.decode(file.read())
    except BROKEN as error:
        raise not_json(path, f"{path}: the file", error) from error
    rows = rows_of(whole, text_column) if isinstance(whole, dict) else [whole]
    if rows is None:
        raise InputError(f"{path} is one object with {shortened(', '.join(whole))}: {SHAPE}")
    return rows


def has_value_per_line(file: TextIO) -> bool:
    """True if there are several lines, and the first is JSON by itself."""
    first, *others = islice((line for line in file if line.strip()), 2)
    if not others:
        return False
    with suppress(*BROKEN):
        DECODER.decode(first)
        return True
    return False


def json_values(path: Path, text_column: str) -> Iterator[tuple[int, object]]:
    """What a JSON file has for rows, with the lines, 0 where they are unknown."""
    with text_file(path) as file:
        start = next((mark for mark in iter(lambda: file.read(1), "") if not mark.isspace()), "")
        file.seek(0)
        one_per_line = start == "{" and has_value_per_line(file)
        file.seek(0)
        if start == "[":
            yield from ((0, value) for value in json_list(path, file))
        elif path.suffix.lower() == ".jsonl" or one_per_line:
            yield from json_lines(path, file)
        elif start:
            yield from ((0, value) for value in json_object(path, file, text_column))


def json_rows(path: Path, text_column: str) -> Iterator[tuple[int, dict]]:
    """The rows of a JSON file, with their lines. Raises InputError at what is not an object."""
    for row, (line, value) in enumerate(json_values(path, text_column), start=1):
        if not isinstance(value, dict):
            raise InputError(f"{row_name(path, row, line)} is not an object "
                             f"({shortened(str(value))}): {SHAPE}")
        yield line, value


def json_table(path: Path, wanted: list[str]) -> Table:
    """A json or jsonl file; it is read once for the names of its columns."""
    names = chain.from_iterable(row for _, row in json_rows(path, wanted[0]))

    def rows(asked: list[str]) -> Iterator[tuple[int, list]]:
        for line, row in json_rows(path, wanted[0]):
            yield line, [row.get(column) for column in asked]

    return Table(str(path), list(dict.fromkeys(names)), rows)
