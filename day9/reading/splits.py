"""Train, validation and test splits, none of which has a text of another.

Written by hand, not tangled.
"""

import hashlib
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import train_test_split

from day9.errors import InputError, shortened
from day9.reading.files import READERS, open_table
from day9.reading.hubdata import hub_tables
from day9.reading.tables import Table, has_labels, require_column, store
from day9.reading.values import label_of, normalised, text_of

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | dict.fromkeys(
    ("val", "valid", "dev", "eval"), "validation")


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


def hub_splits(data: str, config: str | None, revision: str | None) -> dict[str, Table]:
    """The hub_tables by split. Raises InputError if there is no train split, or two are one."""
    found, tables = hub_tables(data, config, revision), {}
    for name, table in found.items():
        split = SPLIT_NAMES.get(name, name)
        if split in tables:
            raise InputError(f"{tables[split].name} and its {name} split are both for {split}: "
                             "save the right one as a file, and give a folder of files")
        tables[split] = table
    if "train" not in tables:
        raise InputError(f"{data} has no train split; there are {', '.join(found)}: "
                         "give one that has")
    return tables


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
    return hub_splits(data, config, revision)


def read_split(name: str, table: Table, text_column: str, label_column: str) -> Dataset | None:
    """Texts and labels of a split; None, with a warning, if it is not train and has no labels."""
    require_column(table, text_column, "--text-column")
    if name != "train" and not has_labels(table, label_column):
        print(f"warning: {table.name} has no labels in column {label_column!r}: the {name} split "
              "is cut from train instead")
        return None
    require_column(table, label_column, "--label-column")
    return store(table, {text_column: text_of, label_column: label_of}, ["text", "label"])


def labels_of(split: Dataset) -> set[str]:
    """The labels that a split has."""
    return set(split["label"][:])


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
    if len(labels_of(splits["train"])) < 2:
        raise InputError(f"{source} has a single class in column {label_column!r}: "
                         "there is nothing to tell apart")
    for name, part in (("test", 5), ("validation", 10)):
        if name not in splits:
            size = len(splits["train"]) // part
            try:
                splits["train"], splits[name] = split_off(splits["train"], size, seed)
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
    splits = without_repeats(splits)
    known = labels_of(splits["train"])
    if not all(map(len, splits.values())) or len(splits["test"]) < 2 or len(known) < 2:
        raise InputError(f"{data} has too few rows that are in one split only, to train, to "
                         "validate or to test: give more examples")
    for name in ("validation", "test"):
        if unknown := sorted(labels_of(splits[name]) - known):
            where = tables[name].name if found.get(name) else source
            raise InputError(f"{where}: the {name} split has labels that training never sees: "
                             f"{shortened(', '.join(unknown))}: add examples or remove the rows")
    return splits
