#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import csv
import hashlib
import sys
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError, httpx
from sklearn.model_selection import train_test_split

class InputError(Exception):
    """Something the user gave cannot be used; the message names it and the mend."""


def causes(error: BaseException) -> list[BaseException]:
    """An exception and those it was raised from, the first cause last."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    return chain


def one_line(error: BaseException) -> str:
    """An exception's text in one line, not too long, or its name where it has none."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]

NOT_CACHED = "the cache does not hold it, and the hub does not answer or HF_HUB_OFFLINE is set: check --{name}, try again, or name a folder"
HUB_MENDS = {  # by the name of the exception; the first that fits
    "GatedRepoError": "its owner gives access on request: ask for it on its page on the hub, and log in with `hf auth login`",
    "RevisionNotFoundError": "there is no such revision: check --{revision}",
    "RepositoryNotFoundError": "there is no such folder, and the hub shows nothing of that name: check --{name}, and where it is private log in with `hf auth login`",
    "HFValidationError": "there is no such folder, and nothing on the hub can have that name: check --{name}",
    "TransportError": "the download broke off: try again",
    "LocalEntryNotFoundError": NOT_CACHED,
    "ConnectionError": NOT_CACHED,
    "HfHubHTTPError": "the hub refuses the login: log in again with `hf auth login`",
}


def cannot_load(error: Exception, name: str, option_name: str) -> InputError:
    """What to say when a folder or something on the hub cannot be loaded; `option_name` is "model" or "data"."""
    chain = causes(error)
    kinds = [kind.__name__ for cause in chain for kind in type(cause).__mro__]
    known = next((mend for kind, mend in HUB_MENDS.items() if kind in kinds), None)
    if known:
        mend = known.format(name=option_name, revision="revision" if option_name == "model" else "data-revision")
    else:
        among = ", and choose a configuration with --data-config" if "onfig name" in str(error) or "BuilderConfig" in str(error) else ""
        mend = f"{one_line(chain[-1])}: check --{option_name}{among}"
    return InputError(f"cannot load the {option_name} {name}: {mend}")

def ask_hub(name: str, option_name: str, revision: str | None) -> None:
    """Raise what the hub answers when asked for a model or dataset once; where it does not answer, go on without it."""
    if Path(name).exists() or constants.is_offline_mode():
        return
    file, kind = ("config.json", "model") if option_name == "model" else (f"{name.split('/')[-1]}.py", "dataset")
    try:
        get_hf_file_metadata(hf_hub_url(name, file, repo_type=kind, revision=revision))
    except EntryNotFoundError:
        pass  # there is such a repository, and that was the question
    except (HfHubHTTPError, httpx.HTTPError) as error:
        if getattr(getattr(error, "response", None), "status_code", 503) in (401, 403, 404):
            raise
        print(f"warning: the hub does not answer ({one_line(error)}): only its cache on this machine is used")
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True

SPLITS = ("train", "validation", "test")
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def check_bytes(path: Path) -> None:
    """Raise InputError, with line and byte, where a text file is not UTF-8 or holds a NUL."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {number}, byte {error.start + 1} ({line[error.start]:#04x}): not UTF-8: save the file as UTF-8") from error
            if b"\0" in line:
                raise InputError(f"{path}, line {number}, byte {line.index(0) + 1}: a NUL byte: remove it, or save the file as UTF-8")


def csv_options(path: Path) -> dict:
    """How to read a csv or tsv file so that every field is text. Raises InputError where a row has too many or too few fields."""
    separator = "\t" if path.suffix == ".tsv" else ","
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, delimiter=separator)
        header = next(lines, [])
        for row, cells in enumerate(lines, start=1):
            if cells and len(cells) != len(header):
                raise InputError(f"{path}, row {row}, which ends in line {lines.line_num}, has {len(cells)} fields and the header {len(header)}: "
                                 f"put texts that hold {separator!r} in quotes, and close every quote")
    return {"sep": separator, "features": Features({name or f"Unnamed: {i}": Value("string") for i, name in enumerate(header)}), "keep_default_na": False,
            "index_col": False, "skip_blank_lines": len(header) > 1}

def read_file(path: Path) -> Dataset:
    """The rows of a file, read by the datasets library, which keeps them on disk."""
    if path.suffix not in READERS:
        raise InputError(f"{path} is none of {', '.join(READERS)}: convert it, or mend its suffix")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty: give a file with rows")
    try:
        if path.suffix != ".parquet":
            check_bytes(path)
        options = csv_options(path) if READERS[path.suffix] == "csv" else {}
        return load_dataset(READERS[path.suffix], data_files=str(path), split="train", **options)
    except InputError:
        raise
    except Exception as error:  # every reader wraps its failures in its own way
        cause = one_line(error.__cause__ or error)
        raise InputError(f"cannot read {path}: {'empty, a file without rows' if 'corresponds to no data' in cause else cause}") from error


def find_data(data: str, config: str | None = None, revision: str | None = None) -> DatasetDict:
    """A file, a folder of split files, or a dataset on the hub, with whatever splits it has."""
    path = Path(data)
    if path.is_file():
        return DatasetDict({"train": read_file(path)})
    if path.is_dir():
        files = {split: [file for file in path.glob(f"{split}.*") if file.suffix in READERS] for split in SPLITS}
        if not files["train"] or max(map(len, files.values())) > 1:
            raise InputError(f"{data} must hold one train file, and at most one validation and one test file, of {', '.join(READERS)}")
        return DatasetDict({split: read_file(found[0]) for split, found in files.items() if found})
    try:
        ask_hub(data, "data", revision)
        return DatasetDict(load_dataset(data, config, revision=revision))
    except Exception as error:
        raise cannot_load(error, data, "data") from error

def require_column(split: Dataset, column: str, option_name: str) -> None:
    """Raise InputError if there is no such column."""
    if column not in split.column_names:
        raise InputError(f"no column {column!r}; there are {', '.join(split.column_names)}: choose with {option_name}")


def two_columns(split: Dataset, text_column: str, label_column: str) -> Dataset:
    """Keep the text and the label, as strings, under the names `text` and `label`."""
    require_column(split, text_column, "--text-column")
    require_column(split, label_column, "--label-column")
    names = split.features[label_column]

    def as_strings(batch, rows):
        texts, given = batch[text_column], batch[label_column]
        if isinstance(names, ClassLabel):
            given = [None if i is None or i < 0 else names.int2str(i) for i in given]
        for row, text, label in zip(rows, texts, given):
            if text is None or label is None or not str(label).strip():
                raise InputError(f"row {row + 1} has no {'text' if text is None else 'label'}: fill it in or remove the row")
        return {"text": [str(text) for text in texts], "label": [str(label) for label in given]}

    return split.map(as_strings, with_indices=True, batched=True, remove_columns=split.column_names,
                     features=Features({"text": Value("string"), "label": Value("string")}))

def cut_off(split: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split in two, stratified by label; the second part has `size` rows, and no fewer than there are labels."""
    labels = split["label"][:]
    try:
        kept, cut = train_test_split(range(len(split)), test_size=max(size, len(set(labels))), stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"the data cannot be split by class ({error}): add examples, or give validation and test files") from error
    return split.select(kept), split.select(cut)

def normalised(text: str) -> str:
    """The same for texts that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def keys(split: Dataset) -> np.ndarray:
    """A number for each normalised text: (texts,), uint64."""
    digest = lambda text: hashlib.blake2b(normalised(text).encode(), digest_size=8).digest()
    return np.frombuffer(b"".join(digest(text) for batch in split.iter(1000) for text in batch["text"]), dtype=np.uint64)


def without_repeats(splits: DatasetDict) -> DatasetDict:
    """The splits without what of training is also in validation or test, and what of validation is also in test; says what it drops."""
    kept, found = DatasetDict(splits), {name: keys(split) for name, split in splits.items()}
    for name, later in (("validation", ["test"]), ("train", ["validation", "test"])):
        repeated = np.isin(found[name], np.concatenate([found[other] for other in later]))
        if repeated.any():
            print(f"warning: {repeated.sum()} texts of the {name} split are also in {' or '.join(later)}: dropped from {name}")
            kept[name] = splits[name].select(np.flatnonzero(~repeated))
    return kept
