#!/usr/bin/env python
"""Fine-tune a 4-bit Llama with LoRA to classify texts, and judge it. Tangled from README.org."""

import sys

from day9.settings import MergeSettings, PredictSettings, Settings, parse_command

if __name__ == "__main__":
    parse_command(sys.argv[1:])  # mistakes and --help do not wait for the slow imports below

import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import DatasetDict
from scipy.special import softmax

from day9.audit import audit_split, balance, print_audit
from day9.baselines import judge_base_model, judge_baselines
from day9.card import write_card
from day9.checkpoints import best_epoch, newest_checkpoint, remove_checkpoints
from day9.classifier import Classifier
from day9.commands import merge, predict
from day9.errors import exit_code
from day9.files import write_json
from day9.loading import load_base, load_embedder
from day9.model import add_adapter
from day9.reading.splits import load_splits
from day9.report import compute_report, print_report, write_report
from day9.runs import check_space, keep_start, run_folder, save_classifier
from day9.training import train, training_rows

def run(asked: Settings) -> None:
    """The main job: a new run, or one that was interrupted."""
    with run_folder(asked) as (settings, folder):
        splits = load_splits(settings.data, settings.text_column, settings.label_column,
                             settings.data_config, settings.data_revision, settings.seed)
        embed, embedder, settings = load_embedder(settings)
        base, settings = load_base(settings, splits["train"])
        counts = {name: audit_split(split, base.tokenizer, base.prompt)
                  for name, split in splits.items()}
        print_audit(counts)
        keep_start(folder, settings, base, embedder, counts)

        print("scoring before training", flush=True)
        results = judge_base_model(splits, base, settings.instruction)

        start, test = time.perf_counter(), splits["test"]
        tuned, log = fine_tune(base, splits, settings, folder, asked.resume is not None)
        scores = tuned.scores(test["text"][:])
        results["fine_tuned"] = (softmax(scores / tuned.temperature, axis=1),
                                 time.perf_counter() - start)
        if torch.cuda.is_available():
            print(f"most memory allocated: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
        if PartialState().is_main_process:  # of several, which shared the Llama's work
            save_classifier(folder, tuned, settings)
            results = judge_baselines(splits, embed) | results  # no other process waits for it
            metrics = compute_report(test["label"][:], tuned, scores, results, log)
            print_report(metrics, test, tuned.labels, results["fine_tuned"][0])
            write_report(folder, test, tuned.labels, scores, results["fine_tuned"][0], log)
            write_card(folder, settings, counts, tuned.labels, metrics)
            write_json(folder / "metrics.json", metrics)  # last: it marks the run as finished
            remove_checkpoints(folder)
            print(f"\nkept in {folder}: the adapter and tokenizer, README.md, predictions.csv, "
                  "pictures, and what was measured")

def fine_tune(base: Classifier, splits: DatasetDict, settings: Settings, folder: Path,
              resume: bool = False) -> tuple[Classifier, list[dict]]:
    """Wrap the base model with LoRA and train it; returns the fine-tuned classifier and the log."""
    examples = balance(splits["train"], settings.seed) if settings.balance else splits["train"]
    rows = training_rows(examples, base.tokenizer, base.prompt)
    print(f"{len(rows):,} rows to train on\n\nthe first prompt:\n"
          f"{base.tokenizer.decode(rows[0]['prompt'])}\n")
    print("its completion:", [base.tokenizer.decode(ids) for ids in rows[0]["completion"]])
    tuned = replace(base, model=add_adapter(base.model, settings.rank, settings.seed))
    trainable, total = tuned.model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.1%})", flush=True)
    check_space(folder, trainable)
    checkpoint = newest_checkpoint(folder) if resume else None
    if resume:
        print(f"resuming from {checkpoint or 'the beginning: no checkpoint is complete'}")
    log = train(tuned, rows, splits["validation"], settings, folder, checkpoint)
    best = best_epoch(log)
    tuned.temperature = best["temperature"]
    print(f"kept: the adapter after epoch {best['epoch']:.0f} of {settings.epochs}, with the least "
          f"validation log-loss ({best['validation_loss']:.3f})", flush=True)
    return tuned, log

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    asked = parse_command(sys.argv[1:] if argv is None else argv)
    command = {Settings: run, PredictSettings: predict, MergeSettings: merge}[type(asked)]
    return exit_code(lambda: command(asked))


if __name__ == "__main__":
    sys.exit(main())
