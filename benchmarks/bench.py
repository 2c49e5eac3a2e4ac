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
from concurrent.futures import ProcessPoolExecutor
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

from benchmarks.systems import train_head, train_tfidf
from day9.baselines import few_shot, timed
from day9.classifier import Classifier
from day9.errors import quieten_libraries
from day9.files import write_json
from day9.loading import choose_precision, load_classifier
from day9.metrics import likeliest
from day9.model import load_model
from day9.plain import as_conversation, plain_trainer
from day9.prompts import default_instruction, load_tokenizer, name_labels
from day9.reading.splits import load_splits, read_table
from day9.report import SYSTEM_NAMES, draw
from day9.runs import read_settings
from day9.settings import HERE, SMALL_LLAMA, Settings
from day9.training import default_learning_rate

DATA = HERE / "data" / "patient-messages"  # of eight labels


def sample(folder: Path, data: Path, rows: int) -> Path:
    """Write so many rows to train, 40 to validate, 200 to test, or fewer, as many of each label."""
    folder.mkdir(parents=True, exist_ok=True)
    for (name, split), most in zip(load_splits(str(data)).items(), (rows, 40, 200)):
        size, labels = min(rows, most), split.unique("label")
        each = split.to_pandas().groupby("label").head(-(-size // len(labels)))
        each.to_csv(folder / f"{name}.csv", index=False)
    return folder


def run_main(args: argparse.Namespace, data: Path, folder: Path, *more: str) -> None:
    """Run main.py on sampled data, in a new folder."""
    subprocess.run([sys.executable, HERE / "main.py", "--model", args.model, "--data", data,
                    "--output-dir", folder, *more], check=True)


def tune(args: argparse.Namespace, folder: Path, data: Path) -> None:
    """Make the run whose scoring is measured, unless the folder holds it."""
    if not (folder / "metrics.json").exists():
        sampled = sample(folder.with_name(f"{folder.name}-data"), data, max(args.rows))
        run_main(args, sampled, folder)


@torch.no_grad()
def score_pairs(classifier: Classifier, size: int, texts: list[str]) -> np.ndarray:
    """As classifier.scores, by a sequence for each text and label, `size` of like length a pass."""
    prompt, tokenizer = classifier.prompt, classifier.tokenizer
    encoded, completions = prompt.encode(tokenizer, texts), list(prompt.completions.values())
    scores = np.empty((len(encoded), len(completions)))
    pairs = sorted(np.ndindex(scores.shape),
                   key=lambda pair: len(encoded[pair[0]]) + len(completions[pair[1]]))
    for batch in (pairs[start:start + size] for start in range(0, len(pairs), size)):
        rows = [prompt.before + encoded[i] + completions[j][:-1] for i, j in batch]
        padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        longest = max(len(completions[j]) for _, j in batch)
        logits = classifier.model(**padded, use_cache=False, logits_to_keep=longest).logits
        for (i, j), row in zip(batch, logits):
            wanted = torch.tensor(completions[j])
            log_probs = row[-len(wanted):].log_softmax(-1)
            scores[i, j] = log_probs.gather(-1, wanted[:, None]).sum().item()
    return scores


@torch.no_grad()
def generate(model, tokenizer, instruction: str, words: int, texts: list[str]) -> list[str]:
    """The model's answers, of at most so many tokens, to 16 texts at a time."""
    model.eval()
    answers = []
    for start in range(0, len(texts), 16):
        chats = [[{"role": "user", "content": f"{instruction}\n\n{text}"}]
                 for text in texts[start:start + 16]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt",
            tokenizer_kwargs={"padding_side": "left"}).to(model.device)
        written = model.generate(**batch, max_new_tokens=words, do_sample=False)
        new = written[:, batch["input_ids"].shape[1]:]
        answers += [answer.strip() for answer in
                    tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def score(args: argparse.Namespace, run: int, labels: int, method: str) -> dict[str, float]:
    """Seconds per text of one way to score test texts of a fine-tuned run; of few if it is slow."""
    folder = args.folders[labels]
    classifier, settings = load_classifier(folder), read_settings(folder, "--run")
    texts = read_table(folder / "predictions.csv", "text").shuffle(seed=0)["text"][:]
    slow = labels > 8 or method == "pairs"
    texts = sorted(texts[:32 if slow else 128], key=len)  # for little padding
    work = classifier.scores
    if method == "few_shot":
        examples = load_splits(settings.data)["train"]
        work = few_shot(examples, classifier, settings.instruction, seed=0).scores
    if method == "generate":
        named = name_labels(settings.instruction, classifier.labels)
        longest = max(map(len, classifier.prompt.completions.values()))
        work = partial(generate, classifier.model, classifier.tokenizer, named, longest)
    if method == "pairs":
        few = texts[::max(1, len(texts) * labels // 64)]  # about 64 pairs
        tried = [partial(score_pairs, classifier, size) for size in (8, 16, 32, 64)]
        work = min(tried, key=lambda way: timed(way, few)[1])
    work(texts[:2])  # what is done only once is done
    read = []  # tokens of each pass
    classifier.model.get_decoder().register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    _, seconds = timed(work, texts)
    return {"seconds_per_text": seconds / len(texts), "tokens": sum(read) / len(texts)}


def go_plainly(splits: DatasetDict, settings: Settings) -> list[str]:
    """Answers of generate() to the test texts after trl's trainer; it is asked before, too."""
    labels, texts = sorted(splits["train"].unique("label")), splits["test"]["text"][:]
    model = load_model(settings.model, choose_precision()[0])
    tokenizer = load_tokenizer(settings.model)
    instruction = name_labels(default_instruction(labels), labels)
    generate(model, tokenizer, instruction, 20, texts)
    rows = splits.map(as_conversation, fn_kwargs={"instruction": instruction},
                      remove_columns=["text", "label"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = plain_trainer(model, tokenizer, rows["train"], rows["validation"], folder,
                                settings.epochs, default_learning_rate(model), settings.seed)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return generate(trainer.model, tokenizer, instruction, 20, texts)


OTHERS = {"plain": go_plainly, "tfidf": train_tfidf, "head": train_head}


def train(args: argparse.Namespace, run: int, method: str, rows: int) -> dict[str, float]:
    """Seconds of one epoch, validation included, and of the whole job, and accuracy on 200 texts.

    The whole job is `python main.py`, with its baselines; the plain one asks before, too.
    """
    spent, begin = [], transformers.Trainer.train
    transformers.Trainer.train = lambda *given, **named: spent.append(
        timed(begin, *given, **named)[1])
    with tempfile.TemporaryDirectory() as folder:
        data, out = sample(Path(folder, "data"), DATA, rows), Path(folder, "run")
        splits = load_splits(str(data))
        if method == "fine_tuned":
            _, seconds = timed(run_main, args, data, out, "--epochs", "1", "--seed", str(run))
            metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
            spent.append(metrics["training_log"][-1]["train_runtime"])
            accuracy = metrics["systems"]["fine_tuned"]["accuracy"]
        else:
            settings = Settings(model=args.model, epochs=1, seed=run)
            predicted, seconds = timed(OTHERS[method], splits, settings)
            if method != "plain":  # which answers in words
                predicted = likeliest(predicted, sorted(set(splits["train"]["label"][:])))
            accuracy = accuracy_score(splits["test"]["label"][:], predicted)
    return {"job_seconds": seconds, "training_seconds": spent[0] if spent else seconds,  # TF-IDF
            "trained": len(splits["train"]), "accuracy": accuracy}


def measure(function, *given, **case) -> dict[str, float]:
    """The figures of a measurement, with its memory at the peak, and beyond the libraries'."""
    peak = lambda: max(getrusage(who).ru_maxrss for who in (RUSAGE_SELF, RUSAGE_CHILDREN)) / 1024
    floor = peak()
    figures = function(*given, **case)
    figures |= {"peak_mb": peak(), "own_mb": peak() - floor}
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def in_own_process(function, *given, **named):
    """What a function returns when a process of its own calls it."""
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return pool.submit(function, *given, **named).result()


def find_cases(args: argparse.Namespace) -> list[tuple]:
    """All measurements: section, function, and its arguments."""
    scored = product(args.folders, ("one_pass", "generate", "pairs"))
    return [("scoring", score, {"labels": labels, "method": method})
            for labels, method in [*scored, (8, "few_shot")]] + [
        ("training", train, {"method": method, "rows": rows})
        for rows, method in product(args.rows, ("fine_tuned", *OTHERS))]


def spread(values: pd.Series) -> str:
    """Median (lowest - highest)."""
    known = values.median(), values.min(), values.max()
    middle, low, high = (f"{value:.3g}" if value < 100 else f"{value:,.0f}" for value in known)
    return f"{middle} ({low} - {high})"


def compare(runs: pd.DataFrame, case: str, ours: str, *figures: str) -> pd.DataFrame:
    """The methods beside each other in every case; durations are also divided by our method's."""
    groups, columns = runs.groupby([case, "method"], sort=False), []
    for figure in figures:
        columns.append(groups[figure].agg(spread))
        if "seconds" in figure:
            middle = groups[figure].median()
            columns.append((middle / middle.xs(ours, level="method")).round(2).rename("times"))
    columns += [groups["own_mb"].median().round().astype(int), groups.size().rename("runs")]
    return pd.concat(columns, axis=1).sort_index(level=0, sort_remaining=False, kind="stable")


def tables(results: dict) -> dict[str, pd.DataFrame]:
    """What was measured, a table for each section: median (lowest - highest)."""
    scored, trained = (pd.DataFrame(results[section]) for section in ("scoring", "training"))
    return {"scoring": compare(scored, "labels", "one_pass", "seconds_per_text", "tokens"),
            "training": compare(trained.astype({"trained": int}), "trained", "fine_tuned",
                                "training_seconds", "job_seconds", "accuracy")}


def draw_times(results: dict, path: Path) -> str:
    """Draw the accuracy that each method reached against its seconds of training."""
    runs = pd.DataFrame(results["training"])
    axes, write = draw((6, 4), path)
    means = runs.groupby(["method", "rows"])[["training_seconds", "accuracy"]].mean()
    for method in runs["method"].unique():
        axes.plot(*means.loc[method].T.to_numpy(), marker="o",
                  label=SYSTEM_NAMES.get(method, method))
    axes.legend()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    return write(xlabel="seconds of training", ylabel="test accuracy")


def describe(args: argparse.Namespace) -> dict[str, str | int | bool | list[int]]:
    """What is measured, and on which machine."""
    cpu = torch.cpu.get_capabilities()
    libraries = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    return {"model": Path(args.model).name, "rows": args.rows, "cpu": cpu.get("cpu_name", ""),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            **{name: bool(cpu.get(name)) for name in ("avx2", "avx512_bf16")},
            **{name: version(name) for name in libraries}}


def bench(argv: list[str] | None = None) -> None:
    """Measure run after run, write after each what is known; print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description="Speed and memory beside what is usual.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="a folder")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement")
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 880], help="to train on")
    parser.add_argument("--banking", type=Path, help="folder of banking77, if there is one",
                        default=HERE.parent / "shared" / "datasets" / "banking77")
    parser.add_argument("--output", type=Path, help="what is in it is not measured again",
                        default=HERE / "outputs" / "bench.json")
    args = parser.parse_args(argv)
    quieten_libraries()
    results = describe(args) | {"scoring": [], "training": []}
    if args.output.exists():
        results = json.loads(args.output.read_text("utf-8"))
        if not describe(args).items() <= results.items():
            parser.error(f"{args.output} was measured otherwise: remove it, or name a new --output")
    data = {8: DATA, 77: args.banking}
    args.folders = {labels: args.output.with_name(f"bench-run{labels}")
                    for labels, place in data.items() if place.is_dir()}
    for labels, folder in args.folders.items():
        in_own_process(tune, args, folder, data[labels])
    for run, (section, function, case) in product(range(args.runs), find_cases(args)):
        key = {**case, "run": run}
        if not any(key.items() <= kept.items() for kept in results[section]):
            results[section].append(key | in_own_process(measure, function, args, run, **case))
            write_json(args.output, results)
            print(results[section][-1], flush=True)
    for name, table in tables(results).items():
        print(f"\n{name}\n{table.to_string()}")
    draw_times(results, args.output.with_suffix(".png"))


if __name__ == "__main__":
    bench()
