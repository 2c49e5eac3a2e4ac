"""Where the time goes from the start of Python to the first training step: python first_step.py TIME-OF-START RUN-FOLDER."""

import time

BEGUN = time.time()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def clocked(function: Callable, spans: dict[str, tuple[float, float]], name: str) -> Callable:
    """The function, noting when its first call began and ended."""
    def call(*args, **kwargs):
        start = time.time()
        result = function(*args, **kwargs)
        spans.setdefault(name, (start, time.time()))
        return result
    return call


def change_training(tool, **changes) -> None:
    """Let main.py, imported as `tool`, train with some fields of its SFTConfig changed: max_steps=1 stops after one step."""
    settle = tool.training_settings

    def changed(*args, **kwargs):
        config = settle(*args, **kwargs)
        for name, value in changes.items():
            setattr(config, name, value)
        return config
    tool.training_settings = changed


def import_libraries() -> None:
    """All that training needs, main.py's own imports among them."""
    import bitsandbytes, datasets, peft, torch, transformers  # noqa: E401, F401
    from transformers import LlamaForCausalLM  # noqa: F401
    from trl import SFTTrainer  # noqa: F401

    import main  # noqa: F401


def take_first_step(spans: dict, folder: str) -> None:
    """What `python main.py` does, without the scoring before training, for one step."""
    import main

    for name in ("load_splits", "load_tokenizer", "load_model", "training_rows", "add_adapter", "train"):
        setattr(main, name, clocked(getattr(main, name), spans, name))
    change_training(main, max_steps=1, save_strategy="no")
    main.quieten_libraries()
    settings, splits, untouched = main.prepare(main.Settings())
    splits["validation"] = splits["validation"].select(range(8))  # scored after the step, to fit the temperature
    Path(folder).mkdir()
    main.fine_tune(untouched, splits, settings, Path(folder))


def load_plain(spans: dict) -> None:
    """The same model without quantization, when all is warm: what loading in 4 bits took longer is quantization, and the first use of its library."""
    import main
    import torch

    clocked(main.load_model, spans, "plain")(main.choose_model(None)[0], torch.float32, quantize=False)


def parts(spans: dict, started: float) -> dict[str, float]:
    """Seconds of each part and of the whole."""
    took = {name: end - start for name, (start, end) in spans.items()}
    known = {"imports": BEGUN - started + took["imports"], "reading the data": took["load_splits"],
             "model load": took["load_tokenizer"] + took["plain"], "quantization, and its first use": took["load_model"] - took["plain"],
             "tokenization": took["training_rows"], "adapter": took["add_adapter"], "trainer and first step": took["train"]}
    total = spans["train"][1] - started
    return {"to the first step": total, **known, "other": total - sum(known.values())}


if __name__ == "__main__":
    spans = {}
    clocked(import_libraries, spans, "imports")()
    take_first_step(spans, sys.argv[2])
    load_plain(spans)
    print(json.dumps(parts(spans, float(sys.argv[1]))))
