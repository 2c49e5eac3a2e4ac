"""What a run keeps on the disk, so that nothing is lost or mistaken for something else."""

import codecs
import contextlib
import csv
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from scipy.special import softmax
from sklearn.metrics import log_loss
from transformers import TrainerCallback

from edge import explain
from judging import fit_temperature, is_right
from prompts import Prompt
from reading import InputError, check_pointer, read_table
from settings import HERE, Settings


def write_json(path: Path, content) -> None:
    """Write readable JSON, whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict:
    """What write_json wrote. Raises OSError if there is none, InputError if it is damaged."""
    check_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: restore it")
    return content


def is_litter(path: Path) -> bool:
    """Whether a file was left by a file manager in a folder that looks empty."""
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini", "lost+found")


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
            if not all(map(is_litter, folder.iterdir())):
                raise InputError(f"{folder} is not empty: choose a new --output-dir")
            try:
                os.close(os.open(folder / "settings.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError as error:
                raise InputError(
                    f"another run starts in {folder}: choose a new --output-dir") from error
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}: choose another --output-dir") from error
    return folder


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which the system takes from a process however it ends.

    Raises InputError if another process holds it. On a file system without locks nobody is refused.
    """
    if not PartialState().is_main_process:
        yield
        return
    path = folder / ".lock"
    try:
        file = path.open("w")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"the run in {folder} still lives: stop it first, or wait") from error
        except OSError:
            pass
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def has_begun(folder: Path) -> bool:
    """Whether a run has come as far as to keep what it began with, and can be resumed."""
    return (folder / "audit.json").exists()


def read_settings(folder: Path, option_name: str) -> Settings:
    """The settings of a run. Raises InputError if the folder holds none, or they are damaged."""
    path = folder / "settings.json"
    if path.exists() and not path.stat().st_size and not has_begun(folder):
        raise InputError(f"no run began in {folder}: remove it and start anew")
    try:
        return Settings(**read_json(path))
    except OSError as error:
        raise InputError(f"{folder} is not the folder of a run: check {option_name}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: restore it") from error


def check_space(folder: Path, trainable: int) -> None:
    """Raise InputError unless three checkpoints, in float32, and the results fit on the disk."""
    there = sum(path.stat().st_size for path in folder.glob("checkpoint-*/*"))  # of a resumed run
    need, free = 40 * trainable + 50e6 - there, shutil.disk_usage(folder).free
    if free < need:
        raise InputError(f"{folder} has {free / 1e6:,.0f} MB left and the run may need "
                         f"{need / 1e6:,.0f}: make room, or choose another --output-dir")


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, under its name."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


BASE_FILES = re.compile(r"config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def sha256(content) -> str:
    """The digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def identify(name: str, revision: str, kept: str | None = None) -> tuple[str | None, str]:
    """A loaded model's commit, if it is on the hub, and the digest of its config and weights.

    A commit does not change, so the digest that was kept with it is that of its files. The version
    of the library that wrote the config does not count.
    """
    folder, commit = Path(name), None
    if not folder.is_dir():
        folder = Path(try_to_load_from_cache(name, "config.json", revision=revision)).parent
        commit = folder.name
    if kept and commit == revision:
        return commit, kept
    found = digests(path for path in folder.iterdir() if BASE_FILES.fullmatch(path.name))
    config = read_json(folder / "config.json") | {"transformers_version": None}
    return commit, sha256(found | {"config.json": config})


def identify_prompt(prompt: Prompt) -> str:
    """The digest of its token ids, which another tokenizer or chat template would change."""
    return sha256([prompt.before, prompt.after, prompt.completions])


def check_same(found, kept, name: str, option_name: str) -> None:
    """Raise InputError if something is not what a run has kept of it."""
    if kept is not None and found != kept:
        raise InputError(f"{name} is not what it was when the run began: restore it, or say with "
                         f"{option_name} where it is now")


def check_resumed(folder: Path, settings: Settings, now: dict) -> None:
    """Raise InputError if a run's model or data are not what they were when it began."""
    if (path := folder / "audit.json").exists():
        for part, kept in read_json(path).items():
            ours = part in ("base", "prompt")
            name, option_name = (settings.model, "--model") if ours else (settings.data, "--data")
            check_same(now.get(part), kept, name, option_name)


class MarkComplete(TrainerCallback):
    """Writes the list of a checkpoint's files, with digests, when all processes have written."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step % args.save_steps == 0:  # no mean may reach across a checkpoint
            control.should_log = True

    def on_save(self, args, state, control, **_):
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            write_json(folder / "complete.json", digests(
                path for path in folder.iterdir() if path.stem != "complete"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; says which newer ones are skipped."""
    numbered = {int(path.name.split("-")[1]): path for path in folder.glob("checkpoint-*")
                if re.fullmatch(r"checkpoint-\d+", path.name)}
    for _, checkpoint in sorted(numbered.items(), reverse=True):
        with contextlib.suppress(OSError, InputError, SafetensorError):
            kept = read_json(checkpoint / "complete.json")
            state = read_json(checkpoint / "trainer_state.json")
            if validation_entries(state["log_history"]):
                safe_open(folder / BEST, "pt")  # not in the checkpoint, and whole
            if kept == digests(checkpoint / name for name in kept):
                return checkpoint
        print(f"warning: {checkpoint} is incomplete or damaged: skipped")
    return None


def forget_run_folder(folder: Path) -> None:
    """Remove what a run that never began has left: its claim, and the folder if that was all."""
    with contextlib.suppress(OSError):  # another process was first, or there is litter in it
        own = [folder / name for name in ("settings.json", "settings.draft", "audit.draft")]
        if all(path in own or is_litter(path) for path in folder.iterdir()):
            for path in own:
                path.unlink(missing_ok=True)
            folder.rmdir()


def read_classifier(folder: Path) -> dict:
    """Labels and temperature of a finished run, and digests of what it was trained with.

    Raises InputError if the folder holds none, or they are damaged.
    """
    path = folder / "classifier.json"
    try:
        kept = read_json(path)
    except OSError as error:
        raise InputError(f"{folder} is not the folder of a finished run: check --run, or continue "
                         f"with main.py --resume {folder}") from error
    if not (isinstance(kept.get("labels"), list) and isinstance(kept.get("temperature"),
                                                              int | float)):
        raise InputError(f"{path} is damaged: restore it")
    return kept


def find_again(settings: Settings, model: str | None = None, data: str | None = None) -> Settings:
    """A run's settings with the places where its base model and its data are now.

    That is where the caller says, or where they were, or in this checkout if they came with one.
    """
    def now(place: str) -> str:
        own = HERE / "data" / Path(place).name
        moved = Path(place).is_absolute() and not Path(place).exists()
        return str(own) if moved and Path(place).parent.name == "data" and own.exists() else place

    model, data = model or now(settings.model), data or now(settings.data)
    revision = settings.revision if model == settings.model else None
    return replace(settings, model=model, data=data, revision=revision)


@contextlib.contextmanager
def run_folder(settings: Settings) -> Iterator[tuple[Settings, Path]]:
    """The settings and the locked folder of a new run, or of one that is resumed.

    A run that is stopped says how to continue; one that never began leaves nothing behind. Raises
    InputError for what the user can do something about.
    """
    resume = settings.resume is not None
    if resume:
        folder, data = Path(settings.resume), settings.data
        settings = find_again(read_settings(folder, "--resume"), settings.model,
                              data if data != Settings.data else None)
    else:
        folder = make_run_folder(settings.output_dir)
    try:
        with alone_in(folder):
            if (folder / "metrics.json").exists():
                raise InputError(f"{folder} holds a finished run: there is nothing to resume")
            yield settings, folder
    except BaseException as error:
        begun = has_begun(folder)
        if begun and isinstance(error, (KeyboardInterrupt, SystemExit, BrokenPipeError)):
            print(f"\nstopped: to continue, main.py --resume {folder}", file=sys.stderr)
        if line := explain(error, folder if begun else None):
            raise InputError(line) from error
        raise
    finally:
        if not resume and not has_begun(folder):
            forget_run_folder(folder)


def read_tested(folder: Path) -> list[str]:
    """The first test texts of a finished run. Raises InputError where they are lost."""
    path = folder / "predictions.csv"
    try:
        check_pointer(path)
    except OSError as error:
        raise InputError(f"{path} is missing, and merging is measured on its texts: restore it"
                         ) from error
    try:
        return read_table(path, "text")["text"][:200]
    except InputError as error:
        raise InputError(f"{path} is damaged: restore it") from error


def new_output(output: str) -> Path:
    """The path of a result that does not exist yet, in a folder that does."""
    path = Path(output)
    if path.exists() or not path.parent.is_dir():
        why = "exists already" if path.exists() else "is in a folder that does not exist"
        raise InputError(f"{path} {why}: name a new --output")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}: name another "
                         "--output") from error
    return path


def write_table(path: Path | None, columns: dict[str, list]) -> None:
    """Write columns to a new csv or jsonl file, whole or not at all; without one, print JSON.

    Every text in a csv file is quoted, so that one of any characters is read back as it is.
    """
    rows = zip(*columns.values())
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escape = path is None and codecs.lookup(encoding).name != "utf-8"
    lines = (json.dumps(dict(zip(columns, row)), ensure_ascii=escape) for row in rows)
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
        scores, labels = self.classifier.scores(self.texts), self.classifier.labels
        probabilities = softmax(scores, axis=1)
        if not np.isfinite(probabilities).all():
            raise FloatingPointError(
                f"step {state.global_step}: the scores of validation are not numbers: lower "
                f"--learning-rate ({args.learning_rate:.2g})")
        loss = float(log_loss(self.truth, probabilities, labels=labels))
        accuracy = float(is_right(self.truth, probabilities, labels).mean())
        earlier = [entry["validation_loss"] for entry in validation_entries(state.log_history)]
        state.log_history.append({"epoch": state.epoch, "step": state.global_step,
                                  "validation_loss": loss, "validation_accuracy": accuracy,
                                  "temperature": fit_temperature(scores, self.truth, labels)})
        print(f"epoch {state.epoch:.0f} of {args.num_train_epochs:.0f}: validation log-loss "
              f"{loss:.3f}, accuracy {accuracy:.3f}", flush=True)
        if loss < min(earlier, default=float("inf")) and PartialState().is_main_process:
            write_adapter(self.path, self.classifier.model)


def validation_entries(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """The entries of a training log that were scored on validation, one per epoch."""
    return [entry for entry in log if "validation_loss" in entry]


def save_classifier(folder: Path, classifier, settings: Settings) -> None:
    """What load_classifier needs, in peft's own format, and the versions of the libraries."""
    classifier.model.peft_config["default"].revision = settings.revision
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / "classifier.json", {
        "labels": classifier.labels, "temperature": classifier.temperature,
        "base": classifier.digest, "prompt": identify_prompt(classifier.prompt)})
    write_json(folder / "settings.json", asdict(settings))
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate",
                "scikit-learn"]
    versions = {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
    write_json(folder / "versions.json", versions)
