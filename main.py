#!/usr/bin/env python
# Generated from README.org: edit that file, then tangle it. Changes made here are lost.

import copy
import csv
import json
import logging
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import datasets
import matplotlib.figure
import numpy as np
import torch
import transformers
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from safetensors import SafetensorError
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import binomtest, bootstrap
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (ConfusionMatrixDisplay, accuracy_score, classification_report, log_loss,
                             precision_recall_fscore_support, recall_score)
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, HfArgumentParser

HERE = Path(globals().get("__file__", "main.py")).resolve().parent

class InputError(Exception):
    """Something the user gave cannot be used; the message names it and the mend."""


def root_cause(error: BaseException) -> str:
    """The first line of what started a chain of exceptions: libraries wrap it in general advice."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]

def option(default, help: str):
    """A field of Settings with the text that --help prints for it."""
    return field(default=default, metadata={"help": help})


@dataclass
class Settings:
    """Everything a run can be told."""

    model: str | None = option(None, "Hub id or folder of a causal language model. Default: what this machine can carry.")
    data: str = option(str(HERE / "data" / "patient-messages"),
                       "Hub id of a dataset, a csv, tsv, json, jsonl or parquet file, or a folder with train, validation and test files.")
    text_column: str = option("text", "Column with the texts.")
    label_column: str = option("label", "Column with the classes.")
    output_dir: str | None = option(None, "The run folder, new or empty. Default: outputs/ and the time of the start.")
    epochs: int = option(3, "How often training sees every example: fewer underfit a small set, more memorise it.")
    learning_rate: float | None = option(None, "Step size of the optimizer. Default: 0.5 / width of the model; wide models need small steps.")
    batch_size: int = option(8, "Examples an optimizer step.")
    pass_tokens: int = option(4096, "Most tokens in one pass through the model: lower it when memory runs out; results stay the same.")
    max_length: int = option(512, "Most tokens in prompt and label together. Longer texts are cut at their end.")
    rank: int = option(32, "Rank of the LoRA matrices: the adapter's capacity.")
    seed: int = option(42, "Fixes splits, initial adapter and order of the examples.")
    balance: bool = option(False, "Repeat the examples of rare classes until all are as frequent as the commonest.")

def parse(parser: HfArgumentParser, argv: list[str]) -> list:
    """What the parser makes of the command line; unknown options and wrong types end the program with exit code 2."""
    *parsed, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; see --help")
    return parsed


def parse_settings(argv: list[str]) -> Settings:
    """Read the command line of a training run."""
    parser = HfArgumentParser(Settings, allow_abbrev=False, description="Fine-tune a 4-bit Llama with LoRA to classify texts, and judge it.",
                              epilog="main.py predict --help: how to classify texts with a finished run.")
    [settings] = parse(parser, argv)
    for name in ("epochs", "batch_size", "pass_tokens", "max_length", "rank"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if settings.learning_rate is not None and settings.learning_rate <= 0:
        parser.error("--learning-rate must be above 0")
    return settings

def at_terminal() -> bool:
    """True where a progress bar can be drawn; Emacs opens a terminal too, but a dumb one."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def quieten_libraries() -> None:
    """Leave errors on, turn off the libraries' own bars and advice."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks transformers by its old name

SPLITS = ("train", "validation", "test")
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def csv_options(path: Path) -> dict:
    """How to read a csv or tsv file so that every field is text. Raises InputError if a row would be shifted."""
    separator = "\t" if path.suffix == ".tsv" else ","
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, delimiter=separator)
        header, first = next(lines, []), next(lines, [])
    if len(first) > len(header):
        raise InputError(f"{path}: the first row has {len(first)} fields and the header {len(header)}: put texts that hold {separator!r} in quotes")
    return {"sep": separator, "features": Features({name: Value("string") for name in header}), "keep_default_na": False,
            "index_col": False, "skip_blank_lines": len(header) > 1}


def read_file(path: Path) -> Dataset:
    """The rows of a file, read by the datasets library."""
    if path.suffix not in READERS:
        raise InputError(f"{path} is none of {', '.join(READERS)}: convert it, or mend its suffix")
    try:
        options = csv_options(path) if READERS[path.suffix] == "csv" else {}
        return load_dataset(READERS[path.suffix], data_files=str(path), split="train", **options)
    except InputError:
        raise
    except Exception as error:  # every reader wraps its failures in its own way
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"cannot read {path}: {'empty, a file without rows' if 'corresponds to no data' in cause else cause}") from error

def find_data(data: str) -> DatasetDict:
    """A file, a folder of split files, or a dataset on the hub, with whatever splits it has."""
    path = Path(data)
    if path.is_file():
        return DatasetDict({"train": read_file(path)})
    if path.is_dir():
        files = {split: [file for file in path.glob(f"{split}.*") if file.suffix in READERS] for split in SPLITS}
        if not files["train"] or max(map(len, files.values())) > 1:
            raise InputError(f"{data} must hold one train file, and at most one validation and one test file, of {', '.join(READERS)}")
        return DatasetDict({split: read_file(found[0]) for split, found in files.items() if found})
    try:
        return DatasetDict(load_dataset(data))
    except Exception as error:
        raise InputError(f"no file, folder or reachable hub dataset is called {data} ({root_cause(error)}): check --data") from error

def two_columns(split: Dataset, text_column: str, label_column: str) -> Dataset:
    """Keep the text and the label, as strings, under the names `text` and `label`."""
    for option_name, column in (("--text-column", text_column), ("--label-column", label_column)):
        if column not in split.column_names:
            raise InputError(f"no column {column!r}; there are {', '.join(split.column_names)}: choose with {option_name}")
    names = split.features[label_column]
    columns = {"text": split[text_column], "label": split[label_column]}
    if isinstance(names, ClassLabel):
        columns["label"] = [None if i is None or i < 0 else names.int2str(i) for i in columns["label"]]
    for row, (text, label) in enumerate(zip(*columns.values()), start=1):
        if text is None or label is None or not str(label).strip():
            raise InputError(f"row {row} has no {'text' if text is None else 'label'}: fill it in or remove the row")
    return Dataset.from_dict({name: [str(value) for value in values] for name, values in columns.items()})

def cut_off(split: Dataset, size: int, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a split in two, stratified by label; the second part has `size` rows, and no fewer than there are labels."""
    labels = split["label"][:]
    try:
        kept, cut = train_test_split(range(len(split)), test_size=max(size, len(set(labels))), stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"the data cannot be split by class ({error}): add examples, or give validation and test files") from error
    return split.select(kept), split.select(cut)


def load_splits(data: str, text_column: str, label_column: str, seed: int) -> DatasetDict:
    """Train, validation and test splits with the string columns `text` and `label`."""
    found = find_data(data)
    splits = DatasetDict({name: two_columns(found[name], text_column, label_column) for name in SPLITS if name in found})
    if "train" not in splits or any(len(split) == 0 for split in splits.values()):
        raise InputError(f"{data} has an empty or missing split: every split needs rows")
    if "test" in splits and len(splits["test"]) < 2:
        raise InputError(f"{data} has a test split of one row: nothing can be said of its accuracy")
    if len(set(splits["train"]["label"])) < 2:
        raise InputError(f"{data} has a single class in column {label_column!r}: there is nothing to tell apart")
    if "test" not in splits:
        splits["train"], splits["test"] = cut_off(splits["train"], len(splits["train"]) // 5, seed)
    if "validation" not in splits:
        splits["train"], splits["validation"] = cut_off(splits["train"], len(splits["train"]) // 10, seed)
    for name in ("validation", "test"):
        unknown = sorted(set(splits[name]["label"]) - set(splits["train"]["label"]))
        if unknown:
            raise InputError(f"the {name} split has labels that training never sees: {', '.join(unknown)}: add examples or remove the rows")
    return splits

def balance(split: Dataset, seed: int) -> Dataset:
    """Repeat rows of rare classes, drawn at random, until every class has as many as the largest."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(split["label"]):
        rows.setdefault(label, []).append(row)
    most, random = max(map(len, rows.values())), np.random.default_rng(seed)
    return split.select(np.concatenate([[*same, *random.choice(same, most - len(same))] for same in rows.values()]).astype(int))

def choose_model(asked: str | None) -> tuple[str, str]:
    """The model to load, and the reason."""
    if asked:
        return asked, "it was asked for"
    if torch.cuda.is_available():
        return "unsloth/Llama-3.2-1B-Instruct", "there is a CUDA GPU, and this small Llama needs no licence click"
    return str(HERE / "data" / "tiny-llama"), "there is no CUDA GPU, and the embedded tiny Llama runs on any processor"


def choose_precision() -> tuple[torch.dtype, str]:
    """The number format to compute in, and the reason. Weights rest in 4 bits all the same."""
    if not torch.cuda.is_available():
        return torch.float32, "a processor has no faster format that is as exact"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16, "this GPU computes bfloat16 natively"
    return torch.float16, "this GPU only emulates bfloat16"

PLAIN_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ message['role'] }}:\n\n{{ message['content'] }}{{ eos_token }}\n"
                  "{% endfor %}{% if add_generation_prompt %}assistant:\n\n{% endif %}")


def load_pretrained(loader, name: str, **options):
    """`loader.from_pretrained` with its failures in one line."""
    try:
        return loader.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"no folder or reachable hub model called {name} can be loaded ({root_cause(error)}): check --model") from error


def load_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer, with a chat template and a padding token where it brings none."""
    tokenizer = load_pretrained(AutoTokenizer, name)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end token: choose another --model")
    tokenizer.chat_template = tokenizer.chat_template or PLAIN_TEMPLATE
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer

def load_model(name: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The model with its linear layers in 4 bits, computing in `dtype`, on the GPU if there is one."""
    import bitsandbytes  # slow to import and chatty: only where it is needed, like peft and trl below

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_pretrained(AutoModelForCausalLM, name, quantization_config=four_bits, dtype=dtype, device_map={"": device})
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model.eval()

@dataclass
class PromptFormat:
    """Token ids around a text, and of each label's completion, end token included."""

    before: list[int]
    after: list[int]
    completions: dict[str, list[int]]
    text_room: int  # tokens left for the text


def as_written(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of the texts; the names of control tokens in them are ordinary characters."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"] if len(texts) else []

def make_format(tokenizer, labels: list[str], max_length: int, examples: list[tuple[str, str]] = []) -> PromptFormat:
    """Render the chat template once, with `examples` as earlier turns. Llama 3.2 writes today's date into it unless told one."""
    ask = f"Classify the text as one of: {', '.join(labels)}." if len(labels) <= 20 else "Classify the text."
    mark = "TEXT-GOES-HERE"
    turns = [{"role": role, "content": mark} for _ in examples for role in ("user", "assistant")] + [{"role": "user", "content": mark}]
    turns[0]["content"] = f"{ask}\n\n{mark}"
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024")
    *pieces, after = (tokenizer.encode(piece, add_special_tokens=False) for piece in rendered.split(mark))
    filled = as_written(tokenizer, [content for example in examples for content in example])
    before = pieces[0] + [token for content, piece in zip(filled, pieces[1:]) for token in content + piece]
    completions = {label: ids + [tokenizer.eos_token_id] for label, ids in zip(labels, as_written(tokenizer, labels))}
    text_room = max_length - len(before) - len(after) - max(map(len, completions.values()))
    if text_room < 8:
        raise InputError(f"--max-length {max_length} leaves {text_room} tokens for the text: raise it")
    return PromptFormat(before, after, completions, text_room)

def encode_texts(tokenizer, texts: list[str], form: PromptFormat) -> tuple[list[list[int]], int]:
    """Each prompt's token ids from the text on (after `form.before`), and how many texts had to be shortened."""
    encoded = as_written(tokenizer, texts)
    return [ids[:form.text_room] + form.after for ids in encoded], sum(len(ids) > form.text_room for ids in encoded)


def training_rows(encoded: list[list[int]], labels: list[str], form: PromptFormat) -> Dataset:
    """What SFTTrainer takes: token ids, and a mask that is 1 where the loss is computed: on the completion only."""
    prompts = [form.before + ids for ids in encoded]
    return Dataset.from_list([
        {"input_ids": prompt + form.completions[label],
         "completion_mask": [0] * len(prompt) + [1] * len(form.completions[label])}
        for prompt, label in zip(prompts, labels)])

def side_by_side(trunk: int, branches: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (L,) and boolean mask (L, L), row sees column, of a trunk of tokens and of branches that each go on from it alone."""
    owner = torch.tensor([0] * trunk + [i for i, branch in enumerate(branches, 1) for _ in branch])
    order = torch.arange(len(owner))
    visible = (order[:, None] >= order) & ((owner == 0) | (owner[:, None] == owner))
    return torch.tensor([*range(trunk), *(trunk + step for branch in branches for step in range(len(branch)))]), visible


def lay_out(shared: int, encoded: list[list[int]], completions: list[list[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """One row a text, after `shared` cached tokens: [padding | text | label 1 | label 2 | ...], L tokens wide.

    Returns input_ids and position_ids (rows, L) and a boolean attention_mask (rows, 1, L, shared + L).
    """
    width = max(map(len, encoded))
    padding = torch.tensor([width - len(ids) for ids in encoded])[:, None]
    positions, visible = side_by_side(width, completions)
    visible = visible & (torch.arange(len(positions)) >= padding)[:, None, :]
    visible |= torch.eye(len(positions), dtype=torch.bool)  # padding looks at itself: a row of nothing would be NaN
    tail = [token for completion in completions for token in completion]
    return {"input_ids": torch.tensor([[pad_id] * (width - len(ids)) + ids + tail for ids in encoded]),
            "position_ids": shared + (positions - padding).clamp(min=0),
            "attention_mask": torch.cat([visible.new_ones(len(encoded), len(positions), shared), visible], dim=2)[:, None]}

@torch.no_grad()
def score_batch(model, cache, encoded: list[list[int]], completions: list[list[int]], pad_id: int) -> torch.Tensor:
    """Log-probability of each completion after the cached beginning and each text: (texts, completions), float32."""
    cache = copy.deepcopy(cache)  # a forward pass would lengthen it
    cache.batch_repeat_interleave(len(encoded))
    batch = lay_out(cache.get_seq_length(), encoded, completions, pad_id)
    hidden = model.get_decoder()(**{name: tensor.to(model.device) for name, tensor in batch.items()},
                                 past_key_values=cache, use_cache=True).last_hidden_state
    lengths = [len(completion) for completion in completions]
    text_end = hidden.shape[1] - sum(lengths) - 1
    hidden = hidden[:, text_end:-1]  # a token is predicted by the one before it, a label's first token by the text's last
    starts = np.cumsum([1, *lengths[:-1]])
    sources = [source for start, n in zip(starts, lengths) for source in (0, *range(start, start + n - 1))]
    needed, sources = np.unique(sources, return_inverse=True)  # nothing is asked of the end tokens
    targets = [token for completion in completions for token in completion]
    log_probs = torch.cat([model.get_output_embeddings()(part).float().log_softmax(-1)[:, sources, targets]
                           for part in hidden[:, needed].split(max(1, 1024 // len(needed)))])
    return torch.stack([part.sum(1) for part in log_probs.split(lengths, dim=1)], dim=1).cpu()

def in_groups(lengths: list[int], room: int) -> list[list[int]]:
    """Indices of consecutive items whose lengths sum to at most `room`; an item longer than that stands alone."""
    groups, used = [], room + 1
    for index, length in enumerate(lengths):
        if used + length > room:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += length
    return groups


@torch.no_grad()
def score_labels(model, encoded: list[list[int]], form: PromptFormat, pad_id: int, pass_tokens: int = 4096) -> np.ndarray:
    """Log-probability of every label for every text, (texts, labels); `pass_tokens` limits the tokens of one pass."""
    model.eval()
    cache = model.get_decoder()(input_ids=torch.tensor([form.before], device=model.device), use_cache=True).past_key_values
    completions = list(form.completions.values())
    longest = max(map(len, encoded), default=0)
    room = min(pass_tokens, model.config.max_position_embeddings) - len(form.before) - longest
    groups = in_groups(list(map(len, completions)), room)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))  # like lengths share a batch: less padding
    scores = np.zeros((len(encoded), len(completions)))
    with tqdm(total=len(order), desc="scoring", disable=not at_terminal()) as bar:
        while order:
            width = len(encoded[order[0]]) + max(sum(len(completions[i]) for i in group) for group in groups)
            batch = order[:max(1, min(pass_tokens // width, 8 * pass_tokens // (len(form.before) + width)))]  # the cache takes room, too
            order = order[len(batch):]
            for group in groups:
                scores[np.ix_(batch, group)] = score_batch(model, cache, [encoded[i] for i in batch], [completions[i] for i in group], pad_id)
            bar.update(len(batch))
    return scores

@dataclass
class Classifier:
    """A causal language model that answers with one of its labels."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    form: PromptFormat
    temperature: float = 1.0
    pass_tokens: int = 4096  # in one pass through the model

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the columns of `predict_proba`."""
        return list(self.form.completions)

    def scores(self, texts: list[str]) -> np.ndarray:
        """Log-probability of every label for every text, (texts, labels)."""
        if isinstance(texts, str):
            raise TypeError("give a list of texts, not one text")
        encoded, _ = encode_texts(self.tokenizer, texts, self.form)
        return score_labels(self.model, encoded, self.form, self.tokenizer.pad_token_id, self.pass_tokens)

    def predict_proba(self, texts: list[str]) -> np.ndarray:
        """Probability of every label for every text, (texts, labels); rows sum to 1."""
        return softmax(self.scores(texts) / self.temperature, axis=1)

    def predict(self, texts: list[str]) -> list[str]:
        """The likeliest label of every text."""
        return choose(self.predict_proba(texts), self.labels)


def choose(probabilities: np.ndarray, labels: list[str]) -> list[str]:
    """The likeliest label of each row of (rows, labels)."""
    return [labels[i] for i in probabilities.argmax(1)]


def is_right(truth: list[str], probabilities: np.ndarray, labels: list[str]) -> np.ndarray:
    """Whether the likeliest label of each row is the true one: (rows,), boolean."""
    return np.array(choose(probabilities, labels)) == np.array(truth)

def calibration_bins(right: np.ndarray, confidence: np.ndarray, bins: int = 15) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and size of bins of equal size, from unsure to sure (Nguyen and O'Connor, 2015)."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    return [(float(confidence[part].mean()), float(right[part].mean()), len(part)) for part in parts if len(part)]


def calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error over bins of equal size: 0 is perfect."""
    return sum(size * abs(sure - correct) for sure, correct, size in calibration_bins(right, confidence)) / len(right)

def measure(truth: list[str], runs: list[np.ndarray], labels: list[str], seconds: float) -> dict[str, float]:
    """The figures of one system as shares of 1, means over its `runs`, each a (rows, labels) array of probabilities."""
    right = [is_right(truth, run, labels) for run in runs]
    accuracy = bootstrap((np.mean(right, axis=0),), np.mean, n_resamples=2000, batch=100, method="percentile", rng=0)
    prf = [precision_recall_fscore_support(truth, choose(run, labels), labels=labels, average="macro", zero_division=0)[:3] for run in runs]
    precision, recall, f1 = np.mean(prf, axis=0)
    figures = {"accuracy": np.mean(right), "accuracy_low": accuracy.confidence_interval.low, "accuracy_high": accuracy.confidence_interval.high,
               "precision": precision, "recall": recall, "f1": f1,
               "balanced_accuracy": np.mean([recall_score(truth, choose(run, labels), labels=sorted(set(truth)), average="macro")
                                             for run in runs]),
               "log_loss": np.mean([log_loss(truth, run, labels=labels) for run in runs]),
               "ece": np.mean([calibration_error(ok, run.max(1)) for ok, run in zip(right, runs)]), "seconds": seconds}
    return {name: float(value) for name, value in figures.items()} | {"n": len(truth)}

def scoreboard(systems: dict[str, dict[str, float]]) -> str:
    """The figures as text, one line a system."""
    names = ["precision", "recall", "f1", "balanced_accuracy", "log_loss", "ece"]
    lines = [f"{'':11}accuracy (95 % interval)" + "".join(f"{name.split('_acc')[0]:>10}" for name in names) + f"{'n':>7}{'seconds':>11}"]
    for system, row in systems.items():
        lines.append(f"{system:11}{row['accuracy']:>8.3f} ({row['accuracy_low']:.3f} - {row['accuracy_high']:.3f})"
                     + "".join(f"{row[name]:>10.3f}" for name in names) + f"{row['n']:>7}{row['seconds']:>9.1f} s")
    return "\n".join(lines)

def fit_tfidf(train: Dataset, validation: Dataset):
    """TF-IDF of words and word pairs with logistic regression; C is the one of four with the least log-loss on validation."""
    fitted = [make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"),
                            LogisticRegression(C=c, max_iter=2000)).fit(train["text"][:], train["label"][:]) for c in (1, 10, 100, 1000)]
    loss = lambda pipeline: log_loss(validation["label"][:], pipeline.predict_proba(validation["text"][:]), labels=pipeline.classes_)
    return min(fitted, key=loss)


def judge_baselines(splits: DatasetDict) -> dict[str, tuple[list[np.ndarray], float]]:
    """Probabilities of the test rows, in a list of one run, and seconds to fit and predict, for `majority` and `tfidf`."""
    results = {}
    for name, fit in (("majority", lambda train, _: DummyClassifier(strategy="prior").fit(train["text"][:], train["label"][:])), ("tfidf", fit_tfidf)):
        start = time.perf_counter()
        probabilities = fit(splits["train"], splits["validation"]).predict_proba(splits["test"]["text"][:])
        results[name] = [probabilities], time.perf_counter() - start
    return results

def draw_examples(train: Dataset, classifier: Classifier, room: int, seed: int) -> list[tuple[str, str]]:
    """Examples for a few-shot prompt: one of each class in turn, in random order, as many as fit into `room` tokens."""
    random = np.random.default_rng(seed)
    texts, labels = train["text"][:], train["label"][:]
    rows = {label: [] for label in classifier.labels}
    for i in random.permutation(len(texts)):
        rows[labels[i]].append(i)
    for label, same in rows.items():
        usual = np.median([len(texts[i]) for i in same])
        rows[label] = [i for i in same if len(texts[i]) <= usual]
    examples = []
    for turn in range(max(map(len, rows.values()))):
        drawn = [rows[label][turn] for label in random.permutation(classifier.labels) if turn < len(rows[label])]
        for count in range(len(drawn), 0, -1):  # half a turn only where not even the first fits whole
            longer = examples + [(texts[i], labels[i]) for i in drawn[:count]]
            if len(make_format(classifier.tokenizer, classifier.labels, 10**6, longer).before) <= room:
                examples = longer
                break
            if examples:
                return examples
    return examples

def few_shot(train: Dataset, classifier: Classifier, texts: list[str], seed: int) -> Classifier:
    """The same model with examples in its prompt: 2,048 tokens of them, or half the context where that is less."""
    form, context = classifier.form, classifier.model.config.max_position_embeddings
    longest = max(map(len, encode_texts(classifier.tokenizer, texts, form)[0])) + max(map(len, form.completions.values())) + 8
    length = min(context, max(len(form.before), min(2048, context // 2)) + longest)
    examples = draw_examples(train, classifier, length - longest, seed)
    return replace(classifier, form=make_format(classifier.tokenizer, classifier.labels, length, examples))


def judge_untouched(splits: DatasetDict, classifier: Classifier) -> dict[str, tuple[list[np.ndarray], float]]:
    """As judge_baselines, for `zero_shot` (one run) and `few_shot` (three draws of examples; the seconds are of one)."""
    texts, results = splits["test"]["text"][:], {}
    for name, asked in (("zero_shot", [classifier]), ("few_shot", [few_shot(splits["train"], classifier, texts, seed) for seed in range(3)])):
        start = time.perf_counter()
        runs = [one.predict_proba(texts) for one in asked]
        results[name] = runs, (time.perf_counter() - start) / len(runs)
    return results

def add_adapter(model, rank: int, seed: int):
    """The model wrapped with a LoRA adapter on every linear layer but the output head."""
    from peft import LoraConfig, get_peft_model

    transformers.set_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)

def linear_shapes(config) -> list[tuple[int, int]]:
    """Inputs and outputs of the seven linear layers in each block of a Llama."""
    width, inner, head = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    return [(width, queries), (width, keys), (width, keys), (queries, width), (width, inner), (width, inner), (inner, width)]


def memory_ledger(config, method: str, batch_size: int, length: int, rank: int, number: int = 2, checkpointing: bool = True) -> dict[str, int]:
    """Bytes to train a Llama by `method` ("full", "lora" or "qlora") on batches of batch_size x length tokens.

    `number` is the size of a number in the compute format, in bytes. NF4 with double quantization takes half a byte a weight, one byte more for
    each 64 weights and four for each 16,384 (Dettmers et al., 2023). Activations are what a block of transformers' Llama keeps for the backward pass.
    """
    shapes, layers, width, tokens = linear_shapes(config), config.num_hidden_layers, config.hidden_size, batch_size * length
    linear = layers * sum(i * o for i, o in shapes)
    other = config.vocab_size * width * (1 if config.tie_word_embeddings else 2) + (2 * layers + 1) * width
    adapter = 0 if method == "full" else layers * sum(rank * (i + o) for i, o in shapes)
    queries, keys = shapes[0][1], shapes[1][1]
    block = number * tokens * (4 * width + 4 * config.intermediate_size + 2 * queries + 2 * keys + 7 * (rank if adapter else 0))
    return {"weights": int(linear * (1 / 2 + 1 / 64 + 4 / 16384)) + number * other if method == "qlora" else number * (linear + other),
            "adapter": 4 * adapter, "gradients": 4 * adapter if adapter else number * (linear + other),
            "optimizer": 8 * adapter if adapter else 12 * (linear + other),
            "activations": block + layers * tokens * width * number if checkpointing else layers * block}

def collate(shared: int, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A batch of rows as one sequence: the `shared` first tokens once, then the rest of each row, side by side."""
    positions, visible = side_by_side(shared, [row["input_ids"][shared:] for row in rows])
    ids, targets = ([token for row in rows for token in row[name][shared:]] for name in ("input_ids", "labels"))
    return {"input_ids": torch.tensor([rows[0]["input_ids"][:shared] + ids]), "labels": torch.tensor([[-100] * shared + targets]),
            "position_ids": positions[None], "attention_mask": visible[None, None]}

def default_learning_rate(model) -> float:
    """0.5 / hidden size: 2e-3 for the tiny Llama, 2.4e-4 for one with a width of 2048."""
    return 0.5 / model.config.hidden_size


def training_settings(settings: Settings, folder: Path, longest: int):
    """The run's settings in the words of trl: an SFTConfig. `longest` is the most tokens of a row beyond the common beginning."""
    from trl import SFTConfig

    dtype, _ = choose_precision()
    passes = next(n for n in range(1, settings.batch_size + 1) if settings.batch_size % n == 0 and
                  (settings.batch_size // n * longest <= settings.pass_tokens or n == settings.batch_size))
    return SFTConfig(
        completion_only_loss=True,  # must be said: rows that come as token ids are otherwise trained on whole
        output_dir=str(folder), num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size // passes, gradient_accumulation_steps=passes,
        learning_rate=settings.learning_rate, lr_scheduler_type="linear", warmup_steps=0.02,  # below 1: a share of all steps
        max_length=settings.max_length,
        activation_checkpointing=torch.cuda.is_available(),  # trades time for memory; a small model needs none
        use_cpu=not torch.cuda.is_available(), bf16=dtype == torch.bfloat16, fp16=dtype == torch.float16,
        logging_steps=0.02, logging_nan_inf_filter=False, save_strategy="no", report_to="none", seed=settings.seed,
        disable_tqdm=not at_terminal())

def train(classifier: Classifier, rows: Dataset, settings: Settings, folder: Path) -> list[dict[str, float]]:
    """Train the classifier's adapter in place on training_rows; returns the log: step, loss, learning rate."""
    from trl import SFTTrainer

    shared = len(classifier.form.before)
    config = training_settings(settings, folder, max(map(len, rows["input_ids"])) - shared)
    trainer = SFTTrainer(model=classifier.model, args=config, train_dataset=rows, processing_class=classifier.tokenizer,
                         data_collator=partial(collate, shared))
    for parameter in classifier.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    log = trainer.state.log_history
    if not all(np.isfinite(entry.get("loss", 0)) for entry in log):
        raise InputError("the loss became infinite or not a number: lower --learning-rate")
    return log

def draw_loss(log: list[dict[str, float]], path: Path) -> str:
    """Write the training loss as a picture; returns its path."""
    points = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    figure = matplotlib.figure.Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points))
    axes.set(xlabel="step", ylabel="loss, nats a token", yscale="log")
    figure.savefig(path, dpi=120)
    return str(path)

def fit_temperature(scores: np.ndarray, truth: list[str], labels: list[str]) -> float:
    """The temperature at which softmax(scores / temperature) has the least log-loss; scores are (rows, labels)."""
    loss = lambda log_t: log_loss(truth, softmax(scores / np.exp(log_t), axis=1), labels=labels)
    return float(np.exp(minimize_scalar(loss, bounds=(0, 3), method="bounded").x))

def draw_reliability(truth: list[str], before: np.ndarray, after: np.ndarray, labels: list[str], path: Path) -> str:
    """Write accuracy against confidence, in bins, before and after temperature scaling; returns the path."""
    figure = matplotlib.figure.Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    for name, probabilities in (("before", before), ("after temperature scaling", after)):
        bins = calibration_bins(is_right(truth, probabilities, labels), probabilities.max(1))
        axes.plot([sure for sure, _, _ in bins], [right for _, right, _ in bins], marker="o", label=name)
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.legend()
    figure.savefig(path, dpi=120)
    return str(path)

def coverage(truth: list[str], probabilities: np.ndarray, labels: list[str]) -> list[dict[str, float]]:
    """Accuracy on the surest part of the rows, and the confidence from which on they were answered."""
    right, confidence = is_right(truth, probabilities, labels), probabilities.max(1)
    surest = np.argsort(-confidence, kind="stable")
    parts = [(share, surest[:max(1, round(share * len(surest)))]) for share in (1.0, 0.9, 0.8, 0.5)]
    return [{"coverage": share, "accuracy": float(right[part].mean()), "threshold": float(confidence[part[-1]])} for share, part in parts]


def coverage_table(rows: list[dict[str, float]]) -> str:
    """The same as text."""
    return "\n".join([f"{'answered':>9}{'accuracy':>10}{'threshold':>11}",
                      *(f"{row['coverage']:>9.0%}{row['accuracy']:>10.3f}{row['threshold']:>11.3f}" for row in rows)])

def compare(truth: list[str], a: np.ndarray, b: np.ndarray, labels: list[str]) -> dict[str, float]:
    """Exact McNemar test of two systems on the same rows, each a (rows, labels) array of probabilities."""
    right_a, right_b = (is_right(truth, probabilities, labels) for probabilities in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a_right": only_a, "only_b_right": only_b, "p_value": float(p_value)}


def verdict(systems: dict[str, dict[str, float]], comparisons: dict[str, dict[str, float]]) -> str:
    """Say in a sentence what fine-tuning was worth; from p = 0.05 on two systems cannot be told apart."""
    clauses = []
    for other, name in (("zero_shot", "the untouched model"), ("tfidf", "TF-IDF")):
        points = 100 * (systems["fine_tuned"]["accuracy"] - systems[other]["accuracy"])
        p_value = comparisons[f"fine_tuned_vs_{other}"]["p_value"]
        verb = "cannot be told apart from" if p_value >= 0.05 else "beats" if points > 0 else "loses to"
        clauses.append(f"{verb} {name} ({points:+.1f} points, {'p < 0.001' if p_value < 0.001 else f'p = {p_value:.3f}'})")
    advice = "fine-tuning was worth it" if clauses[1].startswith("beats") else "use TF-IDF"
    return f"Fine-tuning {clauses[0]} and {clauses[1]}: {advice} here."

def draw_confusion(truth: list[str], predicted: list[str], labels: list[str], path: Path) -> str:
    """Write the confusion matrix as a picture; returns its path."""
    size = min(max(6.0, 0.45 * len(labels)), 40.0)
    figure = matplotlib.figure.Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    shown = [label.replace("$", r"\$") for label in labels]  # matplotlib would take it for mathematics
    ConfusionMatrixDisplay.from_predictions(truth, predicted, labels=labels, display_labels=shown, xticks_rotation="vertical",
                                            cmap="Blues", include_values=len(labels) <= 20, colorbar=False, ax=axes)
    figure.savefig(path, dpi=120)
    return str(path)

def show_mistakes(texts: list[str], truth: list[str], predicted: list[str], confidence: np.ndarray, count: int = 5) -> str:
    """The mistakes that the model was surest of, in words."""
    wrong = [i for i in np.argsort(-confidence) if truth[i] != predicted[i]][:count]
    return "\n".join(f"{truth[i]} -> {predicted[i]} ({confidence[i]:.2f}): {texts[i][:300]}" for i in wrong)

def make_run_folder(asked: str | None) -> Path:
    """A new or empty folder: results are never overwritten."""
    folder = Path(asked) if asked else HERE / "outputs" / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} holds the results of another run: choose a new --output-dir")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return folder

def write_json(path: Path, content) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def probability_columns(probabilities: np.ndarray, labels: list[str]) -> dict[str, list[float]]:
    """Columns for a table of predictions: `confidence`, and `p_` with each label."""
    columns = {"confidence": probabilities.max(1)} | {f"p_{label}": probabilities[:, i] for i, label in enumerate(labels)}
    return {name: column.astype(float).round(6).tolist() for name, column in columns.items()}


def save_classifier(folder: Path, classifier: Classifier, settings: Settings) -> None:
    """What load_classifier needs, in peft's own format, and what is needed to repeat the run."""
    classifier.model.save_pretrained(folder)
    classifier.tokenizer.save_pretrained(folder)
    write_json(folder / "classifier.json", {"labels": classifier.labels, "temperature": classifier.temperature})
    write_json(folder / "settings.json", asdict(settings))
    packages = ["torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "scikit-learn"]
    write_json(folder / "versions.json", {"python": sys.version.split()[0], **{name: version(name) for name in packages}})

def prepare(settings: Settings) -> tuple[Settings, DatasetDict, Classifier]:
    """Load data, tokenizer and model, and say what was chosen and why; returns the settings with the choices filled in."""
    splits = load_splits(settings.data, settings.text_column, settings.label_column, settings.seed)
    labels = sorted(set(splits["train"]["label"]))
    print("data:", {name: len(split) for name, split in splits.items()}, "in", len(labels), "classes")
    name, reason = choose_model(settings.model)
    dtype, why = choose_precision()
    print(f"model: {name}, because {reason}")
    print(f"precision: 4-bit weights, {dtype} arithmetic, because {why}")
    tokenizer = load_tokenizer(name)
    config = load_pretrained(transformers.AutoConfig, name)
    if config.model_type == "llama":
        parts = memory_ledger(config, "qlora", settings.batch_size, settings.max_length, settings.rank, dtype.itemsize, torch.cuda.is_available())
        print(f"memory to train: about {sum(parts.values()) / 1e9:.2f} GB, beside the libraries' own")
    model = load_model(name, dtype)
    settings = replace(settings, model=str(Path(name).resolve()) if Path(name).is_dir() else name,
                       learning_rate=settings.learning_rate or default_learning_rate(model),
                       max_length=min(settings.max_length, model.config.max_position_embeddings))
    print(f"learning rate: {settings.learning_rate:.2g} for a width of {model.config.hidden_size}")
    return settings, splits, Classifier(model, tokenizer, make_format(tokenizer, labels, settings.max_length), pass_tokens=settings.pass_tokens)

def fine_tune(untouched: Classifier, splits: DatasetDict, settings: Settings, folder: Path):
    """Wrap the model, train it, fit the temperature; returns the new classifier, the training log and the seconds."""
    tokenizer, form, start = untouched.tokenizer, untouched.form, time.perf_counter()
    examples = balance(splits["train"], settings.seed) if settings.balance else splits["train"]
    encoded, shortened = encode_texts(tokenizer, examples["text"], form)
    rows = training_rows(encoded, examples["label"], form)
    print(f"{len(rows)} examples to train on, {shortened} shortened to fit\n\nthe first example:\n{tokenizer.decode(rows[0]['input_ids'])}\n")
    print("trained on:", [tokenizer.decode(i) for i, m in zip(rows[0]["input_ids"], rows[0]["completion_mask"]) if m])
    tuned = replace(untouched, model=add_adapter(untouched.model, settings.rank, settings.seed))
    trainable, total = tuned.model.get_nb_trainable_parameters()
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.2%})", flush=True)
    log = train(tuned, rows, settings, folder)
    tuned.temperature = fit_temperature(tuned.scores(splits["validation"]["text"]), splits["validation"]["label"][:], tuned.labels)
    return tuned, log, time.perf_counter() - start

def run(settings: Settings) -> None:
    """Judge the baselines and the untouched model, train, judge again; print and keep the results."""
    settings, splits, untouched = prepare(settings)
    folder = make_run_folder(settings.output_dir)
    print("scoring what there is before training", flush=True)
    results = judge_baselines(splits) | judge_untouched(splits, untouched)
    tuned, log, seconds = fine_tune(untouched, splits, settings, folder)
    save_classifier(folder, tuned, settings)
    start = time.perf_counter()
    scores = tuned.scores(splits["test"]["text"])
    results["fine_tuned"] = [softmax(scores / tuned.temperature, axis=1)], seconds + time.perf_counter() - start
    report(folder, splits["test"], tuned, scores, results, log)

def report(folder: Path, test: Dataset, tuned: Classifier, scores: np.ndarray, results: dict, log: list[dict[str, float]]) -> None:
    """Print scoreboard, verdict, calibration and mistakes; write metrics.json, predictions.csv and the pictures."""
    texts, truth, labels = test["text"][:], test["label"][:], tuned.labels
    systems = {name: measure(truth, runs, labels, seconds) for name, (runs, seconds) in results.items()}
    after, raw = results["fine_tuned"][0][0], softmax(scores, axis=1)
    comparisons = {f"fine_tuned_vs_{other}": compare(truth, after, results[other][0][0], labels) for other in ("tfidf", "zero_shot")}
    untempered = {"ece": calibration_error(is_right(truth, raw, labels), raw.max(1)), "log_loss": float(log_loss(truth, raw, labels=labels))}
    sure, sentence = coverage(truth, after, labels), verdict(systems, comparisons)
    predicted = choose(after, labels)
    print(f"\n{scoreboard(systems)}\n\n{json.dumps(comparisons)}\n{sentence}\n")
    print(f"temperature {tuned.temperature:.2f}: calibration error {untempered['ece']:.3f} before, {systems['fine_tuned']['ece']:.3f} after\n")
    print(f"the surest part of the messages:\n{coverage_table(sure)}\n")
    print(classification_report(truth, predicted, labels=labels, digits=2, zero_division=0))
    print("mistakes the model was surest of:\n" + show_mistakes(texts, truth, predicted, after.max(1)))
    calibration = {"temperature": tuned.temperature} | {f"{name}_{when}": figures[name] for name in ("ece", "log_loss")
                                                        for when, figures in (("before", untempered), ("after", systems["fine_tuned"]))}
    write_json(folder / "metrics.json", {"systems": systems, "comparisons": comparisons, "verdict": sentence,
                                         "calibration": calibration, "coverage": sure, "training_log": log})
    table = {"text": texts, "label": truth, "predicted": predicted} | probability_columns(after, labels)
    Dataset.from_dict(table).to_csv(folder / "predictions.csv", index=False)
    draw_confusion(truth, predicted, labels, folder / "confusion-matrix.png")
    draw_reliability(truth, raw, after, labels, folder / "reliability.png")
    draw_loss(log, folder / "training-loss.png")
    print(f"\nkept in {folder}: adapter, tokenizer, classifier.json, settings.json, versions.json, metrics.json, predictions.csv, pictures")

def load_classifier(run_folder: str | Path) -> Classifier:
    """The fine-tuned classifier of a run, with its temperature. Raises InputError if the folder holds none."""
    from peft import PeftModel

    folder = Path(run_folder)
    try:
        kept = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        settings = Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder} is not the folder of a finished run: check --run") from error
    tokenizer = load_tokenizer(str(folder))
    model = PeftModel.from_pretrained(load_model(settings.model, choose_precision()[0]), folder)
    return Classifier(model, tokenizer, make_format(tokenizer, kept["labels"], settings.max_length), kept["temperature"])

@dataclass
class PredictSettings:
    """Everything `main.py predict` can be told."""

    run: str = field(metadata={"help": "The folder of a finished run."})
    data: str | None = option(None, "A csv, tsv, json, jsonl or parquet file with texts.")
    text_column: str = option("text", "Column with the texts.")
    output: str | None = option(None, "A new csv or jsonl file. Default: one JSON object a line, printed.")
    threshold: float = option(0.0, "Answers less sure than this are marked: abstain.")


def parse_predict(argv: list[str]) -> tuple[PredictSettings, list[str]]:
    """Read the command line after `predict`: the settings, and the texts given as arguments."""
    parser = HfArgumentParser(PredictSettings, allow_abbrev=False, prog="main.py predict", description="Classify texts with a finished run.")
    parser.add_argument("texts", nargs="*", help="Texts, where there is no --data.")
    settings, given = parse(parser, argv)
    if bool(settings.data) == bool(given.texts):
        parser.error("give either --data or texts")
    if settings.output and Path(settings.output).suffix not in (".csv", ".jsonl"):
        parser.error("--output must end in .csv or .jsonl")
    return settings, given.texts

def read_texts(data: str, text_column: str) -> list[str]:
    """The texts of a file, in its order; a missing one counts as empty."""
    if not Path(data).is_file():
        raise InputError(f"there is no file {data}: check --data")
    split = read_file(Path(data))
    if text_column not in split.column_names:
        raise InputError(f"no column {text_column!r}; there are {', '.join(split.column_names)}: choose with --text-column")
    return ["" if text is None else str(text) for text in split[text_column]]


def predict(settings: PredictSettings, texts: list[str]) -> None:
    """Answer every text in its order: label, confidence, abstain, and a probability for each label."""
    output = settings.output and Path(settings.output)
    if output and (output.exists() or not output.parent.is_dir()):
        raise InputError(f"{output} {'exists already' if output.exists() else 'is in a folder that does not exist'}: name a new --output")
    texts = texts or read_texts(settings.data, settings.text_column)
    classifier = load_classifier(settings.run)
    probabilities = classifier.predict_proba(texts)
    columns = probability_columns(probabilities, classifier.labels)
    table = Dataset.from_dict({"text": texts, "label": choose(probabilities, classifier.labels), "confidence": columns.pop("confidence"),
                               "abstain": (probabilities.max(1) < settings.threshold).tolist(), **columns})
    if output is None:
        for row in table:
            print(json.dumps(row, ensure_ascii=False))
    elif output.suffix == ".csv":
        table.to_csv(output, index=False)
    else:
        table.to_json(output, force_ascii=False)

def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process trains on one GPU
    argv = sys.argv[1:] if argv is None else argv
    command = (lambda: predict(*parse_predict(argv[1:]))) if argv[:1] == ["predict"] else (lambda: run(parse_settings(argv)))
    quieten_libraries()
    try:
        command()
    except InputError as error:
        print(f"main.py: error: {error}", file=sys.stderr)
        return 1
    return 0

if __name__ == "__main__":
    sys.exit(main())
