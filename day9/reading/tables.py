"""Tables: columns by name, and rows that are checked and kept. Written by hand, not tangled."""

import mmap
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
from datasets import Dataset

from day9.errors import InputError, shortened
from day9.reading.values import LONE_SURROGATE, NOT_PLAIN, ONE_PER_ROW, is_missing, normalised

Convert = Callable[[object], str | None]  # raises ValueError, with a kind and a remedy


@dataclass
class Table:
    """A file, or a split on the hub: its columns, and its rows as often as asked for."""

    name: str  # for messages
    columns: list[str]
    rows: Callable[[list[str]], Iterator[tuple[str, Sequence]]]  # name of a row, some columns


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
        if normalised(name) == normalised(column):
            raise InputError(f"{table.name}: no column {column!r}, but {name!r}: rename it, or "
                             f"choose it with {option_name}")
    names = [name for name in table.columns if table.columns.count(name) == 1]
    _, values = next(table.rows(names), ("", [None] * len(names)))
    kinds = [NOT_PLAIN.get(type(value), ("", ""))[0] for value in values]
    there = (shortened(name) + (kind and f" ({kind})") for name, kind in zip(names, kinds))
    remedies = [f"choose with {option_name}"] * ("" in kinds) + [ONE_PER_ROW] * any(kinds)
    raise InputError(f"{table.name}: no column {column!r}; there are "
                     f"{shortened(', '.join(there), 200)}: {', or '.join(remedies)}")


def has_labels(table: Table, label_column: str) -> bool:
    """True if some row has a label."""
    return label_column in table.columns and any(
        not is_missing(label) and str(label).strip() for _, [label] in table.rows([label_column]))


def store(table: Table, convert: dict[str, Convert], columns: list[str]) -> Dataset:
    """The strings of a table as a dataset with these columns. Raises InputError if it cannot be.

    They need not fit into memory: they are in a file without a name, which ends with the process,
    even one that is killed. Texts can be private.
    """
    schema, rows = pa.schema([(name, pa.string()) for name in columns]), strings(table, convert)
    try:
        with tempfile.TemporaryFile() as file:
            with pa.ipc.new_stream(file, schema) as stream:
                while batch := list(islice(rows, 100)):
                    arrays = [pa.array(cells, pa.string()) for cells in zip(*batch)]
                    stream.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot keep the rows of {table.name} in a temporary file: "
                         f"{error.strerror}: make room, or set TMPDIR to another folder") from error
    stored = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    if not len(stored):
        raise InputError(f"{table.name} is empty: give one with rows")
    return Dataset(stored, fingerprint=secrets.token_hex(8))  # its own would read all the rows
