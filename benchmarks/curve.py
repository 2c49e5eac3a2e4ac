"""Test accuracy after training on few and on many examples. Written by hand, not tangled."""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from datasets import DatasetDict
from peft import get_peft_model
from scipy.special import softmax

import main
from day9.baselines import fit_embeddings, fit_tfidf, timed
from day9.errors import quieten_libraries
from day9.files import write_json
from day9.loading import choose_precision, load_base, load_embedder
from day9.metrics import is_right
from day9.model import four_bits, keep_trainable, lora_config
from day9.prompts import load_tokenizer
from day9.reading.splits import load_splits, split_off
from day9.report import SYSTEM_NAMES, draw
from day9.settings import HERE, SMALL_LLAMA, Settings
from day9.training import default_epochs

HEAD_LEARNING_RATE = 1e-3  # the best on validation of 2e-4, 5e-4 and 1e-3, 32 messages

VALIDATION_ROWS = 40  # to choose an epoch by; with few examples there would not be more


def train_fine_tuned(name: str, splits: DatasetDict, seed: int, rank: int) -> np.ndarray:
    """Test probabilities of a Llama that was trained to write the label, as main.py does it."""
    base, settings = load_base(Settings(model=name, seed=seed, rank=rank), splits["train"])
    with tempfile.TemporaryDirectory() as folder:
        tuned, _ = main.fine_tune(base, splits, settings, Path(folder))
    return tuned.predict_proba(splits["test"]["text"][:])


def train_head(name: str, splits: DatasetDict, seed: int, rank: int) -> np.ndarray:
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
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model, train_dataset=numbered["train"], eval_dataset=numbered["validation"],
            processing_class=tokenizer, args=transformers.TrainingArguments(
                output_dir=folder, seed=seed, learning_rate=HEAD_LEARNING_RATE,
                num_train_epochs=default_epochs(splits["train"]["label"][:]), warmup_steps=0.05,
                eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
                load_best_model_at_end=True,
                use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        return softmax(trainer.predict(numbered["test"]).predictions, axis=1)


def train_tfidf(name: str, splits: DatasetDict, seed: int, rank: int) -> np.ndarray:
    """Test probabilities of the simple baseline."""
    baseline = fit_tfidf(splits["train"], splits["validation"])
    return baseline.predict_proba(splits["test"]["text"][:])


def train_embeddings(name: str, splits: DatasetDict, seed: int, rank: int) -> np.ndarray:
    """Test probabilities of the default sentence embeddings with logistic regression."""
    embed, _, _ = load_embedder(Settings())
    baseline = fit_embeddings(splits["train"], splits["validation"], embed)
    return baseline.predict_proba(splits["test"]["text"][:])


def train_control(name: str, splits: DatasetDict, seed: int, rank: int) -> np.ndarray:
    """As train_fine_tuned, but from random weights in place of the pretrained ones."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.set_seed(seed)
        config = transformers.AutoConfig.from_pretrained(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        load_tokenizer(name).save_pretrained(folder)
        return train_fine_tuned(folder, splits, seed, rank)


SYSTEMS = {"fine_tuned": train_fine_tuned, "head": train_head, "tfidf": train_tfidf,
           "embeddings": train_embeddings, "random": train_control}


def measure(path: Path, name: str, splits: DatasetDict, points: list[dict]) -> None:
    """Add the test accuracy of each point that the file lacks."""
    kept = json.loads(path.read_text()) if path.exists() else []
    for point in points:
        if any(point.items() <= known.items() for known in kept):
            continue
        rows, seed, chosen = point["rows"], point["seed"], DatasetDict(splits)
        if rows < len(splits["train"]):
            _, chosen["train"] = split_off(splits["train"], rows, seed)
        if point["system"] != "tfidf":
            _, chosen["validation"] = split_off(splits["validation"], VALIDATION_ROWS, 0)
        probabilities, seconds = timed(SYSTEMS[point["system"]], name, chosen, seed, point["rank"])
        right = is_right(splits["test"]["label"][:], probabilities,
                         sorted(set(splits["train"]["label"][:])))
        kept.append(point | {"accuracy": float(right.mean()), "seconds": seconds})
        write_json(path, kept)
        print(kept[-1], flush=True)


def choose_points(sizes: list[int], seeds: int) -> list[dict]:
    """The learning curve, seed by seed, then ranks and the control on the first size."""
    curve = [{"system": system, "rows": rows, "seed": seed, "rank": 16} for seed in range(seeds)
             for rows in sizes for system in ("tfidf", "embeddings", "fine_tuned", "head")]
    few = {"system": "fine_tuned", "rows": sizes[0], "seed": 0}
    return curve + [few | {"rank": 1}, few | {"rank": 64}, few | {"system": "random", "rank": 16}]


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
    plot_accuracies(axes, {system: means[system] for system in (
        "fine_tuned", "head", "embeddings", "tfidf")})
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
