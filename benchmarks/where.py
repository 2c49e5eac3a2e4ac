"""Where does fine-tuning win? It and its rivals on any data. Written by hand, not tangled.

python -m benchmarks.where measures the cells that outputs/where.json lacks, each written as it
comes; with --data FOLDER --rows N it measures those of one set, with --variants those of training
otherwise.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
import pandas as pd
from datasets import DatasetDict, concatenate_datasets

from benchmarks.systems import (SYSTEMS, find_result, judge, measure_missing, train_coded,
                                train_fine_tuned, train_random)
from day9.errors import quieten_libraries
from day9.files import digests, sha256
from day9.reading.splits import READERS, load_splits, read_table, split_off
from day9.report import SYSTEM_NAMES
from day9.settings import HERE, SMALL_LLAMA, Settings

LEAST_VALIDATION = 40  # rows to choose an epoch and a C by, or a fifth of those to train on
MOST_TEST = 1000  # rows; a larger test split is cut, each class in proportion


class Task(NamedTuple):
    """A set of texts: where it comes from, what decides the class, and what is planned with it."""

    source: str
    decides: str
    sizes: tuple[int, ...] = (1000,)  # rows to train on
    draws: int = 1
    head_sizes: tuple[int, ...] = ()


TASKS = {
    "health-questions": Task(
        "https://github.com/kearnsw/question-type-classification at 50b7985",
        "what is asked for", (80, 320, 1000), 3, (80, 1000)),
    "patient-messages": Task("written for this document", "topic", (32, 320, 880), 3, (32, 880)),
    "trec6": Task("https://github.com/trangnt08/q_class_en at 3ffc1b2", "what is asked for"),
    "scicite": Task("https://github.com/allenai/scibert at 06793f7", "what a citation is for"),
    "snips": Task("https://github.com/sonos/nlu-benchmark at b86ac7f", "topic"),
    "medical_abstracts": Task(
        "https://github.com/sebischair/Medical-Abstracts-TC-Corpus at 70a2d91",
        "topic, long texts"),
    "banking77": Task("https://github.com/PolyAI-LDN/task-specific-datasets at 57ec275", "topic",
                      (1540,))}
CURVES = {"health-questions": "training rows",
          "patient-messages": "training rows; at 880, which are all, only the seed changes"}

VARIANTS = {  # of fine_tuned
    "rank-1": partial(train_fine_tuned, rank=1), "rank-4": partial(train_fine_tuned, rank=4),
    "rank-64": partial(train_fine_tuned, rank=64),
    "quarter-rate": partial(train_fine_tuned, rate=1 / 4),
    "fourfold-rate": partial(train_fine_tuned, rate=4),
    "one-epoch": partial(train_fine_tuned, epochs=1),
    "no-list": partial(train_fine_tuned, instruction="Classify the text."),
    "coded-labels": train_coded, "random-weights": train_random}


# Cells


def find_cells() -> list[dict]:
    """All that is planned of the systems: a set, so many rows, a draw, a system."""
    return [{"data": name, "rows": rows, "draw": draw, "system": system, "variant": None}
            for name, task in TASKS.items() for draw in range(task.draws) for rows in task.sizes
            for system in SYSTEMS if system != "head" or rows in task.head_sizes]


def find_variants(names: list[str], draws: int = 1) -> list[dict]:
    """What is planned of variants of fine-tuning, with 320 health questions."""
    return [{"data": "health-questions", "rows": 320, "draw": draw, "system": "fine_tuned",
             "variant": name} for draw in range(draws) for name in names]


def draw_splits(folder: Path, rows: int, draw: int) -> DatasetDict:
    """A draw of so many training rows, the pool's included where there is one, and validation.

    Each class in proportion; all rows where there are no more. The test rows are always the same.
    """
    splits, pool = load_splits(str(folder)), folder / "source" / "pool.csv"
    training, validation, test = splits["train"], splits["validation"], splits["test"]
    if pool.exists():
        spare = read_table(pool, "text").select_columns(["text", "label"])
        training = concatenate_datasets([training, spare])
    if rows < len(training):
        _, training = split_off(training, rows, draw)
    size = max(LEAST_VALIDATION, rows // 5)
    if size < len(validation):
        _, validation = split_off(validation, size, draw)
    if MOST_TEST < len(test):
        _, test = split_off(test, MOST_TEST, 0)
    return DatasetDict(train=training, validation=validation, test=test)


def measure(cell: dict, folder: Path, model: str) -> dict:
    """Where the texts come from, and the figures of one cell on their test split."""
    system = VARIANTS.get(cell["variant"]) or SYSTEMS[cell["system"]]
    files = [path for path in folder.rglob("*") if path.suffix in READERS]
    source = TASKS[folder.name].source if folder.name in TASKS else "not named"
    return {"source": source, "digest": sha256(digests(files))[:16]} | judge(
        system, draw_splits(folder, cell["rows"], cell["draw"]),
        Settings(model=model, seed=cell["draw"]))


def find_folder(name: str, others: Path) -> Path | None:
    """The folder of a set: in this checkout, or among others; None where it is missing."""
    folders = [HERE / "data" / name, others / name]
    return next((folder for folder in folders if (folder / "train.csv").exists()), None)


# Tables


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
    cells = [find_result(cell, results) or cell for cell in find_cells()]
    cells += [result for result in results if result not in cells and not result["variant"]]
    table = pd.DataFrame(cells).reindex(columns=["data", "rows", "system", figure])
    groups = table.groupby(["data", "rows", "system"], sort=False)[figure]
    order = pd.MultiIndex.from_frame(table[["data", "rows"]].drop_duplicates())
    return groups.apply(in_words).unstack("system").loc[order, list(SYSTEMS)].fillna("")


def sources(results: list[dict]) -> pd.DataFrame:
    """Where each set comes from, the digest of its files, and how many test rows were used."""
    table = pd.DataFrame(results, columns=["data", "source", "digest", "n"])
    return table.drop_duplicates().set_index("data")


def gains(results: list[dict]) -> pd.DataFrame:
    """The systems on each set at its largest size, and the gain of fine-tuning on the best rival.

    Accuracies and the ends of their intervals are means of the draws that all three were measured
    on, if there is one. The largest gain comes first; NaN is open.
    """
    figures = ["accuracy", "accuracy_low", "accuracy_high"]
    largest = [cell for cell in find_cells()
               if cell["rows"] == TASKS[cell["data"]].sizes[-1] and cell["system"] != "head"]
    cells = pd.DataFrame([find_result(cell, results) or cell for cell in largest],
                         columns=["data", "draw", "system", *figures])
    whole = cells.groupby(["data", "draw"])["accuracy"].transform("count") == 3
    cells = cells[whole | ~whole.groupby(cells["data"]).transform("any")]
    table = cells.groupby(["data", "system"])[figures].mean().unstack("system").reindex(TASKS)
    accuracy = table["accuracy"]
    table["gain", ""] = accuracy["fine_tuned"] - accuracy[["embeddings", "tfidf"]].max(axis=1)
    return table.sort_values(("gain", ""), ascending=False, kind="stable")


def describe_variant(name: str | None, results: list[dict]) -> dict[str, str]:
    """A variant's row of `ablations`; None is training as it is."""
    cells = find_variants([name], TASKS["health-questions"].draws)
    pairs = [(found, find_result(cell | {"variant": None}, results)) for cell in cells
             if (found := find_result(cell, results))]
    draws = f" --draws {len(pairs)}" if len(pairs) > 1 else ""
    what = f"--variants {name}" if name else (
        "--data data/health-questions --rows 320 --systems fine_tuned")
    row = {"variant": name or "as it is", "command": f"python -m benchmarks.where {what}{draws}"}
    if not pairs:
        return row | {"accuracy": "open"}
    mean = pd.DataFrame([found for found, _ in pairs]).mean(numeric_only=True)
    low, middle, high = 100 * mean[["accuracy_low", "accuracy", "accuracy_high"]]
    changes = [found["accuracy"] - usual["accuracy"] for found, usual in pairs if usual]
    return row | {"accuracy": f"{middle:.1f} ({low:.1f} - {high:.1f})", "f1": f"{mean['f1']:.3f}",
                  "log_loss": f"{mean['log_loss']:.3f}", "minutes": f"{mean['seconds'] / 60:.0f}",
                  "draws": f"{len(pairs)}",
                  "change": f"{100 * np.mean(changes):+.1f}" if name and changes else ""}


def ablations(results: list[dict]) -> pd.DataFrame:
    """What training as it is and variants of it reach: means of the draws that are measured.

    `change` is the difference from training as it is on the same draws, in points.
    """
    table = pd.DataFrame([describe_variant(name, results) for name in (None, *VARIANTS)])
    columns = ["accuracy", "change", "f1", "log_loss", "minutes", "draws", "command"]
    return table.set_index("variant").reindex(columns=columns).astype(object).fillna("")


# Pictures

COLOURS = {system: f"C{number}" for number, system in enumerate(SYSTEMS)}


def draw_curves(results: list[dict], path: Path) -> str:
    """Draw accuracy against training rows on both tasks: mean and spread of the draws."""
    figure = matplotlib.figure.Figure(figsize=(10, 4.5), layout="constrained")
    points = pd.DataFrame(results)
    points["percent"] = 100 * points["accuracy"]
    for axes, (name, below) in zip(figure.subplots(1, 2, sharey=True), CURVES.items()):
        here = points[(points["data"] == name) & points["variant"].isna()]
        for system, colour in COLOURS.items():
            line = here[here["system"] == system].groupby("rows")["percent"].agg(
                ["mean", "min", "max"])
            axes.plot(line.index, line["mean"], marker="o", color=colour,
                      label=SYSTEM_NAMES.get(system, system) + (" (open)" if line.empty else ""))
            axes.fill_between(line.index, line["min"], line["max"], color=colour, alpha=0.2)
        sizes = TASKS[name].sizes
        axes.set(title=f"{name}, by {TASKS[name].decides}", xscale="log", xlabel=below)
        axes.set_xticks(sizes, sizes)
        axes.minorticks_off()
        axes.legend(title="mean; band: lowest to highest draw", loc="lower right")
    figure.axes[0].set(ylabel="test accuracy (%)")
    figure.savefig(path, dpi=120)
    return str(path)


def draw_gains(results: list[dict], path: Path) -> str:
    """Draw the accuracies that `gains` finds, with their intervals: a line for each set."""
    figure = matplotlib.figure.Figure(figsize=(8, 5.5), layout="constrained")
    axes, table = figure.subplots(), 100 * gains(results)
    for shift, system in ((-0.2, "tfidf"), (0, "embeddings"), (0.2, "fine_tuned")):
        middle, low, high = (table[figure, system] for figure in (
            "accuracy", "accuracy_low", "accuracy_high"))
        axes.errorbar(middle, [number - shift for number in range(len(table))],
                      xerr=[middle - low, high - middle], fmt="o", color=COLOURS[system],
                      label=SYSTEM_NAMES[system])
    said = ["fine-tuned: open" if pd.isna(gain) else f"gain {gain:+.1f}" for gain in table["gain"]]
    axes.set_yticks(range(len(table)), [
        f"{name}, {TASKS[name].sizes[-1]:,} rows,\nby {TASKS[name].decides}: {gain}"
        for name, gain in zip(table.index, said)])
    axes.set(xlabel="test accuracy (%), with 95 % intervals", ylim=(len(table) - 0.5, -0.5))
    axes.grid(axis="x", alpha=0.4)
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=120)
    return str(path)


def main(argv: list[str] | None = None) -> None:
    """Measure cell after cell, and print the tables."""
    parser = argparse.ArgumentParser(description="Fine-tuning beside its rivals, on any data.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="folder or hub id")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--data", type=Path, help="a folder; default: all that is planned")
    which.add_argument("--variants", nargs="+", choices=VARIANTS, help="of fine-tuning")
    parser.add_argument("--rows", type=int, nargs="+", default=[1000], help="of --data to train on")
    parser.add_argument("--draws", type=int, default=1, help="of --data or --variants")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--others", type=Path, default=HERE.parent / "shared" / "datasets",
                        help="folder with folders of the sets that are not in data/")
    parser.add_argument("--output", type=Path, default=HERE / "outputs" / "where.json",
                        help="what is in it is not measured again")
    args = parser.parse_args(argv)
    quieten_libraries()
    if args.data:
        cells = [{"data": args.data.name, "rows": rows, "draw": draw, "system": system,
                  "variant": None} for draw in range(args.draws) for rows in args.rows
                 for system in SYSTEMS]
    elif args.variants:
        cells = find_variants(args.variants, args.draws)
    else:
        cells = find_cells() + find_variants(list(VARIANTS))
    folder_of = lambda cell: args.data or find_folder(cell["data"], args.others)
    results = measure_missing(
        args.output, [cell for cell in cells if cell["system"] in args.systems and folder_of(cell)],
        lambda cell: measure(cell, folder_of(cell), args.model))
    for table in (means(results), sources(results), ablations(results)):
        print(f"\n{table.to_string()}")


if __name__ == "__main__":
    main()
