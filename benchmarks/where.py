"""Where does fine-tuning win? It and its rivals on any data. Written by hand, not tangled.

python -m benchmarks.where measures the cells that outputs/where.json lacks, each written as it
comes; with --data FOLDER --rows N it measures those of one set.
"""

import argparse
import json
from pathlib import Path

import matplotlib.figure
import pandas as pd
from datasets import DatasetDict, concatenate_datasets

from benchmarks.curve import SYSTEMS
from day9.baselines import timed
from day9.errors import quieten_libraries
from day9.files import digests, sha256, write_json
from day9.metrics import compute_metrics
from day9.reading.splits import load_splits, read_table, split_off
from day9.report import SYSTEM_NAMES
from day9.settings import HERE, SMALL_LLAMA

LEAST_VALIDATION = 40  # rows to choose an epoch and a C by, or a fifth of those to train on
SYSTEMS_USUAL = ("tfidf", "embeddings", "fine_tuned")

SETS = {  # where each comes from: address and commit; what decides; rows to train on, and draws
    "health-questions": (
        "https://github.com/kearnsw/question-type-classification at 50b7985",
        "what is asked for", (80, 320, 1000), 3),
    "patient-messages": ("written for this document", "topic", (32, 320, 880), 3),
    "trec6": ("https://github.com/trangnt08/q_class_en at 3ffc1b2", "what is asked for",
              (1000,), 1),
    "scicite": ("https://github.com/allenai/scibert at 06793f7", "what a citation is for",
                (1000,), 1),
    "snips": ("https://github.com/sonos/nlu-benchmark at b86ac7f", "topic", (1000,), 1),
    "medical_abstracts": ("https://github.com/sebischair/Medical-Abstracts-TC-Corpus at 70a2d91",
                          "topic, long texts", (1000,), 1),
    "banking77": ("https://github.com/PolyAI-LDN/task-specific-datasets at 57ec275", "topic",
                  (1540,), 1)}
HEAD_ROWS = {"health-questions": (80, 1000), "patient-messages": (32, 880)}


def draw_splits(folder: Path, rows: int, draw_number: int) -> DatasetDict:
    """A draw of so many training rows, the pool's included where there is one, and validation.

    Each class in proportion; all rows where there are no more.
    """
    splits, pool = load_splits(str(folder)), folder / "source" / "pool.csv"
    training, validation = splits["train"], splits["validation"]
    if pool.exists():
        spare = read_table(pool, "text").select_columns(["text", "label"])
        training = concatenate_datasets([training, spare])
    if rows < len(training):
        _, training = split_off(training, rows, draw_number)
    size = max(LEAST_VALIDATION, rows // 5)
    if size < len(validation):
        _, validation = split_off(validation, size, draw_number)
    return DatasetDict(train=training, validation=validation, test=splits["test"])


def find_cells(sets: dict[str, tuple]) -> list[dict]:
    """All that is to be measured: a set, so many rows, a draw, a system, and the adapter's rank."""
    return [{"data": name, "rows": rows, "draw": number, "system": system, "rank": 16}
            for name, (_, _, sizes, draws) in sets.items() for number in range(draws)
            for rows in sizes for system in (
                *SYSTEMS_USUAL, *(["head"] if rows in HEAD_ROWS.get(name, ()) else []))]


def find_folder(name: str, others: Path) -> Path | None:
    """The folder of a set: in this checkout, or among others; None where it is missing."""
    folders = [HERE / "data" / name, others / name]
    return next((folder for folder in folders if (folder / "train.csv").exists()), None)


def measure(cell: dict, folder: Path, model: str) -> dict:
    """The figures of one cell, on the test split."""
    splits = draw_splits(folder, cell["rows"], cell["draw"])
    probabilities, seconds = timed(SYSTEMS[cell["system"]], model, splits, cell["draw"],
                                   cell["rank"])
    found = compute_metrics(splits["test"]["label"][:], probabilities,
                            sorted(set(splits["train"]["label"][:])), seconds)
    return cell | {"digest": sha256(digests(folder.glob("*.csv")))[:16]} | {
        name: round(value, 4) for name, value in found.items()}


def find_result(cell: dict, results: list[dict]) -> dict | None:
    """What was measured of a cell, if it was."""
    return next((result for result in results if cell.items() <= result.items()), None)


def in_words(values: pd.Series) -> str:
    """The mean in per cent, and of how many draws it is if some are open; "open" if all are."""
    known = values.dropna()
    if known.empty:
        return "open"
    of = "" if len(known) == len(values) else f" ({len(known)} of {len(values)})"
    return f"{100 * known.mean():.1f}{of}"


def means(results: list[dict], figure: str = "accuracy") -> pd.DataFrame:
    """A figure's mean over draws, a row for each set and size, a column for each system.

    A draw that is planned and not measured yet is open.
    """
    cells = [find_result(cell, results) or cell for cell in find_cells(SETS)]
    cells += [result for result in results if result not in cells and result["rank"] == 16
              and result["system"] in SYSTEMS_USUAL]
    table = pd.DataFrame(cells).reindex(columns=["data", "rows", "system", figure])
    groups = table.groupby(["data", "rows", "system"], sort=False)[figure]
    order = pd.MultiIndex.from_frame(table[["data", "rows"]].drop_duplicates())
    return groups.apply(in_words).unstack("system").loc[order, [*SYSTEMS_USUAL, "head"]].fillna("")


def draw_curves(results: list[dict], path: Path) -> str:
    """Draw accuracy against training rows on both tasks: mean and spread of the draws."""
    figure = matplotlib.figure.Figure(figsize=(9, 4), layout="constrained")
    points = pd.DataFrame(results)
    points = points[(points["rank"] == 16) & (points["system"] != "random")]
    for axes, name in zip(figure.subplots(1, 2, sharey=True), HEAD_ROWS):
        here = points[points["data"] == name]
        for system, of_system in here.groupby("system"):
            line = of_system.groupby("rows")["accuracy"].agg(["mean", "min", "max"])
            axes.plot(line.index, line["mean"], marker="o", label=SYSTEM_NAMES.get(system, system))
            axes.fill_between(line.index, line["min"], line["max"], alpha=0.2)
        sizes = sorted(here["rows"].unique())
        axes.set(title=f"{name}: {SETS[name][1]} decides", xlabel="training rows", xscale="log")
        axes.set_xticks(sizes, sizes)
        axes.minorticks_off()
    figure.axes[0].set(ylabel="test accuracy")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)
    return str(path)


def main(argv: list[str] | None = None) -> None:
    """Measure cell after cell, write after each what is known, and print the table."""
    parser = argparse.ArgumentParser(description="Fine-tuning beside its rivals, on any data.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="folder or hub id")
    parser.add_argument("--data", type=Path, help="a folder; default: all that is planned")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000], help="to train on")
    parser.add_argument("--draws", type=int, default=1, help="of --data's rows")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS_USUAL)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--others", type=Path, default=HERE.parent / "shared" / "datasets",
                        help="folder with folders of the sets that are not in data/")
    parser.add_argument("--output", type=Path, default=HERE / "outputs" / "where.json",
                        help="what is in it is not measured again")
    args = parser.parse_args(argv)
    quieten_libraries()
    cells = find_cells(SETS) if not args.data else [
        {"data": args.data.name, "rows": rows, "draw": number, "system": system, "rank": args.rank}
        for number in range(args.draws) for rows in args.rows for system in args.systems]
    results = json.loads(args.output.read_text("utf-8")) if args.output.exists() else []
    for cell in cells:
        folder = args.data or find_folder(cell["data"], args.others)
        if folder and not find_result(cell, results):
            results.append(measure(cell, folder, args.model))
            write_json(args.output, results)
            print(results[-1], flush=True)
    print(means(results).to_string())


if __name__ == "__main__":
    main()
