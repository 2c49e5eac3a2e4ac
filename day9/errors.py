"""What goes wrong becomes one line and an exit code. Written by hand, not tangled."""

import contextlib
import errno
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
from safetensors import SafetensorError


class InputError(Exception):
    """Something the user gave cannot be used; the message names it and the remedy."""


def shortened(text: str, width: int = 60) -> str:
    """A text in one line, without its end where it is long."""
    printable = text[:2 * width].encode(errors="backslashreplace").decode()
    line = " ".join(printable.split())
    return line if len(line) <= width else f"{line[:width]}..."


def one_line(error: BaseException) -> str:
    """An exception's text in one line, not too long, or its name where it has none."""
    return shortened(str(error), 300) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or on the CPU, whose allocator has no exception for it."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def explain(error: BaseException, folder: Path | None = None) -> str | None:
    """The line for what the user can do something about; None for a fault of the program.

    `folder` is the run's, if there is one yet: on a full disk the run can be resumed.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, FloatingPointError):
        return f"{error}: lower --learning-rate"
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
def sigterm_exits() -> Iterator[None]:
    """SIGTERM ends the program as an exception, so that what is half done is tidied away."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def careful_output() -> Iterator[None]:
    """Any text can be printed, and only the first of several processes prints.

    A reader that closes the pipe, as `head` does, raises BrokenPipeError, once.
    """
    stdout, errors = sys.stdout, getattr(sys.stdout, "errors", None)
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


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    for library in (transformers.utils, huggingface_hub.utils, datasets):
        library.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("is_gradient_checkpointing", "gradient_checkpointing"):  # peft and trl ask for it
        warnings.filterwarnings("ignore", f"`{name}` is deprecated")


WAIT = timedelta(minutes=30)  # for one another: to load a model, to score 10,000 texts, to save
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def join_processes() -> PartialState:
    """This process, as one of those that torchrun has started, or alone.

    Settings that `accelerate config` has left in the environment are dropped: this program says
    itself how it computes. Raises InputError where other variables tell of processes that are not.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
    found = [name for name in SIZES if os.environ.get(name, "1") != "1"]
    found += ["LOCAL_RANK"] if "LOCAL_RANK" in os.environ else []
    if found and not torch.distributed.is_torchelastic_launched():
        raise InputError(f"the environment has {' and '.join(found)}, as if this were one of "
                         "several processes: unset what is left there, or start with torchrun")
    return PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)


def exit_code(command: Callable[[], None]) -> int:
    """Run a command of the program; returns its exit code.

    0, or 1 for what the user can do something about, 130 when it was interrupted, 141 when nobody
    reads on. SIGTERM exits with 143.
    """
    quieten_libraries()
    state = None
    try:
        state = join_processes()
        with sigterm_exits(), careful_output():
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
        if state:
            state.destroy_process_group()
    return 0
