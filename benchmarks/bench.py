"""Speed and memory of main.py beside what is usual, on the CPU: bench.py --help.

Each figure comes from a process of its own, forked from this one, which only imports: its peak
memory is then the measurement's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported

import matplotlib.figure
import numpy as np
import pandas as pd
import torch
import transformers
from curve import ROOT, main, plan, train_head, train_words
from datasets import DatasetDict
from plain import as_conversation, ask, plain_trainer
from sklearn.metrics import accuracy_score

from baselines import few_shot
from edge import quieten_libraries
from keeping import read_settings, write_json
from llama import load_model
from models import load_classifier
from reading import read_table
from scoring import Classifier, pick_log_probs, run_decoder

MESSAGES, ALL = ROOT / "data" / "patient-messages", 880  # its training rows
SIZES = {"small": (4, 8), "full": (32, ALL)}  # texts to score, and most rows of a split


def sample(args: argparse.Namespace, folder: Path, data: Path, rows: int, rest: int) -> str:
    """Write about so many training rows, and `rest` to validate and to test, as many of each label.

    Returns the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in main.load_splits(str(data)).items():
        size, labels = min(rows if name == "train" else rest, args.most), split.unique("label")
        some = split.to_pandas().groupby("label").head(-(-size // len(labels)))
        some.to_csv(folder / f"{name}.csv", index=False)
    return str(folder)


def timed(work, *given):
    """What a function returns, and the seconds it takes."""
    start = time.perf_counter()
    return work(*given), time.perf_counter() - start


@torch.no_grad()
def score_pairs(classifier: Classifier, size: int, texts: list[str]) -> np.ndarray:
    """As classifier.scores, by a sequence for each text and label, `size` of like length a pass."""
    prompt, model = classifier.prompt, classifier.model.eval()
    encoded = prompt.encode(classifier.tokenizer, texts)
    completions, head = list(prompt.completions.values()), model.get_output_embeddings().weight
    scores = np.empty((len(encoded), len(completions)))
    pairs = sorted(np.ndindex(scores.shape),
                   key=lambda pair: len(encoded[pair[0]]) + len(completions[pair[1]]))
    for batch in (pairs[start:start + size] for start in range(0, len(pairs), size)):
        rows = [prompt.before + encoded[i] + completions[j][:-1] for i, j in batch]
        wanted, longest = [completions[j] for _, j in batch], len(rows[-1])
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # none sees a 0
        hidden = run_decoder(model, input_ids=padded, use_cache=False).last_hidden_state
        sources = [n * longest + place for n, row in enumerate(rows)
                   for place in range(len(row) - len(wanted[n]), len(row))]
        targets = torch.tensor([token for ids in wanted for token in ids])
        log_probs = pick_log_probs(hidden.flatten(0, 1), targets, head, torch.tensor(sources))
        for pair, part in zip(batch, log_probs.split([*map(len, wanted)])):
            scores[pair] = part.sum().item()
    return scores


def generate(model, tokenizer, instruction: str, words: int, texts: list[str]) -> list[str]:
    """What generate() answers, in batches of 16."""
    return [answer for start in range(0, len(texts), 16)
            for answer in ask(model, tokenizer, texts[start:start + 16], instruction, words)]


def no_label(answers: list[str], labels: list[str]) -> float:
    """The share of answers that are none of the labels."""
    return np.mean([answer not in labels for answer in answers])


def open_run(folder: Path) -> tuple[Classifier, main.Settings, list[str]]:
    """The classifier of a finished run, its settings, and its test texts in random order."""
    texts = read_table(folder / "predictions.csv", "text").shuffle(seed=0)["text"][:]
    return load_classifier(folder), read_settings(folder, "--run8"), texts


def score(args: argparse.Namespace, run: int, labels: int, method: str,
          pass_tokens: int = 512) -> dict[str, float]:
    """Texts per second of one way to score the test texts of a fine-tuned run."""
    classifier, settings, texts = open_run(args.folders[labels])
    texts = sorted(texts[:args.texts], key=len)  # for little padding
    work = replace(classifier, pass_tokens=pass_tokens).scores
    if method == "few-shot":
        examples = main.load_splits(settings.data)["train"]
        work = few_shot(examples, classifier, settings.instruction, seed=0).scores
    if method == "generate":
        named = settings.instruction.replace("{labels}", ", ".join(classifier.labels))
        longest = max(map(len, classifier.prompt.completions.values()))
        work = partial(generate, classifier.model, classifier.tokenizer, named, longest)
    if method == "pairs":
        few = texts[::max(1, len(texts) * labels // 64)]  # about 64 pairs
        tried = {size: partial(score_pairs, classifier, size) for size in (8, 16, 32, 64)}
        work = tried[min(tried, key=lambda size: timed(tried[size], few)[1])]
    work(texts[:2])  # what is done only once is done
    read = []  # tokens of each pass
    classifier.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    answers, seconds = timed(work, texts)
    figures = {"seconds": seconds, "texts_per_second": len(texts) / seconds,
               "tokens": sum(read) / len(texts)}
    return figures | ({"no_label": no_label(answers, classifier.labels)}
                      if method == "generate" else {})


def inspect(args: argparse.Namespace, run: int, labels: int, method: str) -> dict[str, float]:
    """How exact scoring is, which is not a matter of time."""
    classifier, _, texts = open_run(args.folders[labels])
    gaps = np.abs(classifier.scores(texts[:4]) - score_pairs(classifier, 8, texts[:4]))
    return {"largest_difference": gaps.max()}


def go_plainly(name: str, splits: DatasetDict, seed: int,
               rank: int) -> tuple[list[str], list[str]]:
    """Answers of generate() to the test texts, before and after trl's trainer."""
    settings, texts = plan(name, splits["train"], seed, rank), splits["test"]["text"][:]
    labels, tokenizer = sorted(splits["train"].unique("label")), main.load_tokenizer(name)
    asked = main.default_instruction(labels).replace("{labels}", ", ".join(labels))
    model = load_model(name, main.choose_precision()[0])
    before = generate(model, tokenizer, asked, 20, texts)
    rows = splits.map(as_conversation, fn_kwargs={"instruction": asked},
                      remove_columns=["text", "label"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = plain_trainer(model, tokenizer, rows["train"], rows["validation"], folder,
                                settings.epochs, settings.learning_rate, seed)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return before, generate(trainer.model, tokenizer, asked, 20, texts)


TRAINERS = {"ours": train_words, "stock": lambda *given: go_plainly(*given)[1],
            "head": train_head}


def train(args: argparse.Namespace, run: int, method: str, rows: int) -> dict[str, float]:
    """Rows per second of one epoch, validation included; trained on all rows also test accuracy."""
    spent, begin, main.MOST_EPOCHS = [], transformers.Trainer.train, 1
    transformers.Trainer.train = lambda *given, **named: spent.append(
        timed(lambda: begin(*given, **named))[1])
    with tempfile.TemporaryDirectory() as folder:
        splits = main.load_splits(sample(args, Path(folder), MESSAGES, rows,
                                         rows if rows == ALL else 8))
    predicted = TRAINERS[method](args.model, splits, run, 16)
    figures = {"seconds": spent[0], "rows_per_second": len(splits["train"]) / spent[0]}
    if rows == ALL:
        figures["accuracy"] = accuracy_score(splits["test"]["label"][:], predicted)
    return figures


def job(args: argparse.Namespace, run: int, method: str, rows: int) -> dict[str, float]:
    """Seconds of `python main.py`, or of the plain way on everything, its libraries loaded."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = sample(args, Path(folder), MESSAGES, rows, rows), Path(folder, "run")
        if method == "ours":
            _, seconds = timed(partial(subprocess.run, check=True), [
                sys.executable, ROOT / "main.py", "--model", args.model, "--data", data,
                "--seed", str(run), "--output-dir", out])
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
            return {"seconds": seconds, "accuracy": metrics["systems"]["fine_tuned"]["accuracy"]}
        splits = main.load_splits(data)
        (before, after), seconds = timed(go_plainly, args.model, splits, run, 16)
    truth, labels = splits["test"]["label"][:], splits["train"].unique("label")
    return {"seconds": seconds, "accuracy": accuracy_score(truth, after),
            "no_label_before": no_label(before, labels), "no_label": no_label(after, labels)}


def measure(function, *given, **case) -> dict[str, float]:
    """The figures of a measurement, with its memory at the peak, and beyond the libraries'."""
    peak = lambda: max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) / 1024
    floor = peak()
    figures = function(*given, **case)
    figures |= {"peak_mb": peak(), "own_mb": peak() - floor}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def alone(function, *given, **named):
    """What a function returns when a process of its own calls it; its temporary files go, too."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(
            1, get_context("fork"), setattr, (tempfile, "tempdir", folder)) as pool:
        return pool.submit(function, *given, **named).result()


def tune(args: argparse.Namespace, folder: Path, *sizes) -> None:
    """Make or resume a run of main.py, unless the folder holds a finished one."""
    if not (folder / "metrics.json").exists():
        data = folder.with_name(f"{folder.name}-data")
        if main.main(["--resume", str(folder)] if folder.exists() else
                     ["--model", args.model, "--output-dir", str(folder),
                      "--data", sample(args, data, *sizes)]):
            raise RuntimeError(f"{folder} could not be made")


def find_cases(args: argparse.Namespace) -> list[tuple]:
    """All measurements: section, function, and its arguments."""
    both, rows = list(args.folders), [96, *[ALL] * args.accuracy]
    scored = [(n, "ours", tokens) for n in both for tokens in (512, 256, 1024, 2048)]
    scored += [(8, "few-shot", 512), *product(both, ("generate", "pairs"), [512])]
    return [("scoring", inspect, {"labels": n, "method": "inspect"}) for n in both] + [
        ("scoring", score, dict(zip(("labels", "method", "pass_tokens"), c))) for c in scored] + [
        ("training", train, {"method": name, "rows": n}) for n in rows for name in TRAINERS] + [
        ("job", job, {"method": name, "rows": ALL}) for name in ("ours", "plain")]


def spread(values: pd.Series) -> str:
    """Median (lowest - highest)."""
    middle, low, high = (f"{value:.3g}" if value < 100 else f"{value:,.0f}"
                         for value in (values.median(), values.min(), values.max()))
    return f"{middle} ({low} - {high})"


def compare(runs: pd.DataFrame, case: str, figure: str) -> pd.DataFrame:
    """The methods beside each other in every case; all but the figure are medians."""
    groups = runs.astype({case: int}).groupby([case, "method"], sort=False)
    medians = groups.median(numeric_only=True)
    times = medians["seconds"].groupby(level=0).transform(
        lambda same: same / same.xs("ours", level=1).item())
    more = medians.reindex(columns=["tokens", "no_label_before", "no_label", "accuracy", "peak_mb",
                                    "own_mb"]).dropna(axis=1, how="all")
    table = pd.DataFrame({figure: groups[figure].agg(spread), "times ours": times}).join(more)
    return table.sort_index(level=0, sort_remaining=False, kind="stable").round(
        {"no_label_before": 3, "no_label": 3, "accuracy": 3, "peak_mb": 0, "own_mb": 0}).round(
        {"times ours": 2, "tokens": 1}).astype(object).fillna("")


def tables(results: dict) -> dict[str, pd.DataFrame]:
    """What was measured; of each section that was. "Times ours" compares durations."""
    runs, found = pd.DataFrame(results["runs"]), {}
    parts = dict(list(runs.groupby("section")))
    if "scoring" in parts:
        scored = parts["scoring"].astype({"labels": int})
        timed = scored[scored["pass_tokens"] == 512]
        found["scoring"] = compare(timed, "labels", "texts_per_second")
        found["pass_tokens"] = scored[scored["method"] == "ours"].astype(
            {"pass_tokens": int}).pivot_table("texts_per_second", "pass_tokens", "labels", spread)
        found["exactness"] = scored[scored["method"] == "inspect"].set_index("labels")[
            ["largest_difference"]]
    for section, figure in (("training", "rows_per_second"), ("job", "seconds")):
        if section in parts:
            found[section] = compare(parts[section], "rows", figure)
    return found


def draw(results: dict, path: Path) -> None:
    """Texts and rows per second of the methods, as bars."""
    runs = pd.DataFrame(results["runs"])
    left, right = matplotlib.figure.Figure((9, 3.5), layout="constrained").subplots(1, 2)
    runs[runs["pass_tokens"] == 512].astype({"labels": int}).pivot_table(
        "texts_per_second", "labels", "method", "median")[["ours", "generate", "pairs"]].plot.bar(
        ax=left, rot=0, ylabel="texts per second", title="Scoring")
    runs[runs["rows"] < ALL].groupby("method", sort=False)["rows_per_second"].median().plot.bar(
        ax=right, rot=0, xlabel="", ylabel="rows per second", title="Training")
    left.figure.savefig(path, dpi=120)


def describe(args: argparse.Namespace) -> dict[str, str | int | bool]:
    """What is measured, and on which machine."""
    cpu = torch.cpu.get_capabilities()
    return {"model": Path(args.model).name, "size": args.size, "cpu": cpu.get("cpu_name", ""),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            **{name: bool(cpu.get(name)) for name in ("avx2", "avx512_bf16")},
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft",
                                                "bitsandbytes")}}


def bench(argv: list[str] | None = None) -> None:
    """Measure run after run, write after each what is known; print the tables, draw the picture."""
    sections = ["scoring", "training", "job"]
    parser = argparse.ArgumentParser(description="Speed and memory beside what is usual.")
    parser.add_argument("--model", default=str(ROOT / "data" / "smollm2"), help="a folder")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement")
    parser.add_argument("--size", choices=SIZES, default="full", help="small: to try that it works")
    parser.add_argument("--accuracy", action="store_true", help="also train on all rows, for long")
    parser.add_argument("--banking", type=Path, help="folder of banking77",
                        default=ROOT.parent / "shared" / "datasets" / "banking77")
    parser.add_argument("--run8", type=Path, help="a finished run with the messages' 8 labels; "
                        "made beside the output where there is none")
    parser.add_argument("--run77", type=Path, help="the same with the 77 labels of banking77")
    parser.add_argument("--output", type=Path, help="what is in it is not measured again",
                        default=ROOT / "outputs" / "bench.json")
    parser.add_argument("--fresh", action="store_true", help="forget what is in it")
    args = parser.parse_args(argv)
    quieten_libraries()
    args.texts, args.most = SIZES[args.size]
    args.folders = {8: args.run8 or args.output.parent / "bench-run8"}
    if args.run77 or args.banking.is_dir():
        args.folders[77] = args.run77 or args.output.parent / "bench-run77"
    results = describe(args) | {"runs": []}
    if args.output.exists() and not args.fresh:
        kept = json.loads(args.output.read_text("utf-8"))
        if not describe(args).items() <= kept.items():
            parser.error(f"{args.output} was measured otherwise: give another --output, or --fresh")
        results = kept
    for labels, sizes in {8: (MESSAGES, ALL, ALL), 77: (args.banking, 1500, 154)}.items():
        if "scoring" in args.only and labels in args.folders:
            alone(tune, args, args.folders[labels], *sizes)
    for run, (section, function, case) in product(range(args.runs), find_cases(args)):
        key = {"section": section, **case, "run": run}
        known = any(key.items() <= kept.items() for kept in results["runs"])
        if section in args.only and not known and not (function is inspect and run):
            results["runs"].append(key | alone(measure, function, args, run, **case))
            write_json(args.output, results)
            print(results["runs"][-1], flush=True)
    for name, table in tables(results).items():
        print(f"\n{name}\n{table.to_string()}")
    if {"scoring", "training"} <= {run["section"] for run in results["runs"]}:
        draw(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    bench()
