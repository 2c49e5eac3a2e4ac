"""A run's folder: its lock, its settings, what it began with. Written by hand, not tangled."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from day9.checkpoints import checkpoints
from day9.errors import InputError, explain
from day9.files import write_json
from day9.hub import check_pointer
from day9.settings import HERE, Settings


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


# The folder


def is_litter(path: Path) -> bool:
    """Whether a file was left by a file manager in a folder that looks empty."""
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini", "lost+found")


def new_folder(output_dir: str | None) -> Path:
    """The folder of a new run, the same for all processes; it is made if there is none.

    Raises InputError where it cannot be made or written to.
    """
    started = datetime.now().strftime("%Y-%m-%d-%H%M%S-%f")
    [name] = broadcast_object_list([output_dir or str(HERE / "outputs" / started)])
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}: choose another --output-dir") from error
    return folder


@contextlib.contextmanager
def alone_in(folder: Path, holder: str | None = None) -> Iterator[None]:
    """Hold the lock of a folder, which the system takes from a process however it ends.

    The lock is on the folder itself, so there is no file to forget. Raises InputError if another
    process, the `holder` (or the run), has it or has removed the folder. On a file system without
    locks nobody is refused.
    """
    if not PartialState().is_main_process:
        yield
        return
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}: check --resume") from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{holder or f'the run in {folder}'} still lives: stop it first, or "
                             "wait") from error
        except OSError:
            pass
        if not (folder.exists() and os.path.samestat(os.fstat(held), folder.stat())):
            raise InputError(f"{folder} was removed just now by another process: try again")
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def explaining(folder: Path) -> Iterator[None]:
    """A run that is stopped says how to continue; what the user can mend becomes an InputError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, BrokenPipeError):
        if has_begun(folder):
            print(f"\nstopped: to continue, main.py --resume {folder}", file=sys.stderr)
        raise
    except Exception as error:
        if line := explain(error, folder if has_begun(folder) else None):
            raise InputError(line) from error
        raise


@contextlib.contextmanager
def removed_unless_begun(folder: Path) -> Iterator[None]:
    """Leave nothing of a run that never began."""
    try:
        yield
    finally:
        if not has_begun(folder):
            with contextlib.suppress(OSError):  # another process was first, or there is litter
                (folder / "settings.json").unlink(missing_ok=True)
                folder.rmdir()


@contextlib.contextmanager
def run_folder(settings: Settings) -> Iterator[tuple[Settings, Path]]:
    """The settings and the locked folder of a new run, or of one that is resumed.

    Raises InputError for what the user can do something about.
    """
    if settings.resume:
        folder = Path(settings.resume)
        read_settings(folder, "--resume")  # it is a run
    else:
        folder = new_folder(settings.output_dir)
    with explaining(folder), alone_in(folder):
        if settings.resume:
            yield resumed_settings(folder, settings), folder
        else:
            if PartialState().is_main_process and not all(map(is_litter, folder.iterdir())):
                raise InputError(f"{folder} is not empty: choose a new --output-dir")
            with removed_unless_begun(folder):
                yield settings, folder


def resumed_settings(folder: Path, settings: Settings) -> Settings:
    """The settings of a run that is resumed. Raises InputError if it is finished, or is no run."""
    kept = find_again(read_settings(folder, "--resume"), settings.model,
                      settings.data if settings.data != Settings.data else None,
                      settings.embedder)
    if (folder / "metrics.json").exists():
        raise InputError(f"{folder} holds a finished run: there is nothing to resume")
    return kept


# What it began with


def has_begun(folder: Path) -> bool:
    """Whether a run has come as far as to keep what it began with, and can be resumed."""
    return (folder / "audit.json").exists()


def read_settings(folder: Path, option_name: str) -> Settings:
    """The settings of a run. Raises InputError if the folder holds none, or they are damaged."""
    path = folder / "settings.json"
    try:
        return Settings(**read_json(path))
    except OSError as error:
        raise InputError(f"{folder} is not the folder of a run: check {option_name}") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: restore it") from error


def find_again(settings: Settings, model: str | None = None, data: str | None = None,
               embedder: str | None = None) -> Settings:
    """A run's settings with the places where its base model, data and embedder are now.

    That is where the caller says, or where they were, or in this checkout if they came with one.
    """
    def now(path: str | None) -> str | None:
        if path is None:
            return None
        ours = HERE / "data" / Path(path).name
        moved = Path(path).is_absolute() and not Path(path).exists()
        return str(ours) if moved and Path(path).parent.name == "data" and ours.exists() else path

    model, data = model or now(settings.model), data or now(settings.data)
    revision = settings.revision if model == settings.model else None
    return replace(settings, model=model, data=data, revision=revision,
                   embedder=embedder or now(settings.embedder))


def check_same(found, kept, name: str, option_name: str) -> None:
    """Raise InputError if something is not what a run has kept of it."""
    if kept is not None and found != kept:
        raise InputError(f"{name} is not what it was when the run began: restore it, or say with "
                         f"{option_name} where it is now")


def keep_start(folder: Path, settings: Settings, base, embedder: str | None,
               counts: dict[str, dict]) -> None:
    """Keep the settings and what a run begins with: digests of its base and embedder, and counts.

    Raises InputError if they are not what they were when a resumed run began.
    """
    started = {"base": base.digest, "prompt": base.prompt.digest, "embedder": embedder, **counts}
    options = {"base": "model", "prompt": "model", "embedder": "embedder"}
    digest = lambda part: part["sha256"] if isinstance(part, dict) else part
    kept = read_json(folder / "audit.json") if has_begun(folder) else {}
    if settings.embedder == "none":  # a run can be finished without: its verdict says so
        kept.pop("embedder", None)
    for part, before in kept.items():
        option_name = options.get(part, "data")
        check_same(digest(started.get(part)), digest(before), getattr(settings, option_name),
                   f"--{option_name}")
    if PartialState().is_main_process:
        write_json(folder / "settings.json", asdict(settings))
        write_json(folder / "audit.json", started)


def check_space(folder: Path, trainable: int) -> None:
    """Raise InputError unless three checkpoints, in float32, and the results fit on the disk."""
    there = sum(path.stat().st_size for checkpoint in checkpoints(folder)  # of a resumed run
                for path in checkpoint.iterdir())
    need, free = 40 * trainable + 50e6 - there, shutil.disk_usage(folder).free
    if free < need:
        raise InputError(f"{folder} has {free / 1e6:,.0f} MB left and the run may need "
                         f"{need / 1e6:,.0f}: make room, or choose another --output-dir")


# What it leaves


def save_classifier(folder: Path, classifier, settings: Settings) -> None:
    """What load_classifier needs, in peft's own format, and the versions of the libraries."""
    config = classifier.model.peft_config["default"]
    config.base_model_name_or_path, config.revision = settings.model, settings.revision
    classifier.model.save_pretrained(folder, save_embedding_layers=False)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / "settings.json", asdict(settings))
    write_json(folder / "classifier.json", {
        "labels": classifier.labels, "temperature": classifier.temperature,
        "base": classifier.digest, "prompt": classifier.prompt.digest})
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate",
                "scikit-learn", "sentence-transformers"]
    versions = {"python": sys.version.split()[0]}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):  # as of the embedder, which may be left out
            versions[name] = version(name)
    write_json(folder / "versions.json", versions)


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
