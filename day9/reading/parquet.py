"""Parquet files, and datasets on the hub, as tables. Written by hand, not tangled."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features

from day9.errors import InputError, one_line
from day9.reading.tables import Table


def arrow_values(column: pa.Array | pa.ChunkedArray, names: dict[int, str] | None) -> Sequence:
    """The values of an Arrow column; numbers of classes become their names."""
    if column.type in (pa.float16(), pa.float32()):  # 0.1, which Python's float would make longer
        return column.to_numpy(zero_copy_only=False)
    values = column.to_pylist()
    return [names.get(value) for value in values] if names else values


def arrow_table(name: str, columns: list[str], features: Features,
                batches: Callable[[list[str]], Iterable]) -> Table:
    """A Table from `batches` of some of its columns; `features` has the names of classes."""
    classes = {column: dict(enumerate(feature.names)) for column, feature in features.items()
               if isinstance(feature, ClassLabel)}

    def rows(asked: list[str]) -> Iterator[tuple[str, tuple]]:
        row = 0
        for batch in batches(asked):
            found = [arrow_values(batch.column(each), classes.get(each)) for each in asked]
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
