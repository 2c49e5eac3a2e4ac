"""Ways to classify, and cells of measurements of them. Written by hand, not tangled."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import DatasetDict
from peft import get_peft_model

import main
from day9.baselines import fit_embeddings, fit_tfidf, timed
from day9.checkpoints import best_epoch
from day9.errors import InputError
from day9.files import write_json
from day9.loading import load_base, load_embedder
from day9.metrics import compute_metrics
from day9.model import lora_config
from day9.prompts import load_tokenizer
from day9.settings import Settings
from day9.training import train, training_rows

System = Callable[[DatasetDict, Settings], np.ndarray]  # trains; probabilities of the test rows


def train_tfidf(splits: DatasetDict, settings: Settings) -> np.ndarray:
    """The simple baseline."""
    baseline = fit_tfidf(splits["train"], splits["validation"])
    return baseline.predict_proba(splits["test"]["text"][:])


def train_embeddings(splits: DatasetDict, settings: Settings) -> np.ndarray:
    """Sentence embeddings with logistic regression."""
    embed, _, settings = load_embedder(settings)
    if embed is None:
        raise InputError(f"there are no sentence embeddings: --embedder {settings.embedder}")
    baseline = fit_embeddings(splits["train"], splits["validation"], embed)
    return baseline.predict_proba(splits["test"]["text"][:])


def train_fine_tuned(splits: DatasetDict, settings: Settings, rate: float = 1,
                     **changes) -> np.ndarray:
    """A Llama that is trained to write the label, as main.py does it.

    Otherwise with `changes` of the settings, or with the learning rate times `rate`.
    """
    base, settings = load_base(replace(settings, **changes), splits["train"])
    settings = replace(settings, learning_rate=rate * settings.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        tuned, _ = main.fine_tune(base, splits, settings, Path(folder))
    return tuned.predict_proba(splits["test"]["text"][:])


def train_head(splits: DatasetDict, settings: Settings) -> np.ndarray:
    """The same Llama, adapter and prompt, with a new layer on top: an output for each class.

    It takes the place of the layer that has one for each token, and a label is then one "token": so
    it is trained and scored as the words are.
    """
    base, settings = load_base(settings, splits["train"])
    model, config = base.model, lora_config(settings.rank)
    transformers.set_seed(settings.seed)
    head = torch.nn.Linear(model.config.hidden_size, len(base.labels), bias=False,
                           device=model.device, dtype=model.dtype)
    model.set_output_embeddings(head)
    torch.nn.init.zeros_(head.weight)  # at first all classes are equally likely
    model.config.tie_word_embeddings = False
    config.modules_to_save = ["lm_head"]  # trained as it is
    numbers = {label: [number] for number, label in enumerate(base.labels)}
    tuned = replace(base, model=get_peft_model(model, config),
                    prompt=replace(base.prompt, completions=numbers))
    rows = training_rows(splits["train"], tuned.tokenizer, tuned.prompt)
    with tempfile.TemporaryDirectory() as folder:
        log = train(tuned, rows, splits["validation"], settings, Path(folder))
    tuned.temperature = best_epoch(log)["temperature"]
    return tuned.predict_proba(splits["test"]["text"][:])


def train_random(splits: DatasetDict, settings: Settings) -> np.ndarray:
    """As train_fine_tuned, but from random weights in place of the pretrained ones."""
    with tempfile.TemporaryDirectory() as folder:
        transformers.set_seed(settings.seed)
        config = transformers.AutoConfig.from_pretrained(settings.model)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        load_tokenizer(settings.model).save_pretrained(folder)
        return train_fine_tuned(splits, replace(settings, model=folder))


def train_coded(splits: DatasetDict, settings: Settings) -> np.ndarray:
    """As train_fine_tuned, with "type 1", "type 2" and so on in place of the labels' names."""
    labels = sorted(splits["train"].unique("label"))
    codes = {label: f"type {number}" for number, label in enumerate(labels, 1)}
    coded = splits.map(lambda row: {"label": codes[row["label"]]})
    columns = sorted(codes.values())
    found = train_fine_tuned(coded, settings)
    return found[:, [columns.index(codes[label]) for label in labels]]


SYSTEMS = {"tfidf": train_tfidf, "embeddings": train_embeddings, "fine_tuned": train_fine_tuned,
           "head": train_head}


def judge(system: System, splits: DatasetDict, settings: Settings) -> dict[str, float]:
    """The metrics of a system on the test split, after it was trained on the others."""
    probabilities, seconds = timed(system, splits, settings)
    found = compute_metrics(splits["test"]["label"][:], probabilities,
                            sorted(splits["train"].unique("label")), seconds)
    return {name: round(value, 4) for name, value in found.items()}


def find_result(cell: dict, results: list[dict]) -> dict | None:
    """What was measured of a cell, if it was."""
    return next((result for result in results if cell.items() <= result.items()), None)


def measure_missing(path: Path, cells: list[dict], measure: Callable[[dict], dict]) -> list[dict]:
    """Measure the cells that a file lacks, each written to it as it comes; all results."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for cell in cells:
        if not find_result(cell, results):
            results.append(cell | measure(cell))
            write_json(path, results)
            print(results[-1], flush=True)
    return results
