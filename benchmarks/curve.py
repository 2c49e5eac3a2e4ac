"""Test accuracy after training on few and on many examples: words, a head, and TF-IDF."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
import transformers
from datasets import Dataset, DatasetDict
from sklearn.metrics import accuracy_score

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import main
from baselines import fit_tfidf
from edge import quieten_libraries
from judging import likeliest
from keeping import write_json
from llama import add_adapter, four_bits, keep_trainable, load_model
from reading import split_off
from reporting import draw
from scoring import Classifier


HEAD_LEARNING_RATE = 1e-3  # the best on validation of 2e-4, 5e-4 and 1e-3, 32 messages

VALIDATION_ROWS = 40  # to choose an epoch by; with few examples there would not be more


def plan(name: str, train: Dataset, seed: int, rank: int) -> main.Settings:
    """The program's default settings for so many rows."""
    width = transformers.AutoConfig.from_pretrained(name).hidden_size
    return main.Settings(model=name, epochs=main.default_epochs(train["label"][:]), rank=rank,
                         learning_rate=0.5 / width, seed=seed)


def train_words(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """The predictions of a Llama that was trained to write the label."""
    labels, tokenizer = sorted(splits["train"].unique("label")), main.load_tokenizer(name)
    prompt = main.make_prompt(tokenizer, labels, main.default_instruction(labels), 512)
    model = add_adapter(load_model(name, main.choose_precision()[0]), rank, seed)
    tuned, rows = Classifier(model, tokenizer, prompt), main.training_rows(
        splits["train"], tokenizer, prompt)
    with tempfile.TemporaryDirectory() as folder:
        main.train(tuned, rows, splits["validation"], plan(name, splits["train"], seed, rank),
                   Path(folder))
    return tuned.predict(splits["test"]["text"][:])


def train_head(name: str, splits: DatasetDict, seed: int, rank: int) -> list[str]:
    """The same with a classification head; the epoch with the least validation loss counts."""
    from peft import LoraConfig, get_peft_model

    labels, tokenizer = sorted(splits["train"].unique("label")), main.load_tokenizer(name)
    numbered = splits.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512) | {
        "label": labels.index(row["label"])}, remove_columns=["text"])
    transformers.set_seed(seed)
    dtype, _ = main.choose_precision()
    config = four_bits(dtype)
    config.llm_int8_skip_modules = ["score"]  # the head is new, and trained as it is
    model = keep_trainable(transformers.AutoModelForSequenceClassification.from_pretrained(
        name, dtype=dtype, quantization_config=config, num_labels=len(labels),
        pad_token_id=tokenizer.pad_token_id))
    model = get_peft_model(model, LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="SEQ_CLS"))
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
    """As train_words, but from random weights in place of the pretrained ones."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.set_seed(seed)
        config = transformers.AutoConfig.from_pretrained(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        main.load_tokenizer(name).save_pretrained(folder)
        return train_words(folder, splits, seed, rank)


SYSTEMS = {"words": train_words, "head": train_head, "tfidf": train_tfidf,
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
        few = validation if system == "tfidf" else split_off(validation, VALIDATION_ROWS, 0)[1]
        chosen = DatasetDict(splits | {"train": part, "validation": few})
        predicted = SYSTEMS[system](name, chosen, seed, rank)
        accuracy = accuracy_score(splits["test"]["label"][:], predicted)
        kept.append({"system": system, "rows": rows, "seed": seed, "rank": rank,
                     "accuracy": accuracy, "seconds": time.perf_counter() - start})
        write_json(path, kept)
        print(kept[-1], flush=True)


def choose_points(sizes: list[int], seeds: int) -> list[tuple]:
    """The learning curve, seed by seed, then ranks and the control on the first size."""
    curve = [(system, rows, seed, 16) for seed in range(seeds) for rows in sizes
             for system in ("tfidf", "words", "head")]
    return curve + [("words", sizes[0], 0, 1), ("words", sizes[0], 0, 64),
                    ("random", sizes[0], 0, 16)]


def plot_accuracies(axes, lines: dict[str, pd.Series]) -> None:
    """Plot the accuracies of each name against their index, on a logarithmic axis."""
    for name, accuracies in lines.items():
        axes.plot(accuracies.index, accuracies, marker="o", label=name)
    axes.set_xscale("log")
    axes.legend()


def draw_curve(points: pd.DataFrame, path: Path) -> str:
    """Draw accuracy against training rows, a line per system, the mean over seeds."""
    axes, write = draw((6, 4), path)
    means = points.groupby(["system", "rows"])["accuracy"].mean()
    plot_accuracies(axes, {system: means[system] for system in ("words", "head", "tfidf")})
    sizes = sorted(points["rows"].unique())
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    return write(xlabel="training messages", ylabel="test accuracy")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Accuracy with few and with many examples.")
    parser.add_argument("--model", default=str(ROOT / "data" / "smollm2"), help="folder or hub id")
    parser.add_argument("--data", default=str(ROOT / "data" / "patient-messages"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128, 512, 880])
    parser.add_argument("--seeds", type=int, default=2, help="draws of the examples per size")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "curve.json",
                        help="what is in it already is not measured again")
    args = parser.parse_args()
    quieten_libraries()
    measure(args.output, args.model, main.load_splits(args.data),
            choose_points(args.sizes, args.seeds))
