"""What a run keeps while it trains: its best adapter, checkpoints. Written by hand, not tangled."""

import contextlib
import json
import shutil
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from sklearn.metrics import log_loss
from transformers import TrainerCallback

from day9.files import digests, whole, write_json
from day9.metrics import fit_temperature, is_right

BEST = "best_adapter.safetensors"


def write_adapter(path: Path, model) -> None:
    """Write the adapter's weights, whole or not at all."""
    with whole(path) as draft:
        save_file(get_peft_model_state_dict(model, save_embedding_layers=False), draft)


def read_adapter(path: Path, model) -> None:
    """Put written weights back into the model's adapter."""
    set_peft_model_state_dict(model, load_file(path))


def validation_entries(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """The entries of a training log that were scored on validation, one per epoch."""
    return [entry for entry in log if "validation_loss" in entry]


def best_epoch(log: list[dict[str, float]]) -> dict[str, float]:
    """The entry of the epoch with the least validation log-loss."""
    return min(validation_entries(log), key=lambda entry: entry["validation_loss"])


class KeepBest(TrainerCallback):
    """Scores validation after each epoch and keeps the adapter that has had the least log-loss.

    Each epoch is judged with its own temperature: one that is merely too sure is not worse.
    """

    def __init__(self, classifier, validation: Dataset, folder: Path):
        self.classifier, self.path = classifier, folder / BEST
        self.texts, self.truth = validation["text"][:], validation["label"][:]

    def on_step_end(self, args, state, control, **_):  # before a checkpoint, which holds the log
        if state.global_step % (state.max_steps // args.num_train_epochs):
            return
        labels = self.classifier.labels
        try:
            scores = self.classifier.scores(self.texts)
        except FloatingPointError as error:
            raise FloatingPointError(f"step {state.global_step}: {error}, at a learning rate of "
                                     f"{args.learning_rate:.2g}") from error
        temperature = fit_temperature(scores, self.truth, labels)  # with which it would be used
        probabilities = softmax(scores / temperature, axis=1)
        loss = float(log_loss(self.truth, probabilities, labels=labels))
        accuracy = float(is_right(self.truth, probabilities, labels).mean())
        earlier = [entry["validation_loss"] for entry in validation_entries(state.log_history)]
        state.log_history.append({"epoch": state.epoch, "step": state.global_step,
                                  "validation_loss": loss, "validation_accuracy": accuracy,
                                  "temperature": temperature})
        print(f"epoch {state.epoch:.0f} of {args.num_train_epochs:.0f}: validation log-loss "
              f"{loss:.3f}, accuracy {accuracy:.3f}", flush=True)
        if loss < min(earlier, default=float("inf")) and PartialState().is_main_process:
            write_adapter(self.path, self.classifier.model)


class MarkComplete(TrainerCallback):
    """Writes the list of a checkpoint's files, with digests, when all processes have written.

    Of the checkpoints only the newest two stay.
    """

    def on_step_end(self, args, state, control, **_):
        if state.global_step % args.save_steps == 0:  # no mean may reach across a checkpoint
            control.should_log = True

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            write_json(folder / "complete.json", digests(
                path for path in folder.iterdir() if path.name != "complete.json"))
            for older in checkpoints(folder.parent)[2:]:
                shutil.rmtree(older, ignore_errors=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, the newest first."""
    numbers = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")}
    found = [path for path, number in numbers.items() if number.isdecimal()]
    return sorted(found, key=lambda path: int(numbers[path]), reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint is there and as it was written, the best adapter included."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, SafetensorError):
        kept, state = (json.loads((checkpoint / name).read_text(encoding="utf-8"))
                       for name in ("complete.json", "trainer_state.json"))
        if validation_entries(state["log_history"]):
            safe_open(checkpoint.parent / BEST, "pt")  # not in the checkpoint, and whole
        return kept == digests(checkpoint / name for name in kept)
    return False


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; says which newer ones are skipped."""
    for checkpoint in checkpoints(folder):
        if is_complete(checkpoint):
            return checkpoint
        print(f"warning: {checkpoint} is incomplete or damaged: skipped")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove what is of use during training alone."""
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)
    (folder / BEST).unlink()
