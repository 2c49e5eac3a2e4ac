"""The published figure's protocol: five folds of all GARD questions. Written by hand, not tangled.

python -m benchmarks.folds measures the folds that outputs/folds.json lacks. All 2,937 rows and
thirteen types, every row tested once, by systems that were trained on the other folds. A tenth of
those rows, cut off as main.py does it, is for validation: it chooses the epoch, the temperature and
C. No test row has a part in any choice. The folds are made twice: as they come, where a repeated
question can be in training and test, and with near-copies, repeats included, in the same fold.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from benchmarks.systems import SYSTEMS, find_result, judge, measure_missing
from day9.errors import quieten_libraries
from day9.reading.splits import split_off
from day9.settings import HERE, SMALL_LLAMA, Settings
from tools.health_questions import FOLDER, NAMES, SEED, SHA256, near_copies, read_source

PUBLISHED = "published: 85.3 (Kearns and Thomas 2018, abstract)"
FOLDS = 5
REPEATS = ("as they are", "in one fold")
OTHER_NAMES = {"Other": "other", "NotDisease": "not a disease", "Anatomy": "anatomy"}
RAN = ("tfidf", "embeddings", "fine_tuned")


def make_folds(repeats: str) -> Iterator[DatasetDict]:
    """The splits of each fold."""
    texts, kinds = zip(*read_source(FOLDER / "source" / "GARD.tsv"))
    names = NAMES | OTHER_NAMES
    rows = Dataset.from_dict({"text": texts, "label": [names[kind] for kind in kinds]})
    groups = near_copies(texts) if repeats == "in one fold" else None
    folds = StratifiedGroupKFold if groups else StratifiedKFold
    for others, test in folds(FOLDS, shuffle=True, random_state=SEED).split(rows, kinds, groups):
        training, validation = split_off(rows.select(others), len(others) // 10, SEED)
        yield DatasetDict(train=training, validation=validation, test=rows.select(test))


def find_cells() -> list[dict]:
    """All that is to be measured; the cheap systems come first."""
    return [{"repeats": repeats, "fold": fold, "system": system}
            for system in RAN for repeats in REPEATS for fold in range(1, FOLDS + 1)]


def table(results: list[dict]) -> pd.DataFrame:
    """The accuracy in per cent of each system on each fold's n test rows, and the folds' mean."""
    cells = pd.DataFrame([find_result(cell, results) or cell for cell in find_cells()])
    cells = cells.reindex(columns=["repeats", "fold", "system", "n", "accuracy"])
    means = cells.groupby(["repeats", "system"], as_index=False).agg(
        {"n": "sum", "accuracy": lambda folds: folds.mean(skipna=False)})
    cells = pd.concat([cells.astype({"fold": str}), means.assign(fold="mean")])
    cells["accuracy"] = ["open" if pd.isna(value) else f"{100 * value:.1f}"
                         for value in cells["accuracy"]]
    rows = ["repeats", "fold"]
    found = cells.pivot(index=rows, columns="system", values="accuracy")[list(RAN)]
    found.insert(0, "n", cells.groupby(rows)["n"].max().fillna(0).astype(int))
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure fold after fold, write after each what is known, and print the table."""
    parser = argparse.ArgumentParser(description="Five folds of all GARD questions.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="folder or hub id")
    parser.add_argument("--systems", nargs="+", choices=RAN, default=list(RAN))
    parser.add_argument("--output", type=Path, default=HERE / "outputs" / "folds.json",
                        help="what is in it is not measured again")
    args = parser.parse_args(argv)
    quieten_libraries()
    folds = {repeats: list(make_folds(repeats)) for repeats in REPEATS}
    settings = Settings(model=args.model)
    results = measure_missing(
        args.output, [cell for cell in find_cells() if cell["system"] in args.systems],
        lambda cell: {"digest": SHA256[:16]} | judge(
            SYSTEMS[cell["system"]], folds[cell["repeats"]][cell["fold"] - 1], settings))
    print(f"\n{table(results).to_string()}\n{PUBLISHED}")


if __name__ == "__main__":
    main()
