"""Rows of strings on the disk, in files without a name. Written by hand, not tangled."""

import mmap
import secrets
import tempfile
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
from datasets import Dataset

from day9.errors import InputError


def store(name: str, columns: list[str], rows: Iterator[list[str | None]]) -> Dataset:
    """Rows of strings as a dataset that need not fit into memory.

    Its file has no name and so ends with the process, even one that is killed: texts can be
    private. What the datasets library makes of it, by map or select, stays in memory. Raises
    InputError, with the name of what the rows are from, if there are none or the disk is full.
    """
    schema = pa.schema([(column, pa.string()) for column in columns])
    try:
        with tempfile.TemporaryFile() as file:
            with pa.ipc.new_stream(file, schema) as stream:
                while batch := list(islice(rows, 100)):
                    arrays = [pa.array(cells, pa.string()) for cells in zip(*batch)]
                    stream.write_batch(pa.record_batch(arrays, schema=schema))
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"cannot keep the rows of {name} in a temporary file: {error.strerror}: "
                         "make room, or set TMPDIR to another folder") from error
    stored = pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()
    if not len(stored):
        raise InputError(f"{name} is empty: give one with rows")
    return Dataset(stored, fingerprint=secrets.token_hex(8))  # its own would read all the rows
