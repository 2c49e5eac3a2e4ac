"""Parquet files, and datasets on the hub, as tables. Written by hand, not tangled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from day9.errors import InputError, one_line
from day9.reading.tables import Table


def with_text(kind: pa.DataType, every: pa.DataType | None) -> pa.DataType:
    """A type with `every` in place of its dates and times; None makes all time zones UTC."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(with_text(field.type, every)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(with_text(kind.value_type, every))
    if every:
        return every if pa.types.is_temporal(kind) or pa.types.is_dictionary(kind) else kind
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


def arrow_values(name: str, column: pa.Array | pa.ChunkedArray,
                 names: dict[int, str] | None) -> Sequence:
    """The values of an Arrow column; numbers of classes become their names.

    Dates that Python cannot hold are as Arrow writes them. Raises InputError if it cannot.
    """
    kind = column.type
    if kind in (pa.float16(), pa.float32()):  # 0.1, which Python's float would make longer
        return column.to_numpy(zero_copy_only=False)
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError):  # pa.ArrowInvalid, of a time zone, is a ValueError
        try:
            column = column.cast(with_text(kind, None)).cast(with_text(kind, pa.string()))
            values = column.to_pylist()
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise InputError(f"{name} has unreadable {kind} values: store strings") from error
    return [names.get(value) for value in values] if names else values


def arrow_table(name: str, columns: list[str], features: Features,
                batches: Callable[[list[str]], Iterable]) -> Table:
    """A Table from `batches` of some of its columns; `features` has the names of classes."""
    classes = {column: dict(enumerate(feature.names)) for column, feature in features.items()
               if isinstance(feature, ClassLabel)}

    def rows(asked: list[str]) -> Iterator[tuple[str, tuple]]:
        row = 0
        for batch in batches(asked):
            found = [arrow_values(name, batch.column(each), classes.get(each)) for each in asked]
            for row, values in enumerate(zip(*found), start=row + 1):
                yield f"{name}: row {row}", values

    return Table(name, columns, rows)


@contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """An open parquet file. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {one_line(error)}: write it again") from error


def parquet_table(path: Path, wanted: list[str]) -> Table:
    """A parquet file, with the names of classes that the datasets library keeps in it."""
    def batches(asked: list[str]) -> Iterator[pa.RecordBatch]:
        with parquet_file(path) as parquet:
            yield from parquet.iter_batches(1000, columns=asked)

    with parquet_file(path) as parquet:
        schema = parquet.schema_arrow
        numbers = [field for field in schema if pa.types.is_integer(field.type)]  # as classes are
        features = Features.from_arrow_schema(pa.schema(numbers, schema.metadata))
    return arrow_table(str(path), schema.names, features, batches)


def hub_table(name: str, split: Dataset) -> Table:
    """A split of a dataset on the hub."""
    def batches(asked: list[str]) -> Iterable[pa.Table]:
        return split.select_columns(asked).with_format("arrow").iter(1000)

    return arrow_table(name, split.column_names, split.features, batches)
