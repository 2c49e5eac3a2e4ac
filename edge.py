"""Where the program meets its user: what went wrong becomes one line that says what to do."""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import torch
import transformers
from accelerate import PartialState
from safetensors import SafetensorError
from tqdm.auto import tqdm

from reading import InputError, ask_hub, cannot_load


@contextlib.contextmanager
def loading(what: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Ask the hub for a "model" or "data" once, and turn what fails inside into an InputError."""
    try:
        ask_hub(name, what, revision)
        yield
    except Exception as error:  # hub, file system and readers of weights share no exception
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        raise cannot_load(error, name, what) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU, whose allocator has no exception for it."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def explain(error: BaseException, folder: Path | None = None) -> str | None:
    """The line for what the user can do something about; None for a fault of the program.

    `folder` is the run's, if there is one yet: on a full disk the run can be resumed.
    """
    if isinstance(error, (InputError, FloatingPointError)):
        return str(error)
    if is_out_of_memory(error):
        return "out of memory: lower --pass-tokens, then --max-length and --rank"
    if isinstance(error, (OSError, RuntimeError, SafetensorError)) and folder is not None:
        if folder.exists() and shutil.disk_usage(folder).free < 2**20:
            return f"the disk is full: make room, then main.py --resume {folder}"
    return None


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    for library in (transformers.utils, huggingface_hub.utils, datasets):
        library.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("is_gradient_checkpointing", "gradient_checkpointing"):  # peft and trl ask for it
        warnings.filterwarnings("ignore", f"`{name}` is deprecated")


class Lines(tqdm):
    """A progress bar for files and pipes: a line every half a minute."""

    def display(self, msg=None, pos=None):
        if line := str(self) if msg is None else msg:
            print(line, file=self.fp, flush=True)


def progress(total: int, what: str, start: int = 0) -> tqdm:
    """A progress bar with the time left; nothing in Emacs, whose terminal is dumb."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, initial=start, leave=False,
                    disable=os.environ.get("TERM") == "dumb" or total < 2
                    or not PartialState().is_main_process)
    return Lines(total=total, desc=what, initial=start, file=sys.stdout, mininterval=30,
                 maxinterval=30, miniters=1, delay=30, leave=False, bar_format=(
                     "{desc}: {n_fmt} of {total_fmt}, {remaining} left{postfix}"))


class ShowProgress(transformers.TrainerCallback):
    """One bar for all steps, with the loss and the time left."""

    def on_train_begin(self, args, state, control, **_):
        self.bar = progress(state.max_steps, "training", state.global_step)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()
