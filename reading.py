"""Labelled texts from files, folders of files and datasets on the hub.

Whatever the format, only columns of strings are wanted, so nothing is guessed:
a value comes through as it was written, or an InputError says why it cannot.
"""

import csv
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError, httpx
from sklearn.model_selection import train_test_split

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(
    ("val", "valid", "dev", "eval"), "validation")


class InputError(Exception):
    """Something the user gave cannot be used; the message names it and the remedy."""


def shortened(text: str, width: int = 60) -> str:
    """A text in one line, without its end where it is long."""
    printable = text[:2 * width].encode(errors="backslashreplace").decode()
    line = " ".join(printable.split())
    return line if len(line) <= width else f"{line[:width]}..."


def place(name: str, row: int, line: int = 0) -> str:
    """How a message about a row begins; row 0 is the header, line 0 is unknown."""
    return f"{name}{f', line {line}' if line else ''}: {f'row {row}' if row else 'the header'}"


# Values


class Number(str):
    """A number as it was written in JSON."""


class Repeated:
    """Stands for the values of a name that a JSON object gives more than once."""

    def __repr__(self) -> str:
        return "..."


FILL_IN = "fill it in or remove the row"
ONE_PER_ROW = "give one text and one label per row"
NOT_PLAIN = {  # what it is called, and the remedy
    list: ("a list", ONE_PER_ROW),
    dict: ("an object", ONE_PER_ROW),
    bytes: ("bytes", "store strings"),
    Repeated: ("more than one value", "keep one"),
}
NUMBERS = (bool, int, float, np.floating, Decimal, Number)
PLAIN = (str, *NUMBERS, date, time, timedelta)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one, UTF-8 cannot


def is_missing(value: object) -> bool:
    """True for None and for what is not a number, such as NaN."""
    return value is None or isinstance(value, PLAIN) and value != value


def as_written(value: object) -> str | None:
    """A string, number or date as a string; None where it is missing.

    Raises ValueError, with a kind and a remedy, for anything else.
    """
    if is_missing(value):
        return None
    if not isinstance(value, PLAIN):
        kind = type(value)
        raise ValueError(*NOT_PLAIN.get(kind, (f"a {kind.__name__}", "store strings")))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.isascii() and LONE_SURROGATE.search(text):
        raise ValueError("half a character (a lone surrogate)", "remove it")
    return text


def given_text(value: object) -> str:
    """A text as_written. Raises ValueError as that does, and where it is missing."""
    text = as_written(value)
    if text is None:
        raise ValueError("no text", FILL_IN)
    return text


def given_label(value: object) -> str:
    """A label as_written. Raises ValueError as that does, and where it is missing."""
    label = as_written(value)
    if label is None or not label.strip():
        raise ValueError("no label", FILL_IN)
    return label


def in_json(value: object) -> str:
    """A value in JSON, with numbers as they were written. Raises ValueError as as_written does."""
    if isinstance(value, dict):
        items = (f"{in_json(name)}: {in_json(item)}" for name, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_json, value))}]"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = as_written(value)
    if text is None:
        return "null"
    return text if isinstance(value, NUMBERS) else json.dumps(text, ensure_ascii=False)


def spelled(value: object) -> str | None:
    """as_written where that is possible, in_json otherwise."""
    return as_written(value) if value is None or isinstance(value, PLAIN) else in_json(value)


# Tables


@dataclass
class Table:
    """A file, or a split on the hub: its columns, and its rows as often as asked for."""

    name: str  # for messages
    columns: list[str]
    rows: Callable[[list[str]], Iterator[tuple[int, Sequence]]]  # line, values of the columns


def strings(table: Table,
            convert: dict[str, Callable[[object], str | None]]) -> Iterator[list[str | None]]:
    """The rows, with the given columns as strings. Raises InputError at a value that is none."""
    for row, (line, values) in enumerate(table.rows(list(convert)), start=1):
        cells = []
        for (column, function), value in zip(convert.items(), values):
            try:
                cells.append(function(value))
            except ValueError as error:
                kind, remedy = error.args
                shown = "" if is_missing(value) else shortened(str(value))
                raise InputError(f"{place(table.name, row, line)} has {kind} in column {column!r}"
                                 f"{shown and f' ({shown})'}: {remedy}") from error
        yield cells


def require_column(table: Table, column: str, option_name: str) -> None:
    """Raise InputError unless there is exactly one such column, of a name that can be written."""
    count = table.columns.count(column)
    if LONE_SURROGATE.search(column):
        raise InputError(f"{table.name} has half a character (a lone surrogate) in the name of "
                         f"column {column!r}: rename it")
    if count > 1:
        raise InputError(f"{table.name} has {count} columns called {column!r}: rename all but one")
    if count:
        return
    near = [name for name in table.columns if normalised(name) == normalised(column)]
    if near:
        raise InputError(f"{table.name}: no column {column!r}, but {near[0]!r}: rename it, or "
                         f"choose it with {option_name}")
    kinds = {name: "" for name in table.columns if table.columns.count(name) == 1}
    for name, value in zip(kinds, next(table.rows(list(kinds)), (0, []))[1]):
        if type(value) in NOT_PLAIN:
            kinds[name] = f" ({NOT_PLAIN[type(value)][0]})"
    there = shortened(", ".join(shortened(name) + kind for name, kind in kinds.items()), 200)
    remedies = [f"choose with {option_name}"] * (not all(kinds.values()))
    remedies += [ONE_PER_ROW] * any(kinds.values())
    raise InputError(f"{table.name}: no column {column!r}; there are {there}: "
                     f"{', or '.join(remedies)}")


def has_labels(table: Table, label_column: str) -> bool:
    """True if some row has a label."""
    return label_column in table.columns and any(
        not is_missing(label) and str(label).strip() for _, [label] in table.rows([label_column]))


# Text files


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
    """An open text file, its line ends as they are. Raises InputError where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        check_bytes(path)
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


# csv and tsv

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

    Raises InputError at a quote or a NUL that is out of place.
    """
    row, width, lines = 0, 0, []

    def noted(file: TextIO) -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    with text_file(path) as file:
        reader = csv.reader(noted(file), delimiter=separator, strict=True)
        while True:
            lines, line = [], reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise stray_quote(path, Record(row, line, lines, [])) from error
            if cells is None:
                return
            if line == 1 and SEPARATOR_LINE.fullmatch(lines[0]) or is_blank(cells, width):
                continue
            record, width = Record(row, line, lines, cells or [""]), width or len(cells)
            check_marks(path, record, separator)
            yield record
            row += 1


def is_blank(cells: list[str], width: int) -> bool:
    """True for a line to skip: an empty one, unless it is a text, or one without names."""
    return not any(map(str.strip, cells)) if not width else not cells and width > 1


def stray_quote(path: Path, record: Record) -> InputError:
    """What to say of a record with a quote that is only a character, or is never closed."""
    last = record.line + len(record.lines) - 1
    reach = f", up to line {last}," if last > record.line else ""
    backslash = ", without a backslash," if any('\\"' in line for line in record.lines) else ""
    return InputError(
        f"{place(path, record.row, record.line)}{reach} has a quote that is only a character or is "
        f"never closed ({shortened(record.lines[0])}): double each quote of a text{backslash} "
        'as in "15"" screen" and close every quote, or give the file as jsonl')


def check_marks(path: Path, record: Record, separator: str) -> None:
    """Raise InputError at a NUL outside quotes, or a space before a quote, which then is none."""
    if any("\0" in line for line in record.lines):
        if "\0" in IN_QUOTES.sub("", "".join(record.lines)):
            check_bytes(path)
    if any(' "' in line for line in record.lines):
        meant = next(csv.reader(record.lines, delimiter=separator, skipinitialspace=True))
        if len(meant) != len(record.cells) or any(
                other not in (cell, cell.lstrip(" ")) for cell, other in zip(record.cells, meant)):
            raise InputError(
                f"{place(path, record.row, record.line)} has a space before a quote "
                f"({shortened(record.lines[0])}): remove it, or put the whole text in quotes")


def check_fields(path: Path, record: Record, header: Record, separator: str) -> None:
    """Raise InputError if a row has too many or too few fields, or ends unlike the header."""
    if len(record.cells) != len(header.cells):
        count = len(record.cells)
        what = f"{count} field{'s' * (count != 1)} and the header {len(header.cells)}"
    elif record.lines[-1].endswith("\r") and header.lines[-1].endswith("\n"):
        what = "a carriage return outside quotes"
    else:
        return
    raise InputError(f"{place(path, record.row, record.line)} has {what} "
                     f"({shortened(record.lines[0])}): put texts that hold {separator!r} or line "
                     "ends in quotes, and close every quote")


def csv_rows(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file, without the header, each with the line where it begins.

    Raises InputError as check_fields does, and at the end if quotes that are
    only characters may have swallowed rows: some text has several lines, but
    every line of the file is a row by itself, and such a text has no field
    that would be odd for a row.
    """
    header, all_rows, across, odd, usual = None, True, None, set(), set()
    for record in csv_records(path, separator):
        header = header or record
        check_fields(path, record, header, separator)
        if all_rows:
            bare = [line.rstrip("\r\n").split(separator) for line in record.lines]
            all_rows = all(1 < len(fields) == len(header.cells) for fields in bare)
            across = across or (record if len(bare) > 1 else None)
            (odd if len(bare) > 1 else usual).update(*map(prose_around, bare))
        if record.row:
            yield record.line, record.cells
    if across and all_rows and odd <= usual:
        raise stray_quote(path, across)


def prose_around(fields: list[str]) -> set[int]:
    """The fields that prose has around a comma: empty, or with a space at the beginning."""
    return {i for i, field in enumerate(fields) if not field or field.startswith(" ")}


def csv_header(path: Path, separator: str) -> list[str]:
    """The fields of the first record, if there is one. Raises InputError as csv_records does."""
    return next((record.cells for record in csv_records(path, separator)), [])


def find_separator(path: Path, wanted: list[str]) -> str:
    """The separator of a csv or tsv file; prints a warning where its suffix says another.

    It is what a line `sep=` says, or what gives a header with the first of the
    wanted columns, then with all of them, then with the most columns.
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
        wanted[0] in headers[mark], set(wanted) <= set(headers[mark]), len(headers[mark])))
    if wanted[0] not in headers.get(separator, []):
        csv_header(path, usual)  # perhaps something else is wrong with it
    if separator != usual:
        print(f"warning: {path} is read with {SEPARATORS[separator]} between its columns, "
              f"not {SEPARATORS[usual]}")
    return separator


def check_header(path: Path, separator: str, wanted: list[str]) -> None:
    """Raise InputError if the first line of a csv file is something else than a header."""
    first, *others = islice(csv_records(path, separator), 1000)
    shown = f"{path}, line {first.line}: {shortened(', '.join(first.cells))!r}"
    header = f"put a header above it, with {' and '.join(wanted)} among its names"
    lines = (line for record in others for line in record.lines)
    if first.lines[0].startswith("#") or any(
            set(wanted) <= {name.strip('" ') for name in line.strip("\r\n").split(mark)}
            for line in lines for mark in SEPARATORS):
        raise InputError(f"{shown} is above the header: remove what is above it")
    prose = [cell for cell in first.cells if len(cell.split()) > 3]
    again = (cell for other in others for cell in zip(first.cells, other.cells))
    if any(len(cell) > 100 or "\n" in cell or cell.endswith((".", "!")) for cell in prose) or any(
            cell and cell == other for cell, other in again):  # as labels are, but not names
        raise InputError(f"{shown} is a row, not a header: {header}")
    if len(first.cells) == 1 and wanted[0] in first.cells[0]:
        raise InputError(f"{shown} has no separator: put {' or '.join(SEPARATORS.values())} "
                         "between the columns")
    if prose:
        raise InputError(f"{shown} does not name the column {wanted[0]!r}: if it is a row "
                         f"{header}, otherwise choose with --text-column")


def csv_table(path: Path, wanted: list[str]) -> Table:
    """A csv or tsv file. Raises InputError if its first line is no header."""
    separator = find_separator(path, wanted)
    header = csv_header(path, separator)
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(header)]  # as pandas calls them
    if columns and wanted[0] not in columns:
        check_header(path, separator, wanted)

    def rows(asked: list[str]) -> Iterator[tuple[int, list[str]]]:
        at = [columns.index(column) for column in asked]
        for line, cells in csv_rows(path, separator):
            yield line, [cells[i] for i in at]

    return Table(str(path), columns, rows)


# JSON

SHAPE = 'give one object per row, as in {"text": "...", "label": "..."}, in a list or one per line'
SPACE = re.compile(r"\s*")
PIECE = 2**20  # characters of a list that are read at a time


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; a name that is given more than once has the value Repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found |= {name: Repeated() for name in found if counts[name] > 1}
    return found


DECODER = json.JSONDecoder(
    object_pairs_hook=once, parse_int=Number, parse_float=Number,
    parse_constant=lambda name: None if name == "NaN" else Number(name))


def not_json(path: Path, where: str, error: Exception) -> InputError:
    """What to say of a file, or a part of one, that is not JSON."""
    check_bytes(path)
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    else:
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
            except (json.JSONDecodeError, RecursionError) as error:
                raise not_json(path, place(path, row, line), error) from error
            yield line, value


def json_list(path: Path, file: TextIO) -> Iterator[tuple[int, object]]:
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
        except (json.JSONDecodeError, RecursionError) as error:
            if not (more := file.read(max(PIECE, len(text)))):
                raise not_json(path, place(path, row), error) from error
            text, at = text[at:] + more, 0
        else:
            yield 0, value
            at, row = end, row + 1
    if rest := (text[at + 1:] + file.read()).strip():
        raise InputError(f"{path} goes on after its list ({shortened(rest)}): {SHAPE}")


def json_object(path: Path, text_column: str) -> list[dict]:
    """The rows of a JSON file that holds a single object.

    It is a row, or columns of one length, or has rows under names, or a list
    of rows under one name. Raises InputError if it may be anything else.
    """
    with text_file(path) as file:
        try:
            whole = DECODER.decode(file.read())
        except (json.JSONDecodeError, RecursionError) as error:
            raise not_json(path, f"{path}: the file", error) from error
    if not isinstance(whole, dict):
        raise InputError(f"{path} holds no objects: {SHAPE}")
    values, is_row = whole.values(), lambda value: isinstance(value, dict) and text_column in value
    if isinstance(whole.get(text_column), PLAIN) or not any(
            isinstance(value, (list, dict)) for value in values):
        return [whole]
    if all(map(is_row, values)):
        return list(values)
    lists = [value for value in values if isinstance(value, list) and any(map(is_row, value))]
    if len(lists) == 1 and text_column not in whole:
        return lists[0]
    rows = transposed(whole)
    if rows is None or text_column not in whole and not all(
            isinstance(value, PLAIN) for row in rows for value in row.values()):
        raise InputError(f"{path} is one object with {shortened(', '.join(whole))}: {SHAPE}")
    return rows


def transposed(whole: dict[str, object]) -> list[dict] | None:
    """The rows of columns, which are lists or, as pandas writes them, objects; None if neither."""
    columns = [dict(enumerate(value)) if isinstance(value, list) else value
               for value in whole.values()]
    if not all(isinstance(column, dict) and list(column) == list(columns[0]) for column in columns):
        return None
    return [dict(zip(whole, cells)) for cells in zip(*(column.values() for column in columns))]


def json_values(path: Path, text_column: str) -> Iterator[tuple[int, object]]:
    """What a JSON file has for rows, with the lines, 0 where they are unknown."""
    with text_file(path) as file:
        start = next((mark for mark in iter(lambda: file.read(1), "") if not mark.isspace()), "")
        file.seek(0)
        if start == "[":
            yield from json_list(path, file)
            return
        first, second = [*islice((line for line in file if line.strip()), 2), "", ""][:2]
        file.seek(0)
        if second and (path.suffix.lower() == ".jsonl" or is_json(first)):
            yield from json_lines(path, file)
        elif first:
            yield from ((0, row) for row in json_object(path, text_column))


def is_json(line: str) -> bool:
    """True for a line that is JSON by itself."""
    with suppress(json.JSONDecodeError, RecursionError):
        DECODER.decode(line)
        return True
    return False


def json_rows(path: Path, text_column: str) -> Iterator[tuple[int, dict]]:
    """The rows of a JSON file, with their lines. Raises InputError at what is not an object."""
    for row, (line, value) in enumerate(json_values(path, text_column), start=1):
        if not isinstance(value, dict):
            raise InputError(f"{place(path, row, line)} is not an object "
                             f"({shortened(str(value))}): {SHAPE}")
        yield line, value


def json_table(path: Path, wanted: list[str]) -> Table:
    """A json or jsonl file; it is read once for the names of its columns."""
    names = chain.from_iterable(row for _, row in json_rows(path, wanted[0]))

    def rows(asked: list[str]) -> Iterator[tuple[int, list]]:
        for line, row in json_rows(path, wanted[0]):
            yield line, [row.get(column) for column in asked]

    return Table(str(path), list(dict.fromkeys(names)), rows)


# Parquet and the hub


def arrow_values(column: pa.Array | pa.ChunkedArray, classes: list[str] | None) -> Sequence:
    """The values of an Arrow column; the numbers of classes become their names."""
    if column.type in (pa.float16(), pa.float32()):  # 0.1, which Python's float would make longer
        return column.to_numpy(zero_copy_only=False)
    values = column.to_pylist()
    if not classes:
        return values
    names = dict(enumerate(classes))
    return [names.get(value) if isinstance(value, int) else value for value in values]


def arrow_rows(batches: Iterable, asked: list[str],
               classes: dict[str, list[str]]) -> Iterator[tuple[int, tuple]]:
    """The rows of Arrow tables, whose lines are unknown."""
    for batch in batches:
        columns = [arrow_values(batch.column(name), classes.get(name)) for name in asked]
        yield from ((0, values) for values in zip(*columns))


@contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """An open parquet file. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}: write it again") from error


def parquet_table(path: Path, wanted: list[str]) -> Table:
    """A parquet file, with the names of classes that the datasets library keeps in it."""
    with parquet_file(path) as parquet:
        schema = parquet.schema_arrow
    kept = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = kept.get("info", {}).get("features") or {}
    classes = {name: feature["names"] for name, feature in features.items()
               if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"}

    def rows(asked: list[str]) -> Iterator[tuple[int, tuple]]:
        with parquet_file(path) as parquet:
            yield from arrow_rows(parquet.iter_batches(1000, columns=asked), asked, classes)

    return Table(str(path), schema.names, rows)


def hub_table(name: str, split: Dataset) -> Table:
    """A split of a dataset on the hub."""
    classes = {column: feature.names for column, feature in split.features.items()
               if isinstance(feature, ClassLabel)}

    def rows(asked: list[str]) -> Iterator[tuple[int, tuple]]:
        batches = split.select_columns(asked).with_format("arrow").iter(1000)
        yield from arrow_rows(batches, asked, classes)

    return Table(name, split.column_names, rows)


def causes(error: BaseException) -> list[BaseException]:
    """An exception and those it was raised from, the first cause last."""
    chain = [error]
    while cause := chain[-1].__cause__ or (
            None if chain[-1].__suppress_context__ else chain[-1].__context__):
        chain.append(cause)
    return chain


def one_line(error: BaseException) -> str:
    """An exception's text in one line, not too long, or its name where it has none."""
    return shortened(str(error), 300) or type(error).__name__


NOT_CACHED = ("the cache does not hold it, and the hub does not answer or HF_HUB_OFFLINE is set: "
              "check --{name}, try again, or name a folder")
HUB_REMEDIES = {  # by the name of the exception; the first that fits
    "GatedRepoError": "its owner gives access on request: ask for it on its page on the hub, and "
                      "log in with `hf auth login`",
    "RevisionNotFoundError": "there is no such revision: check --{revision}",
    "RepositoryNotFoundError": "there is no such file or folder, and the hub shows nothing of that "
                               "name: check --{name}, and if it is private log in with "
                               "`hf auth login`",
    "HFValidationError": "there is no such file or folder, and nothing on the hub can have that "
                         "name: check --{name}",
    "TransportError": "the download broke off: try again",
    "LocalEntryNotFoundError": NOT_CACHED,
    "ConnectionError": NOT_CACHED,
    "HfHubHTTPError": "the hub refuses the login: log in again with `hf auth login`",
}


def cache_at_fault(chain: list[BaseException]) -> str | None:
    """The cache that could not be written and why, if that is among the causes."""
    for place in (constants.HF_HOME, constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE):
        for cause in chain:
            if isinstance(cause, OSError) and isinstance(cause.filename, str | Path):
                cache, tried = Path(place), Path(cause.filename)
                missing = isinstance(cause, FileNotFoundError) and cache.exists()
                if not missing and (cache.is_relative_to(tried) or tried.is_relative_to(cache)):
                    return f"{cache} ({cause.strerror})"
    return None


def cannot_load(error: Exception, name: str, option_name: str) -> InputError:
    """What to say when a folder or something on the hub cannot be loaded.

    `option_name` is "model" or "data".
    """
    chain = causes(error)
    kinds = [kind.__name__ for cause in chain for kind in type(cause).__mro__]
    if cache := cache_at_fault(chain):
        return InputError(f"downloads cannot be kept in {cache}: set HF_HOME to a folder that can "
                          "be written")
    known = next((remedy for kind, remedy in HUB_REMEDIES.items() if kind in kinds), None)
    if known:
        revision = "revision" if option_name == "model" else "data-revision"
        remedy = known.format(name=option_name, revision=revision)
    else:
        several = "onfig name" in str(error) or "BuilderConfig" in str(error)
        among = ", and choose a configuration with --data-config" if several else ""
        remedy = f"{one_line(chain[-1])}: check --{option_name}{among}"
    return InputError(f"cannot load the {option_name} {name}: {remedy}")


def ask_hub(name: str, option_name: str, revision: str | None) -> None:
    """Ask the hub once for a model or dataset; where it does not answer, go on without it.

    Raises what the hub answers if it refuses.
    """
    if Path(name).exists() or constants.is_offline_mode():
        return
    if option_name == "model":
        url = hf_hub_url(name, "config.json", revision=revision)
    else:
        url = hf_hub_url(name, f"{name.split('/')[-1]}.py", repo_type="dataset", revision=revision)
    try:
        get_hf_file_metadata(url)
    except EntryNotFoundError:
        pass  # there is such a repository, and that was the question
    except (HfHubHTTPError, httpx.HTTPError) as error:
        if getattr(getattr(error, "response", None), "status_code", 503) in (401, 403, 404):
            raise
        print(f"warning: the hub does not answer ({one_line(error)}): "
              "only its cache on this machine is used")
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


# What is given, and what becomes of it

READERS = {".csv": csv_table, ".tsv": csv_table, ".json": json_table, ".jsonl": json_table,
           ".parquet": parquet_table}


def check_pointer(path: Path) -> None:
    """Raise InputError for a file that only says where git-lfs keeps the real one."""
    with path.open("rb") as file:
        if file.read(18) == b"version https://gi":
            raise InputError(f"{path} is a pointer of git-lfs, not the file: get it with "
                             "git lfs pull")


def open_table(path: Path, wanted: list[str]) -> Table:
    """A file with rows, of which some columns are wanted, the texts first.

    Raises InputError if it is of another kind or empty.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path} is none of {', '.join(READERS)}: convert it, or correct its "
                         "suffix")
    try:
        check_pointer(path)
        empty = not path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    table = None if empty else READERS[suffix](path, wanted)
    if not table or not table.columns:
        raise InputError(f"{path} is empty: give a file with rows")
    return table


def split_files(folder: Path) -> dict[str, Path]:
    """The train, validation and test files of a folder, by split.

    Raises InputError if there is no train file, or two files are one split.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = SPLIT_NAMES.get(path.name.split(".")[0].lower())
        if split is None or not path.is_file():
            continue
        if path.suffix.lower() not in READERS:
            print(f"warning: {path} is left out: it is none of {', '.join(READERS)}")
        elif split in found:
            raise InputError(f"{found[split]} and {path} are both the {split} split: remove one")
        else:
            found[split] = path
    if "train" not in found:
        raise InputError(f"{folder} must hold a train file of {', '.join(READERS)}: add one, or "
                         "give the path of a file")
    return found


def find_tables(data: str, wanted: list[str], config: str | None,
                revision: str | None) -> dict[str, Table]:
    """The tables of a file, a folder or a dataset on the hub, by split. Raises InputError."""
    path = Path(data)
    if path.is_file():
        return {"train": open_table(path, wanted)}
    if path.is_dir():
        return {split: open_table(file, wanted) for split, file in split_files(path).items()}
    if path.suffix.lower() in READERS:
        raise InputError(f"there is no file {data}: check --data")
    try:
        ask_hub(data, "data", revision)
        found = DatasetDict(load_dataset(data, config, revision=revision))
    except Exception as error:  # the hub's exceptions have no common class
        raise cannot_load(error, data, "data") from error
    tables = {}
    for name, split in found.items():
        if (ours := SPLIT_NAMES.get(name, name)) in tables:
            raise InputError(f"{tables[ours].name} and its {name} split are both for {ours}: "
                             "save the right one as a file, and give a folder of files")
        tables[ours] = hub_table(f"the {name} split of {data}", split)
    if "train" not in tables:
        raise InputError(f"{data} has no train split; there are {', '.join(found)}: "
                         "give one that has")
    return tables


@cache
def scratch() -> tempfile.TemporaryDirectory:
    """A folder that is removed when the program ends."""
    return tempfile.TemporaryDirectory(prefix="rows-", ignore_cleanup_errors=True)


def batches(rows: Iterable[list[str | None]], most: int = 1000,
            size: int = 2**24) -> Iterator[list[list[str | None]]]:
    """Rows by the thousand, or fewer where they are long."""
    batch, length = [], 0
    for row in rows:
        batch.append(row)
        length += sum(len(cell) for cell in row if cell)
        if len(batch) == most or length > size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def store(name: str, columns: list[str], rows: Iterable[list[str | None]]) -> Dataset:
    """Rows of strings as a dataset on the disk, so that they need not fit into memory.

    Raises InputError, with the name of what they are from, if there are none.
    """
    schema = pa.schema([(column, pa.string()) for column in columns])
    try:
        with (tempfile.NamedTemporaryFile(dir=scratch().name, delete=False) as file,
              pa.ipc.new_stream(file, schema) as stream):
            for batch in batches(rows):
                arrays = [pa.array(cells, pa.string()) for cells in zip(*batch)]
                stream.write_batch(pa.record_batch(arrays, schema=schema))
    except OSError as error:
        raise InputError(f"cannot keep the rows of {name} in {tempfile.gettempdir()}: "
                         f"{error.strerror}: make room, or set TMPDIR to another folder") from error
    stored = Dataset.from_file(file.name)
    if not len(stored):
        raise InputError(f"{name} is empty: give one with rows")
    return stored


def read_table(path: Path, text_column: str) -> Dataset:
    """The rows of a file in their order, with all its columns as strings.

    A missing text is an empty one. Raises InputError if the file cannot be
    read, or a text is not plain.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: check --data")
    table = open_table(path, [text_column])
    for column in (text_column, *table.columns):
        require_column(table, column, "--text-column")
    convert = dict.fromkeys(table.columns, spelled)
    convert[text_column] = lambda text: as_written(text) or ""
    return store(table.name, table.columns, strings(table, convert))


def read_split(name: str, table: Table, text_column: str, label_column: str) -> Dataset | None:
    """Texts and labels of a split; None, with a warning, if it is not train and has no labels."""
    require_column(table, text_column, "--text-column")
    if name != "train" and not has_labels(table, label_column):
        print(f"warning: {table.name} has no labels in column {label_column!r}: the {name} split "
              "is cut from train instead")
        return None
    require_column(table, label_column, "--label-column")
    convert = {text_column: given_text, label_column: given_label}
    return store(table.name, ["text", "label"], strings(table, convert))


def split_off(split: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split in two, stratified by label; the second part has `size` rows.

    It has no fewer than there are labels. Raises InputError if that cannot be.
    """
    labels = split["label"][:]
    try:
        kept, cut = train_test_split(range(len(split)), test_size=max(size, len(set(labels))),
                                     stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"the data cannot be split by class ({error}): add examples, or give "
                         "validation and test files") from error
    return split.select(kept), split.select(cut)


def normalised(text: str) -> str:
    """The same for texts that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def text_keys(split: Dataset) -> np.ndarray:
    """A number for each normalised text: (texts,), uint64."""
    digests = (hashlib.blake2b(normalised(text).encode(), digest_size=8).digest()
               for batch in split.iter(1000) for text in batch["text"])
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def without_repeats(splits: DatasetDict) -> DatasetDict:
    """Drop from a split the texts that a later one has too, and say how many."""
    kept, keys = DatasetDict(splits), {name: text_keys(split) for name, split in splits.items()}
    for name, later in (("validation", ["test"]), ("train", ["validation", "test"])):
        repeated = np.isin(keys[name], np.concatenate([keys[other] for other in later]))
        if repeated.any():
            print(f"warning: {repeated.sum()} texts of the {name} split are also in "
                  f"{' or '.join(later)}: dropped from {name}")
            kept[name] = splits[name].select(np.flatnonzero(~repeated))
    return kept


def alike(labels: list[str]) -> list[str]:
    """The labels that differ from another in case, white space or spelling of a number alone."""
    def key(label: str) -> str | Decimal:
        with suppress(InvalidOperation):
            if (number := Decimal(label)).is_finite():
                return number
        return normalised(label)

    counts = Counter(map(key, labels))
    return [label for label in labels if counts[key(label)] > 1]


def load_splits(data: str, text_column: str = "text", label_column: str = "label",
                config: str | None = None, revision: str | None = None,
                seed: int = 42) -> DatasetDict:
    """Train, validation and test splits with the string columns `text` and `label`.

    `data` is a file, a folder with files of splits, or a dataset on the hub.
    No text of a later split is in an earlier one. Raises InputError where that
    cannot be had.
    """
    if text_column == label_column:
        raise InputError(f"column {text_column!r} cannot hold both the texts and the labels: "
                         "choose with --text-column and --label-column")
    tables = find_tables(data, [text_column, label_column], config, revision)
    found = {name: read_split(name, tables[name], text_column, label_column)
             for name in SPLITS if name in tables}
    splits = DatasetDict({name: split for name, split in found.items() if split is not None})
    source = tables["train"].name
    if len(splits["train"].unique("label")) < 2:
        raise InputError(f"{source} has a single class in column {label_column!r}: "
                         "there is nothing to tell apart")
    for name, part in (("test", 5), ("validation", 10)):
        if name not in splits:
            size = len(splits["train"]) // part
            try:
                splits["train"], splits[name] = split_off(splits["train"], size, seed)
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
    splits = without_repeats(splits).flatten_indices()  # read in order, a large file is fast
    known = set(splits["train"].unique("label"))
    if not all(map(len, splits.values())) or len(splits["test"]) < 2 or len(known) < 2:
        raise InputError(f"{data} has too few rows that are in one split only, to train, to "
                         "validate or to test: give more examples")
    for name in ("validation", "test"):
        unknown = sorted(set(splits[name].unique("label")) - known)
        if unknown:
            where = tables[name].name if found.get(name) else source
            raise InputError(f"{where}: the {name} split has labels that training never sees: "
                             f"{shortened(', '.join(unknown))}: add examples or remove the rows")
    return splits
