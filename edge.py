"""Where the program meets its user: what went wrong becomes one line that says what to do."""

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import datasets
import huggingface_hub
import torch
import transformers
from accelerate import PartialState
from huggingface_hub import constants
from safetensors import SafetensorError
from tqdm.auto import tqdm

from reading import InputError, ask_hub, cannot_load, check_pointer


@contextlib.contextmanager
def loading(what: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Ask the hub for a "model" once, and turn what fails inside into an InputError.

    `what` is "model", or "run" for a folder with an adapter.
    """
    try:
        check_folder(Path(name), what)
        ask_hub(name, what, revision)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")  # random without them
            yield
    except Exception as error:  # hub, file system and readers of weights share no exception
        if isinstance(error, InputError) or is_out_of_memory(error):
            raise
        for path in sorted(Path(name).glob("*.json")):
            if not is_whole(path):
                raise InputError(f"{path} is damaged: restore it") from error
        raise cannot_load(error, name, what) from error


def is_whole(path: Path) -> bool:
    """Whether a file is whole, as far as that can be seen."""
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def check_folder(folder: Path, what: str) -> None:
    """Raise InputError for a run in place of a model, and for files that are missing.

    Those of a run's adapter, and those that git-lfs has not fetched.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if what == "run" and not (folder / name).exists():
            raise InputError(f"{folder / name} is missing: restore it")
    if what == "model" and (folder / "adapter_config.json").exists():
        raise InputError(f"{folder} is a run, an adapter beside its model: merge the two with "
                         f"main.py merge --run {folder} --output NEW, then give --model NEW")
    for path in folder.glob("*.*"):
        if path.suffix in (".json", ".jinja", ".safetensors"):
            check_pointer(path)


def check_stored(name: str, stored: dict | None, quantize: bool) -> None:
    """Raise InputError if a model's weights are stored as no adapter can be trained beside them."""
    if stored and not stored.get("load_in_4bit"):
        raise InputError(f"{name} is stored as {stored.get('quant_method')}: choose a --model that "
                         "is not quantized, or one in the 4 bits of bitsandbytes")
    if stored and not quantize:
        raise InputError(f"{name} is stored in 4 bits: leave out --no-quantize, or choose the "
                         "--model that was quantized to make it")


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
        return ("out of memory: lower --pass-tokens, then --max-length and --rank; for a run that "
                "has begun, lower pass_tokens in its settings.json")
    if isinstance(error, (OSError, RuntimeError, SafetensorError)) and folder is not None:
        if folder.exists() and shutil.disk_usage(folder).free < 2**20:
            return f"the disk is full: make room, then main.py --resume {folder}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: make room"
    return None


@contextlib.contextmanager
def borrowed_process() -> Iterator[None]:
    """What belongs to the whole process, as the program needs it, and afterwards as it was.

    SIGTERM stops the program, any text can be printed, and only the first of several processes
    prints. A reader that closes the pipe, as `head` does, raises BrokenPipeError, once.
    """
    stdout, errors, offline = sys.stdout, getattr(sys.stdout, "errors", 0), constants.HF_HUB_OFFLINE
    in_main_thread = threading.current_thread() is threading.main_thread()  # others get no signals
    before = in_main_thread and signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if hasattr(stdout, "reconfigure"):
        stdout.reconfigure(errors="backslashreplace")
    if not PartialState().is_main_process:
        sys.stdout = open(os.devnull, "w")
    try:
        yield
        print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # for what is yet to be flushed
        raise
    finally:
        sys.stdout = stdout
        if hasattr(stdout, "reconfigure"):
            stdout.reconfigure(errors=errors)
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    for library in (transformers.utils, huggingface_hub.utils, datasets):
        library.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("is_gradient_checkpointing", "gradient_checkpointing"):  # peft and trl ask for it
        warnings.filterwarnings("ignore", f"`{name}` is deprecated")


def exit_code(command: Callable[[], None]) -> int:
    """Run a command of the program; returns its exit code.

    0, or 1 for what the user can do something about, 130 when it was interrupted, 141 when nobody
    reads on. SIGTERM exits with 143.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    quieten_libraries()
    try:
        with borrowed_process():  # a notebook's kernel, perhaps
            command()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"main.py: error: {line}", file=sys.stderr)
        return 1
    finally:
        state.destroy_process_group()
    return 0


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
