#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.
import sys

from settings import MergeSettings, PredictSettings, Settings, parse_command

if __name__ == "__main__":
    parse_command(sys.argv[1:])  # mistakes and --help do not wait for the libraries below

import logging
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel it can do without
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # and this of a home it cannot write to
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # trl would report each trainer to its makers

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from scipy.special import softmax

from audit import audit_split, balance, print_audit
from baselines import judge_base_model, judge_baselines
from card import write_card
from commands import merge, predict
from edge import ShowProgress, exit_code, loading
from keeping import (BEST, KeepBest, MarkComplete, check_resumed, check_space, identify_prompt,
                     newest_checkpoint, read_adapter, run_folder, save_classifier, write_json)
from llama import add_adapter
from memory import choose_checkpointing, expect_memory
from models import check_scoring, choose_model, choose_precision, context_length, load_base
from packing import rows_in_a_pass
from prompts import Prompt, check_prompt, default_instruction, load_tokenizer, make_prompt
from reading import load_splits
from reporting import best_epoch, compute_report, print_report, scoreboard, write_report
from scoring import Classifier, default_pass_tokens, lay_out, token_log_probs

def training_rows(split: Dataset, tokenizer, prompt: Prompt) -> Dataset:
    """Token ids of each row's `prompt` and `completion`; only the completion is learnt."""
    def rows(batch):
        encoded = prompt.encode(tokenizer, batch["text"])
        return {"prompt": [prompt.before + ids for ids in encoded],
                "completion": [prompt.completions[label] for label in batch["label"]]}

    return split.map(rows, batched=True, remove_columns=split.column_names)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of training rows as one layout, in which their common beginning occurs once."""
    return lay_out([row["prompt"] for row in rows], [row["completion"] for row in rows])

def default_learning_rate(model) -> float:
    """0.5 / width: wide models need small steps."""
    return 0.5 / model.config.get_text_config().hidden_size


MOST_EPOCHS = 12


def default_epochs(labels: list[str]) -> int:
    """So many that each class is seen about a hundred times; `labels` are the training rows'."""
    return max(1, min(MOST_EPOCHS, round(100 * len(set(labels)) / len(labels))))

def careful_trainer(learning_rate: float, **arguments):
    """An SFTTrainer whose loss is the scorer's, and which stops when gradients overflow."""
    from trl import SFTTrainer

    class CarefulTrainer(SFTTrainer):
        overflows = 0

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            share = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged
            return -model(**inputs).sum() / share

        def _clip_grad_norm(self, model):
            norm = super()._clip_grad_norm(model)
            self.overflows = 0 if norm.isfinite() else self.overflows + 1
            if self.overflows > (20 if self.accelerator.scaler else 0):  # float16 skips such steps
                raise FloatingPointError(
                    f"step {self.state.global_step + 1}: the gradient is infinite or not a number, "
                    f"and nothing was changed by it: lower --learning-rate ({learning_rate:.2g})")
            return norm

    trainer = CarefulTrainer(**arguments)
    trainer.model_accepts_loss_kwargs = True  # num_items_in_batch counts all passes of a batch
    trainer._loss_shifts_labels = False  # ours are aligned with their sources
    return trainer

def training_settings(settings: Settings, folder: Path, rows: int, checkpointing: bool = False):
    """The run's settings in the words of trl: an SFTConfig that takes `rows` rows in a pass."""
    from trl import SFTConfig

    dtype, _ = choose_precision()
    config = SFTConfig(
        output_dir=str(folder), num_train_epochs=settings.epochs,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=settings.batch_size // (rows * PartialState().num_processes),
        learning_rate=settings.learning_rate, lr_scheduler_type="linear",
        warmup_steps=0.02,  # below 1 it is a share of all steps
        activation_checkpointing=checkpointing, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids already
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16, logging_steps=0.02, logging_nan_inf_filter=False,
        report_to="none", seed=settings.seed, disable_tqdm=True,
        save_steps=settings.checkpoint_steps, save_total_limit=2,
        ddp_find_unused_parameters=False)
    config._n_gpu = 1  # one process trains on one GPU, however many there are
    return config

def train(classifier: Classifier, rows: Dataset, validation: Dataset, settings: Settings,
          folder: Path, resume: bool = False, checkpointing: bool = False) -> list[dict]:
    """Train the classifier's adapter in place on training_rows; returns the log.

    The adapter of the epoch with the least validation log-loss is the one that stays.
    """
    model, shared = classifier.model, len(classifier.prompt.before)
    longest = max(len(prompt) + len(completion) for batch in rows.iter(1000)
                  for prompt, completion in zip(batch["prompt"], batch["completion"])) - shared
    size = rows_in_a_pass(settings.batch_size, longest, classifier.pass_tokens)
    best = KeepBest(classifier, validation, folder)
    trainer = careful_trainer(
        settings.learning_rate, model=model, train_dataset=rows, data_collator=collate,
        args=training_settings(settings, folder, size, checkpointing),
        processing_class=classifier.tokenizer, callbacks=[best, ShowProgress(), MarkComplete()])
    trainer.remove_callback(transformers.PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # trl's bfloat16 is too coarse for small steps
            parameter.data = parameter.data.float()
    model.forward = lambda **layout: token_log_probs(model, **layout)  # what the trainer calls
    checkpoint = newest_checkpoint(folder) if resume else None
    if resume:
        start = checkpoint or "the beginning: no checkpoint is complete"
        print(f"resuming from {start}", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    del model.forward
    read_adapter(best.path, model)
    return [{name: value for name, value in entry.items() if name != "grad_norm"}
            for entry in trainer.state.log_history]

def prepare(settings: Settings) -> tuple[Settings, DatasetDict, Classifier]:
    """Load data, tokenizer and model, and say what was chosen and why.

    Returns the settings with the choices filled in, the splits, and the base model's classifier.
    """
    splits = load_splits(settings.data, settings.text_column, settings.label_column,
                         settings.data_config, settings.data_revision, settings.seed)
    labels = sorted(splits["train"].unique("label"))
    absolute = lambda place: str(Path(place).resolve()) if Path(place).exists() else place
    name, reason = choose_model(settings.model)
    settings = replace(settings, model=absolute(name), data=absolute(settings.data))
    dtype, why = choose_precision()
    print(f"model: {settings.model}, because {reason}")
    print(f"precision: {'4-bit' if settings.quantize else 'plain'} weights, {dtype} arithmetic, "
          f"because {why}", flush=True)
    model, settings, digest = load_base(settings)
    rows = splits["train"]["label"][:]
    settings = replace(
        settings, instruction=settings.instruction or default_instruction(labels),
        epochs=settings.epochs or default_epochs(rows),
        learning_rate=settings.learning_rate or default_learning_rate(model),
        pass_tokens=settings.pass_tokens or default_pass_tokens(),
        max_length=min(settings.max_length, context_length(model)))
    print(f"epochs: {settings.epochs}, with {len(rows) / len(labels):,.0f} rows per class")
    print(f"learning rate: {settings.learning_rate:.2g}, for a model "
          f"{model.config.get_text_config().hidden_size} wide")
    with loading("model", settings.model, settings.revision):
        tokenizer = load_tokenizer(settings.model, settings.revision or "main")
        prompt = make_prompt(tokenizer, labels, settings.instruction, settings.max_length)
    check_prompt(prompt, settings)
    classifier = Classifier(model, tokenizer, prompt, 1.0, settings.pass_tokens, digest)
    check_scoring(classifier)
    return settings, splits, classifier

def fine_tune(base: Classifier, splits: DatasetDict, settings: Settings, folder: Path,
              resume: bool = False) -> tuple[Classifier, list[dict], float]:
    """Wrap the model and train it; returns the fine-tuned classifier, the log, and seconds."""
    start, tokenizer = time.perf_counter(), base.tokenizer
    examples = balance(splits["train"], settings.seed) if settings.balance else splits["train"]
    rows = training_rows(examples, tokenizer, base.prompt)
    print(f"{len(rows):,} rows to train on\n\nthe first prompt:\n"
          f"{tokenizer.decode(rows[0]['prompt'])}\n")
    print("its completion:", [tokenizer.decode(token) for token in rows[0]["completion"]])
    config, number = base.model.config, choose_precision()[0].itemsize
    expected = expect_memory(config, settings, number, False)
    if checkpointing := choose_checkpointing(expected):
        expected = expect_memory(config, settings, number, True)
    print(f"memory to train: about {expected / 1e9:.2f} GB beside the libraries' own"
          + (", activations computed again" if checkpointing else ""))
    tuned = replace(base, model=add_adapter(base.model, settings.rank, settings.seed))
    trainable, total = tuned.model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.1%})", flush=True)
    check_space(folder, trainable)
    log = train(tuned, rows, splits["validation"], settings, folder, resume, checkpointing)
    best = best_epoch(log)
    print(f"kept: the adapter after epoch {best['epoch']:.0f} of {settings.epochs}, with the least "
          f"validation log-loss ({best['validation_loss']:.3f})", flush=True)
    tuned.temperature = best["temperature"]
    return tuned, log, time.perf_counter() - start

def do_run(settings: Settings, folder: Path, resume: bool) -> None:
    """Judge the baselines and the base model, train, judge again; print and keep the results."""
    settings, splits, base = prepare(settings)
    counts = {name: audit_split(split, base.tokenizer, base.prompt)
              for name, split in splits.items()}
    print_audit(counts)
    began = {"base": base.digest, "prompt": identify_prompt(base.prompt), **counts}
    if resume:
        check_resumed(folder, settings, began)
    first = PartialState().is_main_process
    if first:
        write_json(folder / "settings.json", asdict(settings))
        write_json(folder / "audit.json", began)
    print("scoring before training", flush=True)
    results = judge_baselines(splits) if first else {}
    results |= judge_base_model(splits, base, settings.instruction)
    tuned, log, seconds = fine_tune(base, splits, settings, folder, resume)
    start = time.perf_counter()
    scores = tuned.scores(splits["test"]["text"][:])
    seconds += time.perf_counter() - start
    probabilities, test = softmax(scores / tuned.temperature, axis=1), splits["test"]
    results["fine_tuned"] = probabilities, seconds
    if torch.cuda.is_available():
        print(f"most memory allocated: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")
    if first:
        save_classifier(folder, tuned, settings)
        metrics = compute_report(test["label"][:], tuned.labels, scores, tuned.temperature,
                                 results, log)
        print_report(metrics, test, tuned.labels, probabilities)
        write_report(folder, test, tuned.labels, scores, probabilities, log)
        write_card(folder, settings, counts, tuned.labels, metrics,
                   scoreboard(metrics["systems"]))
        write_json(folder / "metrics.json", metrics)  # last: it marks the run as finished
        print(f"\nkept in {folder}: the adapter and tokenizer, README.md, predictions.csv, "
              "pictures, and what was measured")
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        (folder / BEST).unlink()

def run(asked: Settings) -> None:
    """A new run, or one that was interrupted."""
    with run_folder(asked) as (settings, folder):
        do_run(settings, folder, asked.resume is not None)

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    asked = parse_command(sys.argv[1:] if argv is None else argv)
    command = {Settings: run, PredictSettings: predict, MergeSettings: merge}[type(asked)]
    return exit_code(lambda: command(asked))

if __name__ == "__main__":
    sys.exit(main())
