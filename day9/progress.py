"""Signs of life during long work: bars, or lines in a file. Written by hand, not tangled."""

import os
import sys

import transformers
from accelerate import PartialState
from tqdm.auto import tqdm


class Lines(tqdm):
    """A progress bar for files and pipes: a line every half a minute."""

    def display(self, msg=None, pos=None):
        if line := str(self) if msg is None else msg:
            print(line, file=self.fp, flush=True)


def progress(total: int, what: str, unit: str, start: int = 0) -> tqdm:
    """A progress bar with the time left; nothing in Emacs, whose terminal is dumb."""
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, initial=start, unit=f" {unit}", leave=False,
                    disable=os.environ.get("TERM") == "dumb" or total < 2
                    or not PartialState().is_main_process)
    return Lines(total=total, desc=what, initial=start, unit=f" {unit}", file=sys.stdout,
                 mininterval=30, maxinterval=30, miniters=1, delay=30, leave=False, bar_format=(
                     "{desc}: {n_fmt} of {total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"))


class ShowProgress(transformers.TrainerCallback):
    """One bar for all steps, with the loss and the time left."""

    def on_train_begin(self, args, state, control, **_):
        self.bar = progress(state.max_steps, "training", "steps", state.global_step)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args, state, control, **_):
        self.bar.close()
