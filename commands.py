"""What main.py does with a finished run: answer texts, and merge its adapter into its model."""

import contextlib
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState

from judging import likeliest
from keeping import new_output, read_classifier, read_settings, read_tested, write_table
from llama import load_model
from models import choose_precision, load_classifier
from reading import InputError, read_table
from reporting import probability_columns
from settings import MergeSettings, PredictSettings


def predict(settings: PredictSettings) -> None:
    """Answer every text in its order, after the columns that its file already has."""
    output = new_output(settings.output) if settings.output else None
    columns, first = {settings.text_column: settings.texts}, PartialState().is_main_process
    with contextlib.redirect_stdout(sys.stderr if first else sys.stdout):  # stdout: answers alone
        if settings.data:
            table = read_table(Path(settings.data), settings.text_column)
            columns = {name: table[name][:] for name in table.column_names}
        names = read_classifier(Path(settings.run))["labels"]
        own = {"predicted", "abstain", "confidence", *(f"p_{label}" for label in names)}
        if twice := sorted(own & set(columns)):
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
    draft = output.with_name(output.name + ".draft")  # whole or not at all
    shutil.rmtree(draft, ignore_errors=True)
    merged.to(torch.bfloat16).save_pretrained(draft, save_original_format=not stored)
    classifier.tokenizer.save_pretrained(draft)
    shutil.copy(folder / "classifier.json", draft)
    draft.rename(output)
    del merged, classifier.model  # one model at a time
    classifier.model = load_model(str(output), choose_precision()[0], quantize=False)
    after = classifier.predict_proba(tested)
    a, b = (likeliest(probabilities, classifier.labels) for probabilities in (before, after))
    print(f"merged into {output}, in bfloat16: on {len(tested)} test rows the largest change of a "
          f"probability is {np.abs(before - after).max():.4f}; "
          f"predictions that flip: {sum(x != y for x, y in zip(a, b))}")
