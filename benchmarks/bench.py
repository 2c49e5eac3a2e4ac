#!/usr/bin/env python
"""Measure main.py against what is usual: bench.py [--smallest] [--only SECTION ...] writes bench.json and bench.png.

Every figure comes from a process of its own, forked from this one, which only imports: peak memory is then the measurement's, over the same floor.
All of it is on the processor.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import datasets  # noqa: E402
import notebook_style  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import DatasetDict  # noqa: E402
from first_step import change_training  # noqa: E402
from show import draw, show  # noqa: E402
from sklearn.metrics import accuracy_score  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import main as tool  # noqa: E402

MODEL = str(ROOT / "data" / "tiny-llama")
DATA = {"embedded": ROOT / "data" / "patient-messages", "banking77": ROOT.parent / "shared" / "datasets" / "banking77"}
SIZES = {
    "smallest": {"data": ["embedded"], "labels": [2, 8], "lengths": [20, 40], "texts": 2, "train": {"embedded": 4}, "epochs": 1,
                 "tried_rows": 8, "rows": [40, 80], "steps": 1, "job_epochs": 1},
    "full": {"data": [name for name, folder in DATA.items() if folder.is_dir()], "labels": [2, 8, 77, 150], "lengths": [50, 100, 200, 400, 800],
             "texts": 16, "train": {"embedded": 880, "banking77": 385}, "epochs": 2, "tried_rows": 192,
             "rows": [1_000, 10_000, 100_000, 1_000_000], "steps": 12, "job_epochs": tool.Settings().epochs}}
WHOLE_JOB = 100_000  # rows up to which growth measures all parts of the job, and more than once


# ---- data

def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, the first of every label before the second of any: however many are taken, they are balanced."""
    with path.open(newline="", encoding="utf-8") as file:
        rows, seen = list(csv.DictReader(file)), {}
    turns = [(next(seen.setdefault(row["label"], itertools.count())), row["label"]) for row in rows]
    return [rows[i] for i in sorted(range(len(rows)), key=turns.__getitem__)]


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """A csv file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)


def sample(data: str, folder: Path, train: int) -> str:
    """A folder with at most so many training rows of a dataset, balanced, and half as many to validate and to test; returns its path."""
    rows = {file.stem: read_rows(file) for file in DATA[data].glob("*.csv")}
    rows.setdefault("validation", rows["train"][train:])  # else main.py would cut it from what it trains on, and the notebook would not
    for split, same in rows.items():
        write_rows(folder / f"{split}.csv", same[:train if split == "train" else train // 2])
    return str(folder)


def made_up_labels(count: int) -> list[str]:
    """Names as long as those of a real set of intents, at most 150."""
    topics = ["card payment", "cash withdrawal", "bank transfer", "top up", "exchange rate", "refund", "identity check", "direct debit",
              "virtual card", "passcode"]
    events = ["declined", "pending", "not recognised", "charged twice", "fee", "limit", "wrong amount", "cancelled", "not received", "timing",
              "by cheque", "abroad", "blocked", "reverted", "not working"]
    return [f"{topic} {event}" for event in events for topic in topics][:count]


def scoring_task(data: str, labels: int, texts: int, length: int | None) -> tuple[list[str], list[str]]:
    """Texts and label names: the first of a dataset's own, or made up where it has not so many; `length` makes all texts that many tokens long."""
    rows = read_rows(DATA[data] / "test.csv")
    own, messages = sorted({row["label"] for row in rows}), [row["text"] for row in rows]
    if length:
        tokenizer = tool.load_tokenizer(MODEL)
        stream = itertools.cycle(tokenizer.encode(" ".join(messages), add_special_tokens=False))
        messages = [tokenizer.decode(list(itertools.islice(stream, length))) for _ in range(texts)]
    return messages[:texts], own[:labels] if labels <= len(own) else made_up_labels(labels)


# ---- scoring

@torch.no_grad()
def score_pairs(classifier: tool.Classifier, texts: list[str], tokens: int = 2048) -> np.ndarray:
    """One pass for each text and label, as evaluation harnesses do: like lengths together, padding to the right, no end token fed."""
    form, model = classifier.form, classifier.model.eval()
    encoded = tool.encode_texts(classifier.tokenizer, texts, form)
    completions = list(form.completions.values())
    scores = torch.zeros(len(encoded), len(completions))
    pairs = sorted(np.ndindex(*scores.shape), key=lambda pair: -len(encoded[pair[0]]) - len(completions[pair[1]]))
    while pairs:
        longest = len(form.before) + len(encoded[pairs[0][0]]) + len(completions[pairs[0][1]]) - 1
        batch, pairs = pairs[:max(1, tokens // longest)], pairs[max(1, tokens // longest):]
        rows = [form.before + encoded[i] + completions[j][:-1] for i, j in batch]
        ids = torch.tensor([row + [classifier.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # causal: what comes before padding does not see it
        lengths = torch.tensor([len(completions[j]) for _, j in batch])
        owner = torch.arange(len(batch)).repeat_interleave(lengths)
        places = torch.tensor([place for row, n in zip(rows, lengths) for place in range(len(row) - n, len(row))])
        targets = torch.tensor([token for _, j in batch for token in completions[j]])
        log_probs = model.get_output_embeddings()(hidden[owner, places]).float().log_softmax(-1)
        sums = torch.zeros(len(batch)).index_add(0, owner, log_probs[torch.arange(len(targets)), targets])
        scores[tuple(torch.tensor(batch).T)] = sums
    return scores.numpy()


def classifier_for(labels: list[str], quantized: bool = True) -> tool.Classifier:
    """The untouched embedded Llama, asked for these labels."""
    tokenizer, model = tool.load_tokenizer(MODEL), tool.load_model(MODEL, torch.float32, quantize=quantized)
    return tool.Classifier(model, tokenizer, tool.make_format(tokenizer, labels, model.config.max_position_embeddings))


def exactness(texts: list[str], labels: list[str]) -> dict[str, float]:
    """How far our log-probabilities are from those of one pass for each pair, at most."""
    gaps = {}
    for name, quantized in (("float32", False), ("4 bits", True)):
        classifier = classifier_for(labels, quantized)
        gaps[name] = float(np.abs(classifier.scores(texts) - score_pairs(classifier, texts)).max())
    return gaps


def shares(work: Callable) -> dict[str, float]:
    """Does the work; returns its matrix products and costliest operations, as shares of the time of all of torch's."""
    with torch.autograd.profiler.profile(use_kineto=False) as profiler:
        work()
    spent = Counter({event.key: event.self_cpu_time_total for event in profiler.key_averages()})
    return {operation: spent[operation] / spent.total() for operation in dict.fromkeys(["aten::mm", *(name for name, _ in spent.most_common(5))])}


def profile(texts: list[str], labels: list[str]) -> dict[str, float]:
    """Where the time of one pass goes."""
    classifier = classifier_for(labels)
    classifier.scores(texts)  # warm
    return shares(lambda: classifier.scores(texts))


def speed(method: str, texts: list[str], labels: list[str]) -> dict[str, float]:
    """Texts a second, and tokens that go through the model for a text."""
    classifier = classifier_for(labels)
    ask = {"one pass": classifier.scores, "pairs": lambda texts: score_pairs(classifier, texts),
           "generate": lambda texts: notebook_style.classify(classifier.model, classifier.tokenizer, texts, labels, batch_size=1),
           "generate in batches": lambda texts: notebook_style.classify(classifier.model, classifier.tokenizer, texts, labels)}[method]
    ask(texts[:2])  # warm
    read = []  # tokens of each pass, padding included
    hook = classifier.model.get_decoder().register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    start = time.perf_counter()
    answers = ask(texts)
    figures = {"seconds": time.perf_counter() - start, "tokens_per_text": sum(read) / len(texts)}
    hook.remove()
    figures["texts_per_second"] = len(texts) / figures["seconds"]
    return figures | ({"no_label": answers.count(notebook_style.NO_LABEL) / len(answers)} if isinstance(answers, list) else {})


def score(folder: Path, run: int, method: str, **task) -> dict[str, float]:
    """The figures of one way to score, or of what is asked about ours."""
    return {"exactness": exactness, "profile": profile}.get(method, partial(speed, method))(*scoring_task(**task))


METHODS = "one pass", "pairs", "generate", "generate in batches"


def scoring_cases(size: dict) -> list[dict]:
    """All methods at every number of labels, on the datasets as they are, and at every length of the text."""
    tasks = [{"data": "embedded", "labels": labels, "texts": size["texts"], "length": None} for labels in size["labels"]]
    tasks += [{"data": "banking77", "labels": 77, "texts": size["texts"], "length": None}] if "banking77" in size["data"] else []
    long = [{"data": "embedded", "labels": 8, "texts": size["texts"], "length": length} for length in size["lengths"]]
    return [{"method": method, **task} for task in tasks + long for method in METHODS] + \
           [{"method": method, **task, "texts": 8} for method in ("exactness", "profile") for task in tasks]


# ---- training

def stock(untouched: tool.Classifier, splits: DatasetDict, settings: tool.Settings, folder: Path):
    """As main.fine_tune, by trl's defaults; returns the new classifier and the training log."""
    trainer = notebook_style.train(untouched.model, untouched.tokenizer, splits["train"], untouched.labels, str(folder), epochs=settings.epochs,
                                   learning_rate=settings.learning_rate, rank=settings.rank, seed=settings.seed)
    return tool.replace(untouched, model=trainer.model), trainer.state.log_history


def train(folder: Path, run: int, method: str, data: str, train: int, epochs: int) -> dict[str, float]:
    """Examples a second of the optimizer's steps, peak memory, and the accuracy it came to; each run has its own seed. Or where the time of ours goes."""
    settings = tool.Settings(data=sample(data, folder, train), epochs=epochs, seed=42 + run)
    settings, splits, untouched = tool.prepare(settings)
    (folder / "run").mkdir()
    if method == "profile":
        splits["validation"] = splits["validation"].select(range(1))
        return shares(lambda: tool.fine_tune(untouched, splits, settings, folder / "run"))
    tuned, log, *_ = {"ours": tool.fine_tune, "stock": stock}[method](untouched, splits, settings, folder / "run")
    figures = {"examples_per_second": len(splits["train"]) * epochs / steps_seconds(log), "peak_mb": peak()}
    return figures | {"accuracy": float(accuracy_score(splits["test"]["label"][:], tuned.predict(splits["test"]["text"][:])))}


def steps_seconds(log: list[dict[str, float]]) -> float:
    """What the trainer took for all steps, without what it prepares before the first."""
    return next(entry["train_runtime"] for entry in log if "train_runtime" in entry)


def training_cases(size: dict) -> list[dict]:
    """Both trainers on every dataset, and a profile."""
    timed = [{"method": method, "data": data, "train": size["train"][data], "epochs": size["epochs"]}
             for data in size["data"] for method in ("ours", "stock")]
    return [*timed, {"method": "profile", "data": "embedded", "train": size["tried_rows"] // 2, "epochs": 1}]


def trl_loss(learning_rate: float, **given):
    """Stands in for main.careful_trainer: trl's own trainer and loss."""
    return notebook_style.SFTTrainer(**given)


def trl_evaluation(learning_rate: float, **given):
    """As trl_loss, and with a validation loss, on as many rows to those of training as main.py has: 160 to 880."""
    rows = given["train_dataset"]
    return trl_loss(learning_rate, eval_dataset=rows.select(range(len(rows) * 160 // 880)), **given)


def trl_rows(learning_rate: float, data_collator: Callable, **given):
    """Stands in for main.careful_trainer: trl's own trainer and loss, rows side by side with padding."""
    return trl_loss(learning_rate, **given)


def coarse(learning_rate: float, trainer: Callable = tool.careful_trainer, **given):
    """Stands in for main.careful_trainer: the adapter stays in bfloat16, as trl makes it on a 4-bit model."""
    made = trainer(learning_rate, **given)
    begin = made.train

    def train(**kwargs):
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        return begin(**kwargs)
    made.train = train
    return made


VARIANTS = {  # what is changed in ours
    "ours": {},
    "trl's loss": {"trainer": trl_loss},
    "trl's loss, validation after the epoch": {"trainer": trl_evaluation, "eval_strategy": "epoch"},
    "trl's loss, rows padded": {"trainer": trl_rows},
    "trl's loss, rows padded, like lengths together": {"trainer": trl_rows, "train_sampling_strategy": "group_by_length"},
    "activations computed again": {"activation_checkpointing": True, "gradient_checkpointing": True},
    "adapter in bfloat16": {"trainer": coarse},
    "bfloat16 autocast": {"bf16": True, "mixed_precision": "bf16"},
    "batch of 16": {"batch_size": 16, "pass_tokens": 4096},
    "one thread": {"threads": 1},
    "two loader processes": {"dataloader_num_workers": 2}}


def try_out(folder: Path, run: int, variant: str, rows: int) -> dict[str, float]:
    """Examples a second of an epoch over some rows of the embedded data, with something changed."""
    change = dict(VARIANTS[variant])
    torch.set_num_threads(change.pop("threads", torch.get_num_threads()))
    plan = {name: change.pop(name) for name in ("batch_size", "pass_tokens") if name in change}
    settings, splits, untouched = tool.prepare(tool.Settings(seed=42 + run, epochs=1, **plan))
    splits["train"] = splits["train"].select(range(rows))
    splits["validation"] = splits["validation"].select(range(8))
    tool.careful_trainer = change.pop("trainer", tool.careful_trainer)
    change_training(tool, save_strategy="no", **change)
    (folder / "run").mkdir()
    _, log, _ = tool.fine_tune(untouched, splits, settings, folder / "run")
    return {"examples_per_second": rows / steps_seconds(log)}


def tried_cases(size: dict) -> list[dict]:
    """All variants on the same rows; where bfloat16 is only imitated, its autocast is so slow that an eighth of them must do."""
    return [{"variant": variant, "rows": size["tried_rows"] // (8 if variant == "bfloat16 autocast" and not notebook_style.has_bfloat16() else 1)}
            for variant in VARIANTS]


# ---- start-up

def start_up(folder: Path, run: int, method: str) -> dict[str, float]:
    """Seconds of `main.py --help`, or to the first training step and of what it is made up of, in a new interpreter."""
    start = time.time()
    command = {"help": [ROOT / "main.py", "--help"], "first step": [HERE / "first_step.py", str(start), folder / "run"]}[method]
    done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
    return {"--help": time.time() - start} if method == "help" else json.loads(done.stdout.splitlines()[-1])


# ---- growth

def narrow_llama(folder: Path) -> str:
    """A Llama of one narrow layer with random weights and the embedded tokenizer; returns its path. What is done beside the model does not hide behind it."""
    tokenizer = tool.load_tokenizer(MODEL)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **shape, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def grow(folder: Path, run: int, rows: int, steps: int) -> dict[str, float]:
    """Seconds of the job's parts at so many rows, and the peak memory after each, in the order in which they are done.

    The rows are the first eight words of the embedded messages with two numbers, so that no two are the same.
    """
    messages = [row for split in ("train", "validation", "test") for row in read_rows(DATA["embedded"] / f"{split}.csv")]
    write_rows(folder / "rows.csv", [{"text": " ".join([str(i // 1000), *row["text"].split()[:8], str(i % 1000)]), "label": row["label"]}
                                     for i, row in enumerate(itertools.islice(itertools.cycle(messages), rows))])
    figures = {}

    def note(part: str, function: Callable, *arguments):
        start = time.perf_counter()
        result = function(*arguments)
        figures[part], figures[f"{part} peak_mb"] = time.perf_counter() - start, peak()
        return result

    tool.load_splits = partial(note, "read", tool.load_splits)
    tool.training_rows = partial(note, "training rows", tool.training_rows)
    settings, splits, untouched = tool.prepare(tool.Settings(data=str(folder / "rows.csv"), model=narrow_llama(folder / "model")))
    note("audit", tool.audit, splits, untouched.tokenizer, untouched.form)
    every = datasets.concatenate_datasets(list(splits.values()))
    texts = every["text"][:]
    note("tokenize", tool.longest_prompt, texts, untouched)
    scores = note("score", untouched.scores, texts)
    if rows <= WHOLE_JOB:
        note("baselines", tool.judge_baselines, splits)
        some = DatasetDict(train=splits["train"], validation=splits["validation"].select(range(8)))
        change_training(tool, max_steps=steps)
        tuned, log, _ = note("training rows, and some steps", tool.fine_tune, untouched, some, settings, folder)
        systems = ("majority", "tfidf", "zero_shot", "few_shot", "fine_tuned")
        probabilities = tool.softmax(scores, axis=1)
        note("report", tool.report, folder, every, tuned, scores, {name: ([probabilities], 0.0) for name in systems}, log)
    return figures


# ---- end to end

def end_to_end(folder: Path, run: int, method: str, data: str, train: int, epochs: int) -> dict[str, float]:
    """Seconds and memory of the whole program in a new interpreter, its accuracy, and for ours how much of it was fine-tuning."""
    out, script = folder / "run", HERE / "notebook_style.py" if method == "notebook" else ROOT / "main.py"
    command = [sys.executable, script, "--data", sample(data, folder, train), "--epochs", str(epochs), "--seed", str(42 + run)]
    start = time.time()
    done = subprocess.run(command + ([] if method == "notebook" else ["--output-dir", out]), check=True, stdout=subprocess.PIPE, text=True)
    figures = {"seconds": time.time() - start, "peak_mb": peak(RUSAGE_CHILDREN)}
    if method == "notebook":
        return figures | json.loads(done.stdout.splitlines()[-1])
    tuned = json.loads((out / "metrics.json").read_text())["systems"]["fine_tuned"]
    return figures | {"accuracy": tuned["accuracy"], "tuning_seconds": tuned["seconds"]}


def end_to_end_cases(size: dict) -> list[dict]:
    """Ours as it is without options, and the notebook with as many epochs, both on the embedded data."""
    return [{"method": method, "data": "embedded", "train": size["train"]["embedded"], "epochs": size["job_epochs"]} for method in ("main job", "notebook")]


SECTIONS = {"scoring": (score, scoring_cases), "training": (train, training_cases),
            "tried": (try_out, tried_cases),
            "startup": (start_up, lambda size: [{"method": "help"}, {"method": "first step"}]),
            "growth": (grow, lambda size: [{"rows": rows, "steps": size["steps"]} for rows in size["rows"]]),
            "end_to_end": (end_to_end, end_to_end_cases)}


# ---- running and showing

def peak(who: int = RUSAGE_SELF) -> float:
    """The most memory this process, or the largest of its ended children, has held, in MB (Linux counts in kB)."""
    return getrusage(who).ru_maxrss / 1024


def answer(measurement: Callable, arguments: dict, folder: Path) -> None:
    """In the forked process: measure, with all that is printed in a file, and leave the figures in another."""
    with (folder / "log.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    cache = str(folder / "cache")  # nothing is read faster because another run has read it
    os.environ["HF_DATASETS_CACHE"] = datasets.config.HF_DATASETS_CACHE = cache
    tool.quieten_libraries()
    floor = peak()
    figures = measurement(folder, **arguments)
    figures = {"peak_mb": peak()} | figures
    (folder / "figures.json").write_text(json.dumps(figures | {"own_mb": figures["peak_mb"] - floor}))


def measure(measurement: Callable, cases: list[dict], runs: int, at_once: int) -> Iterator[list[dict]]:
    """Median, mean and range of every figure of every case so far, from the end of the first run on.

    Runs are interleaved: a, b, c, a, b, c. What time cannot change, or what takes too long, is measured once.
    """
    once = lambda case: case.get("method") in ("exactness", "profile") or case.get("rows", 0) > WHOLE_JOB
    todo = [(run, i) for run in range(runs) for i, case in enumerate(cases) if run == 0 or not once(case)]
    found = [[] for _ in cases]
    for first in range(0, len(todo), at_once):
        with TemporaryDirectory(prefix="bench-") as name:
            children = []
            for run, i in todo[first:first + at_once]:
                folder = Path(name) / str(i)
                folder.mkdir()
                child = get_context("fork").Process(target=answer, args=(measurement, {"run": run, **cases[i]}, folder))
                child.start()
                children.append((child, i, folder))
            for child, i, folder in children:
                child.join()
                if child.exitcode:
                    raise RuntimeError(f"{measurement.__name__} {cases[i]} ended with {child.exitcode}\n{(folder / 'log.txt').read_text()[-3000:]}")
                found[i].append(json.loads((folder / "figures.json").read_text()))
                print(measurement.__name__, cases[i], {name: float(f"{value:.4g}") for name, value in found[i][-1].items()}, file=sys.stderr, flush=True)
        if all(found):
            yield [{"case": case} | {name: summary([figures[name] for figures in same]) for name in same[0]} for case, same in zip(cases, found)]


def summary(values: list[float]) -> dict[str, float]:
    """Median, mean and range of some runs."""
    return {"median": float(np.median(values)), "mean": float(np.mean(values)), "low": min(values), "high": max(values), "runs": len(values)}


def machine() -> dict[str, str | int]:
    """What it was measured on."""
    models = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {"processor": (models or [platform.processor() or platform.machine()])[0], "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(), "bfloat16": "in hardware" if notebook_style.has_bfloat16() else "imitated",
            **{name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")}}


def main() -> None:
    """Measure the sections asked for; what is measured is kept, whatever happens next."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smallest", action="store_true", help="see that everything works, in a minute; the times mean nothing")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="measure these, keep what bench.json has of the others")
    parser.add_argument("--runs", type=int, default=None, help="runs of every measurement (3; 1 at the smallest size)")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of rows for growth")
    parser.add_argument("--output-dir", type=Path, default=ROOT / "outputs", help="where bench.json and bench.png go")
    args = parser.parse_args()
    name = "smallest" if args.smallest else "full"
    size = SIZES[name] | ({"rows": args.rows} if args.rows else {})
    args.output_dir.mkdir(parents=True, exist_ok=True)
    kept = args.output_dir / "bench.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for section in args.only:
        measurement, cases = SECTIONS[section]
        for rows in measure(measurement, cases(size), args.runs or (1 if args.smallest else 3), 2 if args.smallest else 1):
            results[section] = {"size": name, "machine": machine(), "rows": rows}
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(show(section, results[section]), end="\n\n", flush=True)
        if section == "scoring":
            assert all(row["float32"]["high"] < 1e-3 for row in rows if row["case"]["method"] == "exactness"), "one pass is not exact"
    if {"scoring", "training"} <= results.keys():
        draw(results, args.output_dir / "bench.png")


if __name__ == "__main__":
    main()
