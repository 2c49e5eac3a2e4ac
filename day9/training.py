"""Training the adapter with trl's SFTTrainer and the scorer's loss. Tangled from README.org."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from day9.checkpoints import KeepBest, MarkComplete, read_adapter
from day9.classifier import Classifier
from day9.layout import lay_out, token_log_probs
from day9.memory import choose_checkpointing
from day9.passes import IGNORED, ignore_repeats, rows_in_a_pass
from day9.progress import ShowProgress
from day9.prompts import Prompt
from day9.settings import Settings


def training_rows(split: Dataset, tokenizer, prompt: Prompt) -> Dataset:
    """Token ids of each row's `prompt` and `completion`; only the completion is learnt."""
    def rows(batch):
        encoded = prompt.encode(tokenizer, batch["text"])
        return {"prompt": [prompt.before + ids for ids in encoded],
                "completion": [prompt.completions[label] for label in batch["label"]]}

    return split.map(rows, batched=True, remove_columns=split.column_names)


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of training rows as one layout, in which their common beginning occurs once."""
    layout = lay_out([row["prompt"] for row in rows], [row["completion"] for row in rows])
    targets = layout.pop("targets")
    row_of = torch.tensor([i for i, row in enumerate(rows) for _ in row["completion"]])
    # the Trainer's names: labels are targets, shift_labels the same, each with its source
    return layout | {"labels": targets, "shift_labels": targets.clone(), "rows": row_of}

def default_learning_rate(model) -> float:
    """0.5 / width: wide models need small steps."""
    return 0.5 / model.config.get_text_config().hidden_size


MOST_EPOCHS = 12


def default_epochs(labels: list[str]) -> int:
    """So many that each class is seen about 200 times; `labels` are the training rows'."""
    return max(1, min(MOST_EPOCHS, round(200 * len(set(labels)) / len(labels))))

class OneGpuConfig(SFTConfig):
    """trl's settings for a process that trains on one GPU, however many there are."""

    n_gpu = 1


def training_settings(settings: Settings, folder: Path, rows: int, dtype: torch.dtype,
                      checkpointing: bool = False) -> SFTConfig:
    """The run's settings in the words of trl, with `rows` rows in a pass, computed in `dtype`."""
    return OneGpuConfig(
        output_dir=str(folder), num_train_epochs=settings.epochs,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=settings.batch_size // (rows * PartialState().num_processes),
        learning_rate=settings.learning_rate, lr_scheduler_type="linear",
        activation_checkpointing=checkpointing, remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are token ids already
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16, logging_steps=0.02, logging_nan_inf_filter=False,
        report_to="none", seed=settings.seed, disable_tqdm=True,
        save_steps=settings.checkpoint_steps, ddp_find_unused_parameters=False)

class CarefulTrainer(SFTTrainer):
    """An SFTTrainer for a model that returns the log-probabilities of a layout's targets."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.model_accepts_loss_kwargs = True  # num_items_in_batch counts all passes of a batch

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The passes of a batch, and the number of their targets, without rows that are repeats."""
        rows, size = len(self.train_dataset), self.args.per_device_train_batch_size
        last = self.accelerator.gradient_state
        passes = (ignore_repeats(inputs, rows, size) if last.end_of_dataloader else inputs
                  for inputs in epoch_iterator)
        return super().get_batch_samples(passes, num_batches, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Minus the mean log-probability of the batch's targets, of which this pass has a share."""
        share = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged
        return -model(**inputs)[inputs["shift_labels"] != IGNORED].sum() / share


class StopOnOverflow(transformers.TrainerCallback):
    """Ends training when a gradient is infinite or not a number, before it spoils the adapter."""

    overflows = 0  # in a row; float16 skips a step now and then

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        fine = torch.nn.utils.get_total_norm(gradients).isfinite()
        self.overflows = 0 if fine else self.overflows + 1
        if self.overflows > (20 if args.fp16 else 0):
            raise FloatingPointError(
                f"step {state.global_step + 1}: the gradient is infinite or not a number, and "
                f"nothing was changed by it, at a learning rate of {args.learning_rate:.2g}")

@contextlib.contextmanager
def returning_log_probs(model) -> Iterator[None]:
    """Let the model return the log-probabilities of a layout's targets, as long as it trains."""
    model.forward = lambda labels, shift_labels, rows, **layout: token_log_probs(
        model, targets=labels, **layout)
    try:
        yield
    finally:
        del model.forward  # what hides the model's own: it can generate again


def train(classifier: Classifier, rows: Dataset, validation: Dataset, settings: Settings,
          folder: Path, checkpoint: Path | None = None) -> list[dict]:
    """Train the classifier's adapter in place on training_rows; returns the log.

    The adapter of the epoch with the least validation log-loss is the one that stays.
    """
    model, shared = classifier.model, len(classifier.prompt.before)
    longest = max(len(prompt) + len(completion) for batch in rows.iter(1000)
                  for prompt, completion in zip(batch["prompt"], batch["completion"])) - shared
    size = rows_in_a_pass(settings.batch_size, longest, classifier.pass_tokens)
    checkpointing = choose_checkpointing(model, settings, shared + size * longest)
    best = KeepBest(classifier, validation, folder)
    trainer = CarefulTrainer(
        model=model, train_dataset=rows, data_collator=collate,
        args=training_settings(settings, folder, size, model.dtype, checkpointing),
        processing_class=classifier.tokenizer,
        callbacks=[StopOnOverflow(), best, ShowProgress(), MarkComplete()])
    trainer.remove_callback(transformers.PrinterCallback)
    for parameter in model.parameters():
        if parameter.requires_grad:  # trl's bfloat16 is too coarse for small steps
            parameter.data = parameter.data.float()
    with returning_log_probs(model):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    read_adapter(best.path, model)
    return [{name: value for name, value in entry.items() if name != "grad_norm"}
            for entry in trainer.state.log_history]
