"""What main.py does with a finished run: predict, and merge. Written by hand, not tangled."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from day9.errors import InputError
from day9.files import whole
from day9.hub import check_pointer
from day9.loading import choose_precision, load_classifier
from day9.metrics import likeliest
from day9.model import load_model
from day9.reading.splits import read_table
from day9.report import probability_columns, write_table
from day9.runs import read_classifier, read_settings
from day9.settings import MergeSettings, PredictSettings


def new_output(output: str) -> Path:
    """The path of a result that does not exist yet, in a folder that does.

    Raises InputError where there is something already, or nothing can be written.
    """
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


def predict(settings: PredictSettings) -> None:
    """Answer every text in its order, after the columns that its file already has."""
    output = new_output(settings.output) if settings.output else None
    columns, first = {settings.text_column: settings.texts}, PartialState().is_main_process
    with contextlib.redirect_stdout(sys.stderr if first else sys.stdout):  # stdout: answers alone
        if settings.data:
            table = read_table(Path(settings.data), settings.text_column)
            columns = {name: table[name][:] for name in table.column_names}
        names = read_classifier(Path(settings.run))["labels"]
        new = {"predicted", "abstain", "confidence", *(f"p_{label}" for label in names)}
        if twice := sorted(new & set(columns)):
            raise InputError(f"{settings.data} has a column {twice[0]!r}, which predict writes "
                             "itself: rename it")
        classifier = load_classifier(settings.run, settings.model)
        probabilities = classifier.predict_proba(columns[settings.text_column])
    answers = {"predicted": likeliest(probabilities, classifier.labels),
               "abstain": (probabilities.max(1) < settings.threshold).tolist()}
    answers |= probability_columns(probabilities, classifier.labels)
    if first:
        write_table(output, columns | answers)


def merge_adapter(model, quantized: bool):
    """The model with its adapter added to the weights, which are no longer in 4 bits."""
    from peft import PeftModel

    if not quantized:
        return model.merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        plain = model.unload().dequantize()
        return PeftModel.from_pretrained(plain, folder).merge_and_unload()


def merge(settings: MergeSettings) -> None:
    """Write the merged model and say what merging changed, on up to 200 test rows of the run.

    The adapter learnt beside 4-bit weights, so it is added to what those stand for.
    """
    output, folder = new_output(settings.output), Path(settings.run)
    run_settings = read_settings(folder, "--run")
    read_classifier(folder)  # of a finished run
    tested = read_tested(folder)
    classifier = load_classifier(folder, settings.model)
    before = classifier.predict_proba(tested)
    stored = run_settings.quantize and classifier.model.hf_quantizer.pre_quantized
    merged = merge_adapter(classifier.model, run_settings.quantize)
    with whole(output) as draft:
        merged.to(torch.bfloat16).save_pretrained(draft, save_original_format=not stored)
        classifier.tokenizer.save_pretrained(draft)
        shutil.copy(folder / "classifier.json", draft)
    del merged, classifier.model  # one model at a time
    classifier.model = load_model(str(output), choose_precision()[0], quantize=False)
    after = classifier.predict_proba(tested)
    a, b = (likeliest(probabilities, classifier.labels) for probabilities in (before, after))
    print(f"merged into {output}, in bfloat16: on {len(tested)} test rows the largest change of a "
          f"probability is {np.abs(before - after).max():.4f}; "
          f"predictions that flip: {sum(x != y for x, y in zip(a, b))}")
