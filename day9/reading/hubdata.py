"""Datasets on the hub as tables. Written by hand, not tangled."""

from collections.abc import Iterable

from datasets import Dataset, DatasetDict, load_dataset

from day9.hub import ask_hub, cannot_load
from day9.reading.parquet import arrow_table
from day9.reading.tables import Table


def hub_table(name: str, split: Dataset) -> Table:
    """A split of a dataset on the hub."""
    def batches(asked: list[str]) -> Iterable:
        return split.select_columns(asked).with_format("arrow").iter(1000)

    return arrow_table(name, split.column_names, split.features, batches)


def hub_tables(data: str, config: str | None, revision: str | None) -> dict[str, Table]:
    """The splits of a dataset on the hub, by the names they have there.

    Raises InputError where it cannot be loaded. Where the hub does not answer,
    load_dataset itself takes what the cache of this machine holds.
    """
    try:
        ask_hub(data, "data", revision)
        found = DatasetDict(load_dataset(data, config, revision=revision))
    except Exception as error:  # the hub's exceptions have no common class
        raise cannot_load(error, data, "data") from error
    return {name: hub_table(f"the {name} split of {data}", split) for name, split in found.items()}
