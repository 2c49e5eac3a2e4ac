"""Files of any format, by their suffix. Written by hand, not tangled."""

from pathlib import Path

from datasets import Dataset

from day9.errors import InputError
from day9.hub import check_pointer
from day9.reading.csvfile import csv_table
from day9.reading.jsonfile import json_table
from day9.reading.parquet import parquet_table
from day9.reading.tables import Table, require_column, store
from day9.reading.values import as_written, in_one_string

READERS = {".csv": csv_table, ".tsv": csv_table, ".json": json_table, ".jsonl": json_table,
           ".parquet": parquet_table}


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
    convert = dict.fromkeys(table.columns, in_one_string)
    convert[text_column] = lambda text: as_written(text) or ""
    return store(table, convert, table.columns)
