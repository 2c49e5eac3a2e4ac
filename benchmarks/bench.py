"""Speed and memory of main.py beside what is usual, on the CPU: python -m benchmarks.bench --help.

Each figure comes from a process of its own, forked from this one, which only imports: its peak
memory is then the measurement's. Written by hand, not tangled.
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

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import DatasetDict
from sklearn.metrics import accuracy_score

import main
from benchmarks.curve import plan, plot_accuracies, train_head, train_tfidf
from day9 import training
from day9.baselines import few_shot
from day9.classifier import Classifier, default_pass_tokens
from day9.errors import quieten_libraries
from day9.files import write_json
from day9.layout import pick_log_probs, run_decoder
from day9.loading import choose_precision, load_classifier
from day9.model import load_model
from day9.plain import as_conversation, ask, plain_trainer
from day9.prompts import default_instruction, load_tokenizer, name_labels
from day9.reading.splits import load_splits, read_table
from day9.report import draw
from day9.runs import read_settings
from day9.settings import HERE, SMALL_LLAMA, Settings

MESSAGES, ALL = Path(Settings.data), 880  # its training rows
SIZES = {"small": (16, 8), "full": (128, ALL)}  # texts to score, and most rows of a split


def sample(args: argparse.Namespace, folder: Path, data: Path, *sizes: int) -> str:
    """Write so many rows to train, validate and test, as many of each label; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for (name, split), size in zip(load_splits(str(data)).items(), sizes):
        size, labels = min(size, args.most), split.unique("label")
        rows = split.to_pandas().groupby("label").head(-(-size // len(labels)))
        rows.to_csv(folder / f"{name}.csv", index=False)
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


def open_run(folder: Path) -> tuple[Classifier, Settings, list[str]]:
    """The classifier of a finished run, its settings, and its test texts in random order."""
    texts = read_table(folder / "predictions.csv", "text").shuffle(seed=0)["text"][:]
    return load_classifier(folder), read_settings(folder, "--run8"), texts


def score(args: argparse.Namespace, run: int, labels: int, method: str,
          pass_tokens: int = default_pass_tokens()) -> dict[str, float]:
    """Seconds per text of one way to score test texts of a fine-tuned run; of few if it is slow."""
    classifier, settings, texts = open_run(args.folders[labels])
    slow = labels > 8 or method == "pairs"
    texts = sorted(texts[:args.texts // 4 if slow else args.texts], key=len)  # for little padding
    work = replace(classifier, pass_tokens=pass_tokens).scores
    if method == "few_shot":
        examples = load_splits(settings.data)["train"]
        work = few_shot(examples, classifier, settings.instruction, seed=0).scores
    if method == "generate":
        named = name_labels(settings.instruction, classifier.labels)
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
    _, seconds = timed(work, texts)
    return {"seconds_per_text": seconds / len(texts), "tokens": sum(read) / len(texts)}


def inspect(args: argparse.Namespace, run: int, labels: int, method: str) -> dict[str, float]:
    """How exact scoring is, which is not a matter of time."""
    classifier, _, texts = open_run(args.folders[labels])
    gaps = np.abs(classifier.scores(texts[:4]) - score_pairs(classifier, 8, texts[:4]))
    return {"largest_difference": gaps.max()}


def go_plainly(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """Answers of generate() to the test texts after trl's trainer; it is asked before, too."""
    settings, texts = plan(name, splits["train"], seed, rank), splits["test"]["text"][:]
    labels, tokenizer = sorted(splits["train"].unique("label")), load_tokenizer(name)
    instruction = name_labels(default_instruction(labels), labels)
    model = load_model(name, choose_precision()[0])
    generate(model, tokenizer, instruction, 20, texts)
    rows = splits.map(as_conversation, fn_kwargs={"instruction": instruction},
                      remove_columns=["text", "label"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = plain_trainer(model, tokenizer, rows["train"], rows["validation"], folder,
                                settings.epochs, settings.learning_rate, seed)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return generate(trainer.model, tokenizer, instruction, 20, texts)


METHODS = {"plain": go_plainly, "tfidf": train_tfidf, "head": train_head}


def train(args: argparse.Namespace, run: int, method: str, rows: int) -> dict[str, float]:
    """Seconds of one epoch, validation included, and of the whole job, and accuracy on 200 texts.

    The whole job is `python main.py`, with its baselines; the plain one asks before, too.
    """
    spent, begin, training.MOST_EPOCHS = [], transformers.Trainer.train, 1
    transformers.Trainer.train = lambda *given, **named: spent.append(
        timed(lambda: begin(*given, **named))[1])
    with tempfile.TemporaryDirectory() as folder:
        data, out = sample(args, Path(folder), MESSAGES, rows, 40, 200), Path(folder, "run")
        splits = load_splits(data)
        if method == "fine_tuned":
            _, seconds = timed(partial(subprocess.run, check=True), [
                sys.executable, HERE / "main.py", "--model", args.model, "--data", data,
                "--epochs", "1", "--seed", str(run), "--output-dir", out])
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
            spent.append(metrics["training_log"][-1]["train_runtime"])
            predicted = read_table(out / "predictions.csv", "predicted")["predicted"][:]
        else:
            predicted, seconds = timed(METHODS[method], args.model, splits, run, 16)
    training = spent[0] if spent else seconds  # TF-IDF has no Trainer
    return {"job_seconds": seconds, "training_seconds": training, "trained": len(splits["train"]),
            "accuracy": accuracy_score(splits["test"]["label"][:], predicted)}


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
    both = list(args.folders)
    sizes = sorted({512, 1024, default_pass_tokens()})
    scored = [{"labels": n, "method": "one_pass", "pass_tokens": size}
              for n in both for size in sizes]
    scored += [{"labels": n, "method": name} for n in both for name in ("generate", "pairs")]
    scored += [{"labels": 8, "method": "few_shot"}]
    return [("scoring", inspect, {"labels": n, "method": "inspect"}) for n in both] + [
        ("scoring", score, case) for case in scored] + [
        ("training", train, {"method": name, "rows": n})
        for n in args.rows for name in ("fine_tuned", *METHODS)]


def spread(values: pd.Series) -> str:
    """Median (lowest - highest), or the only value."""
    known = values.median(), values.min(), values.max()
    middle, low, high = (f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in known)
    return f"{middle} ({low} - {high})" if len(values) > 1 else middle


def compare(runs: pd.DataFrame, case: str, ours: str, *figures: str) -> pd.DataFrame:
    """The methods beside each other in every case; durations are also divided by our method's."""
    groups, columns = runs.groupby([case, "method"], sort=False), []
    for figure in figures:
        columns.append(groups[figure].agg(spread))
        if "seconds" in figure:
            columns.append(groups[figure].median().groupby(level=0).transform(
                lambda same: same / same.xs(ours, level=1).item()).round(2).rename("times"))
    columns += [groups["own_mb"].median().round().astype(int), groups.size().rename("runs")]
    return pd.concat(columns, axis=1).sort_index(level=0, sort_remaining=False, kind="stable")


def tables(results: dict) -> dict[str, pd.DataFrame]:
    """What was measured, of each section that was: median (lowest - highest)."""
    runs, found = pd.DataFrame(results["runs"]), {}
    parts = dict(list(runs.groupby("section")))
    if "scoring" in parts:
        scored = parts["scoring"].astype({"labels": int})
        usual = scored["pass_tokens"].fillna(results["pass_tokens"]) == results["pass_tokens"]
        found["scoring"] = compare(scored[usual & (scored["method"] != "inspect")], "labels",
                                   "one_pass", "seconds_per_text", "tokens")
        found["pass_tokens"] = scored[scored["method"] == "one_pass"].astype(
            {"pass_tokens": int}).pivot_table("seconds_per_text", "pass_tokens", "labels", spread)
        found["exactness"] = scored[scored["method"] == "inspect"].set_index("labels")[
            ["largest_difference"]]
    if "training" in parts:
        found["training"] = compare(parts["training"].astype({"trained": int}), "trained",
                                    "fine_tuned", "training_seconds", "job_seconds", "accuracy")
    return found


def draw_times(results: dict, path: Path) -> str:
    """Draw the accuracy that each method reached against its seconds of training."""
    runs = pd.DataFrame(results["runs"])
    runs = runs[runs["section"] == "training"]
    axes, write = draw((6, 4), path)
    means = runs.groupby(["method", "rows"])[["training_seconds", "accuracy"]].mean()
    plot_accuracies(axes, {method: means.loc[method].set_index("training_seconds")["accuracy"]
                           for method in runs["method"].unique()})
    return write(xlabel="seconds of training", ylabel="test accuracy")


def describe(args: argparse.Namespace) -> dict[str, str | int | bool]:
    """What is measured, and on which machine."""
    cpu = torch.cpu.get_capabilities()
    return {"model": Path(args.model).name, "size": args.size, "cpu": cpu.get("cpu_name", ""),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "pass_tokens": default_pass_tokens(),
            **{name: bool(cpu.get(name)) for name in ("avx2", "avx512_bf16")},
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft",
                                                "bitsandbytes")}}


def bench(argv: list[str] | None = None) -> None:
    """Measure run after run, write after each what is known; print the tables, draw the picture."""
    sections = ["scoring", "training"]
    parser = argparse.ArgumentParser(description="Speed and memory beside what is usual.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="a folder")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--runs", type=int, default=3, help="of each measurement")
    parser.add_argument("--size", choices=SIZES, default="full", help="small: to try that it works")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, ALL], help="to train on")
    parser.add_argument("--banking", type=Path, help="folder of banking77",
                        default=HERE.parent / "shared" / "datasets" / "banking77")
    parser.add_argument("--run8", type=Path, help="a finished run with the messages' 8 labels; "
                        "made beside the output where there is none")
    parser.add_argument("--run77", type=Path, help="the same with the 77 labels of banking77")
    parser.add_argument("--output", type=Path, help="what is in it is not measured again",
                        default=HERE / "outputs" / "bench.json")
    args = parser.parse_args(argv)
    quieten_libraries()
    args.texts, args.most = SIZES[args.size]
    args.folders = {8: args.run8 or args.output.parent / "bench-run8"}
    if args.run77 or args.banking.is_dir():
        args.folders[77] = args.run77 or args.output.parent / "bench-run77"
    results = describe(args) | {"runs": []}
    if args.output.exists():
        kept = json.loads(args.output.read_text("utf-8"))
        if not describe(args).items() <= kept.items():
            parser.error(f"{args.output} was measured otherwise: remove it, or name a new --output")
        results = kept
    for labels, sizes in {8: (MESSAGES, ALL, ALL, ALL),
                          77: (args.banking, 1500, 154, 154)}.items():
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
    if any(run["section"] == "training" for run in results["runs"]):
        draw_times(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    bench()
