"""What a run keeps on the disk, so that nothing is lost or mistaken for something else."""

import csv
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from sklearn.metrics import log_loss
from transformers import TrainerCallback

from judging import is_right
from reading import InputError
from settings import HERE, Settings


def write_json(path: Path, content) -> None:
    """Write readable JSON, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def make_run_folder(asked: str | None) -> Path:
    """A new or empty folder, the same for all processes: results are never overwritten.

    The file settings.json claims it at once, so that a second run cannot start in it. Raises
    InputError where the folder cannot be made or is not empty.
    """
    started = datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")
    [name] = broadcast_object_list([asked or str(HERE / "outputs" / started)])
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if PartialState().is_main_process:
            if any(path.name != ".DS_Store" for path in folder.iterdir()):
                raise InputError(f"{folder} is not empty: choose a new --output-dir")
            os.close(os.open(folder / "settings.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise InputError(f"another run starts in {folder}: choose a new --output-dir") from error
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}: choose another --output-dir") from error
    return folder


def read_settings(folder: Path, option_name: str) -> Settings:
    """The settings of a run. Raises InputError if the folder holds none."""
    try:
        return Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} is not the folder of a run: check {option_name}") from error


def check_space(folder: Path, trainable: int) -> None:
    """Raise InputError unless three checkpoints, in float32, and the results fit on the disk."""
    need, free = 40 * trainable + 50e6, shutil.disk_usage(folder).free
    if free < need:
        raise InputError(f"{folder} has {free / 1e6:,.0f} MB left and the run may need "
                         f"{need / 1e6:,.0f}: make room, or choose another --output-dir")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint but the list itself."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.stem != "complete":
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


class MarkComplete(TrainerCallback):
    """Writes the list of a checkpoint's files, with digests, when all processes have written."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step % args.save_steps == 0:  # no mean may reach across a checkpoint
            control.should_log = True

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            write_json(folder / "complete.json", digests(folder))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; says which newer ones are skipped."""
    numbered = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for checkpoint in numbered:
        try:
            kept = json.loads((checkpoint / "complete.json").read_text(encoding="utf-8"))
            if kept == digests(checkpoint):
                return checkpoint
        except (OSError, ValueError):
            pass
        print(f"warning: {checkpoint} is incomplete or damaged: skipped")
    return None


def forget_run_folder(folder: Path) -> None:
    """Remove the folder of a run that never began, if nothing but its claim is in it."""
    if [path.name for path in folder.iterdir()] == ["settings.json"]:
        shutil.rmtree(folder)


def read_classifier(folder: Path) -> dict:
    """Labels and temperature of a finished run. Raises InputError if the folder holds none."""
    try:
        return json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not the folder of a finished run: check --run, or continue "
                         f"with main.py --resume {folder}") from error


def new_output(output: str) -> Path:
    """The path of a result that does not exist yet, in a folder that does."""
    path = Path(output)
    if path.exists() or not path.parent.is_dir():
        why = "exists already" if path.exists() else "is in a folder that does not exist"
        raise InputError(f"{path} {why}: name a new --output")
    return path


def write_table(path: Path | None, columns: dict[str, list]) -> None:
    """Write columns to a new csv or jsonl file, whole or not at all; without one, print JSON.

    Every text in a csv file is quoted, so that one of any characters is read back as it is.
    """
    rows = zip(*columns.values())
    lines = (json.dumps(dict(zip(columns, row)), ensure_ascii=False) for row in rows)
    if path is None:
        for line in lines:
            print(line)
        return
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, quoting=csv.QUOTE_NONNUMERIC).writerows([list(columns), *rows])
        else:
            file.writelines(line + "\n" for line in lines)
    draft.replace(path)


def write_adapter(path: Path, model) -> None:
    """Write the adapter's weights, whole or not at all."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    draft = path.with_suffix(".draft")
    save_file(get_peft_model_state_dict(model), draft)
    draft.replace(path)


def read_adapter(path: Path, model) -> None:
    """Put written weights back into the model's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(path))


BEST = "best_adapter.safetensors"


class KeepBest(TrainerCallback):
    """Scores validation after each epoch and keeps the adapter that has had the least log-loss."""

    def __init__(self, classifier, validation: Dataset, folder: Path):
        self.classifier, self.path = classifier, folder / BEST
        self.texts, self.truth = validation["text"][:], validation["label"][:]

    def on_step_end(self, args, state, control, **_):  # before a checkpoint, which holds the log
        if state.global_step % (state.max_steps // args.num_train_epochs):
            return
        probabilities, labels = self.classifier.predict_proba(self.texts), self.classifier.labels
        if not np.isfinite(probabilities).all():
            raise FloatingPointError(
                f"step {state.global_step}: the scores of validation are not numbers: lower "
                f"--learning-rate ({args.learning_rate:.2g})")
        loss = float(log_loss(self.truth, probabilities, labels=labels))
        accuracy = float(is_right(self.truth, probabilities, labels).mean())
        earlier = [entry["validation_loss"] for entry in validation_entries(state.log_history)]
        state.log_history.append({"epoch": state.epoch, "step": state.global_step,
                                  "validation_loss": loss, "validation_accuracy": accuracy})
        print(f"epoch {state.epoch:.0f} of {args.num_train_epochs:.0f}: validation log-loss "
              f"{loss:.3f}, accuracy {accuracy:.3f}", flush=True)
        if loss < min(earlier, default=float("inf")) and PartialState().is_main_process:
            write_adapter(self.path, self.classifier.model)


def validation_entries(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """The entries of a training log that were scored on validation, one per epoch."""
    return [entry for entry in log if "validation_loss" in entry]


def save_classifier(folder: Path, classifier, settings: Settings) -> None:
    """What load_classifier needs, in peft's own format, and the versions of the libraries."""
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    kept = {"labels": classifier.labels, "temperature": classifier.temperature}
    write_json(folder / "classifier.json", kept)
    write_json(folder / "settings.json", asdict(settings))
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate",
                "scikit-learn"]
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    write_json(folder / "versions.json", versions)
