"""Test accuracy after training on few and on many examples. Written by hand, not tangled."""

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import transformers
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from sklearn.metrics import accuracy_score

from day9 import training
from day9.baselines import fit_tfidf
from day9.classifier import Classifier
from day9.errors import quieten_libraries
from day9.files import write_json
from day9.loading import choose_precision
from day9.metrics import likeliest
from day9.model import add_adapter, four_bits, keep_trainable, load_model, lora_config
from day9.prompts import default_instruction, load_tokenizer, make_prompt
from day9.reading.splits import load_splits, split_off
from day9.report import SYSTEM_NAMES, draw
from day9.settings import HERE, SMALL_LLAMA, Settings

HEAD_LEARNING_RATE = 1e-3  # the best on validation of 2e-4, 5e-4 and 1e-3, 32 messages

VALIDATION_ROWS = 40  # to choose an epoch by; with few examples there would not be more


def plan(name: str, train: Dataset, seed: int, rank: int) -> Settings:
    """The program's default settings for so many rows."""
    width = transformers.AutoConfig.from_pretrained(name).hidden_size
    return Settings(model=name, epochs=training.default_epochs(train["label"][:]), rank=rank,
                    learning_rate=0.5 / width, seed=seed)


def train_fine_tuned(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """The predictions of a Llama that was trained to write the label."""
    labels, tokenizer = sorted(splits["train"].unique("label")), load_tokenizer(name)
    prompt = make_prompt(tokenizer, labels, default_instruction(labels), 512)
    model = add_adapter(load_model(name, choose_precision()[0]), rank, seed)
    tuned, rows = Classifier(model, tokenizer, prompt), training.training_rows(
        splits["train"], tokenizer, prompt)
    with tempfile.TemporaryDirectory() as folder:
        training.train(tuned, rows, splits["validation"],
                       plan(name, splits["train"], seed, rank), Path(folder))
    return tuned.predict(splits["test"]["text"][:])


def train_head(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """The same with a classification head; the epoch with the least validation loss counts."""
    labels, tokenizer = sorted(splits["train"].unique("label")), load_tokenizer(name)
    numbered = splits.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512) | {
        "label": labels.index(row["label"])}, remove_columns=["text"])
    transformers.set_seed(seed)
    dtype, _ = choose_precision()
    config = four_bits(dtype)
    config.llm_int8_skip_modules = ["score"]  # the head is new, and trained as it is
    model = keep_trainable(transformers.AutoModelForSequenceClassification.from_pretrained(
        name, dtype=dtype, quantization_config=config, num_labels=len(labels),
        pad_token_id=tokenizer.pad_token_id))
    model = get_peft_model(model, lora_config(rank, "SEQ_CLS"))
    settings = plan(name, splits["train"], seed, rank)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model, train_dataset=numbered["train"], eval_dataset=numbered["validation"],
            processing_class=tokenizer, args=transformers.TrainingArguments(
                output_dir=folder, num_train_epochs=settings.epochs, seed=seed,
                learning_rate=HEAD_LEARNING_RATE, warmup_steps=0.05, eval_strategy="epoch",
                save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True,
                use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        logits = trainer.predict(numbered["test"]).predictions
    return likeliest(logits, labels)


def train_tfidf(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """The predictions of the baseline."""
    baseline = fit_tfidf(splits["train"], splits["validation"])
    return list(baseline.predict(splits["test"]["text"][:]))


def train_control(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """As train_fine_tuned, but from random weights in place of the pretrained ones."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.set_seed(seed)
        config = transformers.AutoConfig.from_pretrained(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        load_tokenizer(name).save_pretrained(folder)
        return train_fine_tuned(folder, splits, seed, rank)


SYSTEMS = {"fine_tuned": train_fine_tuned, "head": train_head, "tfidf": train_tfidf,
           "random": train_control}


def measure(path: Path, name: str, splits: DatasetDict, points: list[tuple]) -> None:
    """Add the test accuracy of each (system, rows, seed, rank) that the file lacks."""
    kept = json.loads(path.read_text()) if path.exists() else []
    known = [(point["system"], point["rows"], point["seed"], point["rank"]) for point in kept]
    for system, rows, seed, rank in points:
        if (system, rows, seed, rank) in known:
            continue
        train, validation, start = splits["train"], splits["validation"], time.perf_counter()
        part = train if rows >= len(train) else split_off(train, rows, seed)[1]
        if system != "tfidf":
            validation = split_off(validation, VALIDATION_ROWS, 0)[1]
        chosen = DatasetDict(splits | {"train": part, "validation": validation})
        predicted = SYSTEMS[system](name, chosen, seed, rank)
        accuracy = accuracy_score(splits["test"]["label"][:], predicted)
        kept.append({"system": system, "rows": rows, "seed": seed, "rank": rank,
                     "accuracy": accuracy, "seconds": time.perf_counter() - start})
        write_json(path, kept)
        print(kept[-1], flush=True)


def choose_points(sizes: list[int], seeds: int) -> list[tuple]:
    """The learning curve, seed by seed, then ranks and the control on the first size."""
    curve = [(system, rows, seed, 16) for seed in range(seeds) for rows in sizes
             for system in ("tfidf", "fine_tuned", "head")]
    return curve + [("fine_tuned", sizes[0], 0, 1), ("fine_tuned", sizes[0], 0, 64),
                    ("random", sizes[0], 0, 16)]


def plot_accuracies(axes, lines: dict[str, pd.Series]) -> None:
    """Plot the accuracies of each name against their index, on a logarithmic axis."""
    for name, accuracies in lines.items():
        axes.plot(accuracies.index, accuracies, marker="o", label=SYSTEM_NAMES.get(name, name))
    axes.set_xscale("log")
    axes.legend()


def draw_curve(points: pd.DataFrame, path: Path) -> str:
    """Draw accuracy against training rows, a line per system, the mean over seeds."""
    axes, write = draw((6, 4), path)
    means = points.groupby(["system", "rows"])["accuracy"].mean()
    plot_accuracies(axes, {system: means[system] for system in ("fine_tuned", "head", "tfidf")})
    sizes = sorted(points["rows"].unique())
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    return write(xlabel="training messages", ylabel="test accuracy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Accuracy with few and with many examples.")
    parser.add_argument("--model", default=str(SMALL_LLAMA), help="folder or hub id")
    parser.add_argument("--data", default=Settings.data)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512, 880])
    parser.add_argument("--seeds", type=int, default=2, help="draws of the examples per size")
    parser.add_argument("--output", type=Path, default=HERE / "outputs" / "curve.json",
                        help="what is in it already is not measured again")
    args = parser.parse_args()
    quieten_libraries()
    measure(args.output, args.model, load_splits(args.data),
            choose_points(args.sizes, args.seeds))
