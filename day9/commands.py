"""What main.py does with a finished run: predict, and merge. Written by hand, not tangled."""

import shutil
import sys
import tempfile
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from scipy.special import softmax

from day9.classifier import Classifier, score_blocks
from day9.drafts import claimed
from day9.errors import InputError
from day9.files import digests, sha256
from day9.hub import check_pointer
from day9.loading import load_classifier
from day9.metrics import likeliest
from day9.model import load_model
from day9.reading.splits import read_table
from day9.report import probability_columns, write_rows
from day9.runs import read_classifier, read_settings
from day9.settings import MergeSettings, PredictSettings


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


def read_texts(settings: PredictSettings) -> Dataset:
    """The texts, with the other columns of their file. Raises InputError."""
    table = (read_table(Path(settings.data), settings.text_column) if settings.data else
             Dataset.from_dict({settings.text_column: settings.texts}))
    labels = read_classifier(Path(settings.run))["labels"]
    new = {"predicted", "abstain", "confidence", *(f"p_{label}" for label in labels)}
    if twice := sorted(new & set(table.column_names)):
        raise InputError(f"{settings.data or '--text-column'} has a column {twice[0]!r}, which "
                         "predict writes itself: rename it")
    return table


def describe(settings: PredictSettings, classifier: Classifier) -> dict:
    """All that the answers depend on: a draft goes on only with the same."""
    run = [Path(settings.run) / name for name in ("classifier.json", "adapter_config.json",
                                                  "adapter_model.safetensors")]
    data = digests([Path(settings.data)]).values() if settings.data else settings.texts
    return {"run": digests(run), "length": classifier.prompt.text_room, "data": sha256([*data]),
            "text_column": settings.text_column, "threshold": settings.threshold,
            "processes": PartialState().num_processes}


def answers(probabilities: np.ndarray, labels: list[str], threshold: float) -> dict[str, list]:
    """The columns that predict adds; it abstains by the confidence that it writes, rounded."""
    columns = probability_columns(probabilities, labels)
    return {"predicted": likeliest(probabilities, labels),
            "abstain": [confidence < threshold for confidence in columns["confidence"]]} | columns


def predict(settings: PredictSettings) -> None:
    """Answer every text in its order, after the columns that its file already has.

    Rows are read, scored and written block by block; an interrupted draft goes on after the last.
    """
    first, printed = PartialState().is_main_process, sys.stdout
    messages = redirect_stdout(sys.stderr if first else sys.stdout)  # stdout: answers alone
    with messages, (claimed(settings.output) if settings.output else nullcontext()) as draft:
        table = read_texts(settings)
        classifier = load_classifier(settings.run, settings.model)
        if draft and first:
            draft.begin(describe(settings, classifier))
        [start] = broadcast_object_list([draft.rows if draft else 0])
        for scores in score_blocks(classifier, table[settings.text_column], start):
            probabilities = softmax(scores / classifier.temperature, axis=1)
            columns = table[start:start + len(scores)] | answers(probabilities, classifier.labels,
                                                                 settings.threshold)
            start += len(scores)
            if draft and first:
                draft.add(columns)
            elif first:
                write_rows(printed, columns, ".jsonl")
                printed.flush()
        if draft and first:
            draft.finish()


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
    folder, first = Path(settings.run), PartialState().is_main_process
    with claimed(settings.output) as draft:
        run_settings = read_settings(folder, "--run")
        read_classifier(folder)  # of a finished run
        tested = read_tested(folder)
        classifier = load_classifier(folder, settings.model)
        dtype = classifier.model.dtype  # to score in, after as before
        before = classifier.predict_proba(tested)
        stored = run_settings.quantize and classifier.model.hf_quantizer.pre_quantized
        merged = merge_adapter(classifier.model, run_settings.quantize)
        if first:
            merged.to(torch.bfloat16).save_pretrained(draft.path, save_original_format=not stored)
            classifier.tokenizer.save_pretrained(draft.path)
            shutil.copy(folder / "classifier.json", draft.path)
            draft.finish()
    PartialState().wait_for_everyone()
    del merged, classifier.model  # one model at a time
    classifier.model = load_model(settings.output, dtype, quantize=False)
    after = classifier.predict_proba(tested)
    a, b = (likeliest(probabilities, classifier.labels) for probabilities in (before, after))
    print(f"merged into {settings.output}, in bfloat16: on {len(tested)} test rows the largest "
          f"change of a probability is {np.abs(before - after).max():.4f}; "
          f"predictions that flip: {sum(x != y for x, y in zip(a, b))}")
