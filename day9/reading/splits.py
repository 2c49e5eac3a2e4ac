"""Train, validation and test splits, and single files. Written by hand, not tangled."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from day9.errors import InputError, shortened
from day9.hub import check_pointer, load_hub_dataset
from day9.reading.csvfile import csv_table
from day9.reading.jsonfile import json_table
from day9.reading.parquet import hub_table, parquet_table
from day9.reading.tables import Table, check_kind, require_column, strings, with_names
from day9.reading.values import (as_written, in_one_string, is_blank, look, normalised,
                                 required)
from day9.storage import store

READERS = {".csv": csv_table, ".tsv": csv_table, ".json": json_table, ".jsonl": json_table,
           ".parquet": parquet_table}
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # what a name has between its other words: latest.csv is no test
    "train": "train(ing)?", "test": "test(ing)?|h[eo]ld[-_ ]?out",
    "validation": "val(id(at(e|ion))?)?|dev|eval(uation)?"}
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(-[0-9a-f]+)?")


def open_table(path: Path, wanted: list[str]) -> Table:
    """A file; the texts are the first of the wanted columns. Raises InputError if it is none."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path} is none of {', '.join(READERS)}: convert it, or correct its "
                         "suffix")
    try:
        check_pointer(path)
        check_kind(path)
        table = READERS[suffix](path, wanted) if path.stat().st_size else None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not table or not table.columns:
        raise InputError(f"{path} is empty: give a file with rows")
    return with_names(table, wanted)


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


def split_of(name: str) -> tuple[str | None, bool]:
    """The split that a name tells of, if it is one alone, and whether it says nothing else."""
    told = [(split, re.fullmatch(words, name.lower()) is not None)
            for split, words in SPLIT_WORDS.items()
            if re.search(rf"(?<![^\W\d_])({words})(?![^\W\d_])", name.lower())]
    return told[0] if len(told) == 1 else (None, False)


def name_splits(names: dict[str, str], source: str) -> dict[str, str]:
    """Which name, by the words given for it, is which split. Raises InputError if that is open."""
    found, told = {}, {name: split_of(stem) for name, stem in names.items()}
    for split in SPLITS:
        exact = [name for name in names if told[name] == (split, True)]
        fitting = exact or [name for name in names if told[name] == (split, False)]
        if len(fitting) > 1:
            raise InputError(f"{fitting[0]} and {fitting[1]} of {source} are both for {split}: "
                             "give a folder with only one of them")
        found |= {split: name for name in fitting}
    if "train" not in found:
        there = f"; there are {shortened(', '.join(names))}" if names else ""
        raise InputError(f"{source} has no train split{there}: give one that has, or the path of a "
                         f"file of {', '.join(READERS)}")
    if unused := [name for name in names if name not in found.values()]:
        print(f"warning: {source} has what is not used: {shortened(', '.join(unused), 200)} "
              "(one is used for each split, by its name, such as test)")
    return found


def find_files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by name, shards together. Raises InputError if one is missing."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in READERS and not path.name.startswith("."):
            shard = SHARD.fullmatch(path.stem)
            name = f"{shard[1]}-*-of-{shard[3]}{path.suffix}" if shard else path.name
            found.setdefault(name, []).append(path)
        elif path.is_file() and split_of(path.name.split(".")[0])[1]:
            print(f"warning: {path} is left out: it is none of {', '.join(READERS)}")
    for name, paths in found.items():
        numbers = [SHARD.fullmatch(path.stem) for path in paths]
        if numbers[0] and [int(shard[2]) for shard in numbers] != [*range(int(numbers[0][3]))]:
            raise InputError(f"{folder / name}: {len(paths)} files, not each number once: get all")
    return found


def open_together(paths: list[Path], wanted: list[str]) -> Table:
    """The rows of several files in turn, with the columns that all have."""
    tables = [open_table(path, wanted) for path in paths]
    columns = [each for each in tables[0].columns if all(each in other.columns for other in tables)]
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return Table(f"{tables[0].name}{more}", columns,
                 lambda asked: chain.from_iterable(table.rows(asked) for table in tables))


def folder_tables(folder: Path, wanted: list[str]) -> dict[str, Table]:
    """The tables of a folder by split: from its files, and from folders named like a split."""
    files = find_files(folder)
    names = {name: name.rpartition(".")[0].partition("-*-of-")[0] for name in files}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if split_of(inner.name)[0]:
            more = {f"{inner.name}/{name}": paths for name, paths in find_files(inner).items()}
            files, names = files | more, names | dict.fromkeys(more, inner.name)
    found = name_splits(names, str(folder))
    return {split: open_together(files[name], wanted) for split, name in found.items()}


def rows_of_split(table: Table, column: str, values: set[str]) -> Table:
    """The rows of a table that have one of the values in a column."""
    def rows(asked: list[str]) -> Iterator[tuple[str, Sequence]]:
        every = list(dict.fromkeys([*asked, column]))
        for name, cells in table.rows(every):
            if str(cells[every.index(column)]) in values:
                yield name, cells[:len(asked)]

    return Table(table.name, table.columns, rows)


def tables_by_column(table: Table, wanted: list[str]) -> dict[str, Table]:
    """A table as one for each split that its column `split` names; as train alone without one."""
    columns = [name for name in table.columns if normalised(name) == "split"]
    if len(columns) != 1 or columns[0] in wanted:
        return {"train": table}
    told = {str(value): split_of(str(value).strip()) for _, [value] in table.rows(columns)}
    odd = [value for value, (_, exact) in told.items() if not exact] or list(told)
    if ("train", True) in told.values() and all(exact for _, exact in told.values()):
        return {split: rows_of_split(table, columns[0], {
            value for value in told if told[value][0] == split}) for split, _ in told.values()}
    if told:
        print(f"warning: column {columns[0]!r} of {table.name} is not used: it should name "
              f"splits, train among them, and has {shortened(', '.join(odd))!r}")
    return {"train": table}


def find_tables(data: str, wanted: list[str], config: str | None,
                revision: str | None) -> dict[str, Table]:
    """The tables of a file, a folder or a dataset on the hub, by split. Raises InputError."""
    path = Path(data)
    try:
        if path.exists():
            found = folder_tables(path, wanted) if path.is_dir() else {
                "train": open_table(path, wanted)}
            by_column = tables_by_column(found.pop("train"), wanted)
            for split in by_column.keys() & found:
                print(f"warning: {data} has a {split} file: the {split} rows of train are not used")
            return by_column | found
    except OSError as error:
        raise InputError(f"{shortened(data)}: {error.strerror}: check --data") from error
    if path.suffix.lower() in READERS:
        raise InputError(f"there is no file {data}: check --data")
    dataset = load_hub_dataset(data, config, revision)
    exact = {name: name if split_of(name)[1] else "" for name in dataset}
    return {split: with_names(hub_table(f"the {name} split of {data}", dataset[name]), wanted)
            for split, name in name_splits(exact, data).items()}


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
            alike = [f" ({ascii(label)} looks like {ascii(known)} of train)" for label in unknown
                     for known in labels["train"] if look(known) == look(label)]
            raise InputError(f"{tables.get(name, tables['train']).name}: the {name} split has "
                             f"labels that training never sees: {shortened(', '.join(unknown))}"
                             f"{''.join(alike[:1])}: add examples or remove the rows")
    return splits
