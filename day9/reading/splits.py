"""Train, validation and test splits, and single files. Written by hand, not tangled."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from day9.errors import InputError, shortened
from day9.hub import check_pointer, load_hub_dataset
from day9.reading.csvfile import csv_table
from day9.reading.jsonfile import json_table
from day9.reading.parquet import hub_table, parquet_table
from day9.reading.tables import Table, require_column, strings
from day9.reading.values import as_written, in_one_string, is_blank, normalised, required
from day9.storage import store

READERS = {".csv": csv_table, ".tsv": csv_table, ".json": json_table, ".jsonl": json_table,
           ".parquet": parquet_table}
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(
    ("val", "valid", "dev", "eval"), "validation")


def open_table(path: Path, wanted: list[str]) -> Table:
    """A file; the texts are the first of the wanted columns. Raises InputError if it is none."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path} is none of {', '.join(READERS)}: convert it, or correct its "
                         "suffix")
    try:
        check_pointer(path)
        table = READERS[suffix](path, wanted) if path.stat().st_size else None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not table or not table.columns:
        raise InputError(f"{path} is empty: give a file with rows")
    return table


def read_table(path: Path, text_column: str) -> Dataset:
    """A file with all its columns as strings; a missing text is empty. Raises InputError."""
    if not path.is_file():
        raise InputError(f"there is no file {path}: check --data")
    table = open_table(path, [text_column])
    for column in (text_column, *table.columns):
        require_column(table, column, "--text-column")
    convert = dict.fromkeys(table.columns, in_one_string)
    convert[text_column] = lambda text: as_written(text) or ""
    return store(table.name, table.columns, strings(table, convert))


def name_splits(names: list[str], source: str) -> dict[str, str]:
    """Which name is which split. Raises InputError if none is train, or two are the same."""
    found: dict[str, str] = {}
    for name in names:
        stem = name.split(".")[0] if Path(name).suffix.lower() in READERS else name
        split = SPLIT_NAMES.get(stem.lower())
        if split in found:
            raise InputError(f"{found[split]} and {name} of {source} are both for {split}: give a "
                             "folder with only one of them")
        if split:
            found[split] = name
    if "train" not in found:
        there = f"; there are {shortened(', '.join(names))}" if names else ""
        raise InputError(f"{source} has no train split{there}: give one that has, or the path of a "
                         f"file of {', '.join(READERS)}")
    return found


def find_tables(data: str, wanted: list[str], config: str | None,
                revision: str | None) -> dict[str, Table]:
    """The tables of a file, a folder or a dataset on the hub, by split. Raises InputError."""
    path = Path(data)
    if path.is_file():
        return {"train": open_table(path, wanted)}
    if path.is_dir():
        names = []
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in READERS:
                names.append(file.name)
            elif file.stem.lower() in SPLIT_NAMES and file.is_file():
                print(f"warning: {file} is left out: it is none of {', '.join(READERS)}")
        found = name_splits(names, data)
        return {split: open_table(path / name, wanted) for split, name in found.items()}
    if path.suffix.lower() in READERS:
        raise InputError(f"there is no file {data}: check --data")
    dataset = load_hub_dataset(data, config, revision)
    return {split: hub_table(f"the {name} split of {data}", dataset[name])
            for split, name in name_splits(list(dataset), data).items()}


def read_split(name: str, table: Table, text_column: str, label_column: str) -> Dataset | None:
    """Texts and labels of a split; None, with a warning, if it is not train and has no labels."""
    require_column(table, text_column, "--text-column")
    if name != "train" and (label_column not in table.columns or all(
            is_blank(label) for _, [label] in table.rows([label_column]))):
        print(f"warning: {table.name} has no labels in column {label_column!r}: the {name} split "
              "is cut from train instead")
        return None
    require_column(table, label_column, "--label-column")
    convert = {text_column: partial(required, "text"), label_column: partial(required, "label")}
    return store(table.name, ["text", "label"], strings(table, convert))


def split_off(split: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Cut off `size` rows, or one per label if that is more, stratified. Raises InputError."""
    labels = split["label"][:]
    try:
        kept, cut = train_test_split(range(len(split)), test_size=max(size, len(set(labels))),
                                     stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"the data cannot be split by class ({error}): add examples, or give "
                         "validation and test files") from error
    return split.select(kept), split.select(cut)


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


def load_splits(data: str, text_column: str = "text", label_column: str = "label",
                config: str | None = None, revision: str | None = None,
                seed: int = 42) -> DatasetDict:
    """Train, validation and test splits with the string columns `text` and `label`.

    `data` is a file, a folder with files of splits, or a dataset on the hub. No text of a later
    split is in an earlier one. Raises InputError where that cannot be had.
    """
    if text_column == label_column:
        raise InputError(f"column {text_column!r} cannot hold both the texts and the labels: "
                         "choose with --text-column and --label-column")
    tables = find_tables(data, [text_column, label_column], config, revision)
    splits = DatasetDict()
    for name in SPLITS:
        if name in tables and (split := read_split(name, tables[name], text_column, label_column)):
            splits[name] = split
    if len(set(splits["train"]["label"][:])) < 2:
        raise InputError(f"{tables['train'].name} has a single class in column {label_column!r}: "
                         "there is nothing to tell apart")
    if not any(text.strip() for text in splits["train"]["text"]):
        raise InputError(f"{tables['train'].name} has no words in column {text_column!r}: choose "
                         "the texts with --text-column")
    for name, part in (("test", 5), ("validation", 10)):
        if name not in splits:
            size = len(splits["train"]) // part
            splits["train"], splits[name] = split_off(splits["train"], size, seed)
    splits = without_repeats(splits)
    labels = {name: set(split["label"][:]) for name, split in splits.items()}
    words = any(text.strip() for text in splits["train"]["text"])
    if not (words and all(labels.values())) or len(splits["test"]) < 2 or len(labels["train"]) < 2:
        raise InputError(f"{data} has too few rows that are in one split only, to train, to "
                         "validate or to test: give more examples")
    for name in ("validation", "test"):
        if unknown := sorted(labels[name] - labels["train"]):
            raise InputError(f"{tables.get(name, tables['train']).name}: the {name} split has "
                             f"labels that training never sees: {shortened(', '.join(unknown))}: "
                             "add examples or remove the rows")
    return splits
