"""Json and jsonl files as tables, whatever their shape. Written by hand, not tangled."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from day9.errors import InputError, shortened
from day9.reading.tables import Table, check_bytes, text_file
from day9.reading.values import PLAIN, Number, Repeated

SHAPE = 'give one object per row, as in {"text": "...", "label": "..."}, in a list or one per line'
SPACE, LIST_MARK, EMPTY_LIST = map(re.compile, (r"\s*", r"[\[,]\s*", r"\[\s*\]"))
PIECE = 2**20  # characters that are read at a time


def mark_repeated(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; a name that is given more than once has the value Repeated."""
    counts = Counter(name for name, _ in pairs)
    return {name: value if counts[name] == 1 else Repeated() for name, value in pairs}


DECODER = json.JSONDecoder(
    object_pairs_hook=mark_repeated, parse_int=Number, parse_float=Number,
    parse_constant=lambda name: None if name == "NaN" else Number(name))


def not_json(path: Path, name: str, error: Exception) -> InputError:
    """What to say of a value that is not JSON."""
    check_bytes(path)
    what = "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        rest = shortened(error.doc[error.pos:])
        what = f"{error.msg.removesuffix(' at')} at {rest or 'its end'}"
    return InputError(f"cannot read {name} is not JSON: {what}: {SHAPE}")


def json_values(path: Path, file: TextIO) -> Iterator[tuple[str, object]]:
    """The values of a file, in a list or in turn, with names. Raises InputError at a broken one."""
    text, row = file.read(PIECE), 1
    at = SPACE.match(text).end()
    line, in_list = 1 + text.count("\n", 0, at), text.startswith("[", at)
    if EMPTY_LIST.match(text, at):
        return
    while not (in_list and text.startswith("]", at)):
        start = (LIST_MARK if in_list else SPACE).match(text, at).end()
        start_line = line + text.count("\n", at, start)
        name = f"{path}, line {start_line}: row {row}"
        try:
            value, end = DECODER.raw_decode(text, start)
            end = SPACE.match(text, end).end()
            if in_list and text[end:end + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        except (json.JSONDecodeError, RecursionError) as error:
            if more := file.read(max(PIECE, len(text))):  # perhaps only the piece ends here
                text, at = text[at:] + more, 0
                continue
            if start == len(text) and not in_list:
                return
            raise not_json(path, name, error) from error
        yield name, value
        line, at, row = line + text.count("\n", at, end), end, row + 1
    if rest := (text[at + 1:] + file.read()).strip():
        raise InputError(f"{path} goes on after its list ({shortened(rest)}): {SHAPE}")


def rows_of(whole: dict[str, object], text_column: str) -> list[dict] | None:
    """The rows of an object that is alone in its file; None where it is not clear what they are.

    It is a row, or has rows under names, or one list of rows, or columns: lists or, as pandas
    writes them, objects.
    """
    values = list(whole.values())
    nested = [value for value in values if isinstance(value, (list, dict))]
    if not nested or isinstance(whole.get(text_column), PLAIN):
        return [whole]
    if all(isinstance(value, dict) and text_column in value for value in values):
        return values
    if text_column not in whole:
        lists = [value for value in nested if isinstance(value, list) and value
                 and isinstance(value[0], dict) and text_column in value[0]]
        return lists[0] if len(lists) == 1 else None
    columns = [dict(enumerate(value)) if isinstance(value, list) else value for value in nested]
    if len(nested) < len(values) or any(list(each) != list(columns[0]) for each in columns):
        return None
    return [dict(zip(whole, cells)) for cells in zip(*(column.values() for column in columns))]


def json_rows(path: Path, text_column: str) -> Iterator[tuple[str, dict]]:
    """The rows of a JSON file, with their names. Raises InputError at what is not an object."""
    with text_file(path) as file:
        values = json_values(path, file)
        first = list(islice(values, 2))
        if len(first) == 1 and isinstance(whole := first[0][1], dict):
            if (rows := rows_of(whole, text_column)) is None:
                names = shortened(", ".join(whole))
                raise InputError(f"{path} is one object with {names}: {SHAPE}")
            first = [(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]
        for name, value in chain(first, values):
            if not isinstance(value, dict):
                raise InputError(f"{name} is not an object ({shortened(str(value))}): {SHAPE}")
            yield name, value


def json_table(path: Path, wanted: list[str]) -> Table:
    """A json or jsonl file; it is read once for the names of its columns."""
    names = chain.from_iterable(row for _, row in json_rows(path, wanted[0]))

    def rows(asked: list[str]) -> Iterator[tuple[str, list]]:
        for name, row in json_rows(path, wanted[0]):
            yield name, [row.get(column) for column in asked]

    return Table(str(path), list(dict.fromkeys(names)), rows)
