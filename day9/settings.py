"""The command line: each setting, its help and default. Written by hand, not tangled."""

import errno
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent  # the checkout
SMALL_LLAMA = HERE / "data" / "smollm2"
SMALL_EMBEDDER = HERE / "data" / "minilm"
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"  # the same on the hub
PASS_TOKENS = 1024  # most in one pass; measured on a CPU, a guess for a GPU
PATH = {"metavar": "PATH"}  # marks an option that takes one, in --help and for check_values


def option(default, help: str, **more):
    """A field with the text that --help prints for it."""
    return field(default=default, metadata={"help": help, **more})


def require(condition: bool, message: str) -> None:
    """Raise ValueError, which ends the program with exit code 2, unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_values(settings) -> None:
    """Raise ValueError for an empty value, or a path that cannot be looked at; expand a ~."""
    for each in fields(settings):
        value, name = getattr(settings, each.name), f"--{each.name.replace('_', '-')}"
        require(value != "", f"{name} is empty: give a value, or leave it out")
        if each.metadata.get("metavar") == "PATH" and value is not None:
            try:
                setattr(settings, each.name, usable_path(value))
            except OSError as error:
                raise ValueError(f"{name} {value[:60]!r}: {error.strerror}") from error


def usable_path(value: str) -> str:
    """A path with its ~ expanded. Raises OSError if it is there, or might be, but out of reach."""
    path = os.path.expanduser(value)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):  # new, on the hub, or reported where it is used
        return path
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


@dataclass
class Settings:
    """Fine-tune a 4-bit Llama with LoRA to classify texts, and judge it."""

    model: str | None = option(
        None, "Hub id or folder of a causal language model. Default: what this machine can carry.",
        **PATH)
    revision: str | None = option(None, "Branch, tag or commit of a model on the hub.")
    quantize: bool = option(
        True, "Keep the weights in 4 bits; --no-quantize keeps them as they are.")
    data: str = option(
        str(HERE / "data" / "health-questions"),
        "A csv, tsv, json, jsonl or parquet file, a folder with train, validation and test files, "
        "or the hub id of a dataset.", **PATH)
    data_config: str | None = option(
        None, "Configuration of a dataset on the hub, where it has several.")
    data_revision: str | None = option(None, "Branch, tag or commit of a dataset on the hub.")
    text_column: str = option("text", "Column with the texts.")
    label_column: str = option("label", "Column with the labels.")
    embedder: str | None = option(
        None, "Model for the rival `embeddings`: a hub id or folder that sentence-transformers can "
        "read, or none. Default: all-MiniLM-L6-v2, which knows English.", **PATH)
    instruction: str | None = option(
        None, "The words before each text; {labels} stands for the list of labels. Default: "
        "'Classify the text as one of: {labels}.', without the list where it is long.")
    balance: bool = option(
        False, "Repeat the examples of rare classes until all are as frequent as the commonest.")
    epochs: int | None = option(
        None, "How often training sees every example. Default: so often that each class is seen "
        "about 200 times, but at most twelve.")
    learning_rate: float | None = option(
        None, "Step size of the optimizer. Default: 0.5 / width of the model.")
    batch_size: int = option(8, "Examples per optimizer step, of all processes together.")
    pass_tokens: int = option(
        PASS_TOKENS, "Most tokens in one pass through the model. Lower it when memory runs out; "
        "probabilities change by rounding alone, by up to 0.01 or so in the 16 bits of a GPU.")
    max_length: int = option(
        512, "Most tokens of prompt and label together; longer texts are cut at their end.")
    rank: int = option(16, "Rank of the LoRA matrices: the adapter's capacity.")
    seed: int = option(42, "Fixes splits, initial adapter and order of the examples.")
    output_dir: str | None = option(
        None, "The run's folder, new or empty. Default: outputs/ and the time of the start.",
        **PATH)
    checkpoint_steps: int = option(
        100, "Save what is needed to resume after an interruption, every so many steps.")
    resume: str | None = option(
        None, "The folder of an interrupted run: continue it with its own settings. If its "
        "model, data or embedder have moved, --model, --data and --embedder say where they are.",
        **PATH)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "pass_tokens", "max_length", "rank",
                     "checkpoint_steps"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} must be at least 1")
        require(self.learning_rate is None or 0 < self.learning_rate < float("inf"),
                "--learning-rate must be a number above 0")
        require(0 <= self.seed < 2**32, "--seed must be between 0 and 4294967295")
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]
        moved = {"model", "data", "embedder"}
        require(not self.resume or {f.name for f in given} <= {"resume"} | moved,
                "--resume takes its settings from the run: beside it give only --model, --data and "
                "--embedder, where these have moved")


@dataclass
class PredictSettings:
    """Classify texts with a finished run."""

    run: str = field(metadata={"help": "The folder of a finished run.", **PATH})
    texts: list[str] = field(
        default_factory=list, metadata={"help": "Texts, where there is no --data."})
    data: str | None = option(None, "A csv, tsv, json, jsonl or parquet file with texts.", **PATH)
    text_column: str = option("text", "Column with the texts.")
    output: str | None = option(
        None, "A new csv or jsonl file. After an interruption, the same command goes on with it. "
        "Default: one JSON object per line, printed.", **PATH)
    threshold: float = option(0.0, "Answers with less confidence are marked in column abstain.")
    model: str | None = option(None, "The run's base model, where it has moved.", **PATH)

    def __post_init__(self):
        require(bool(self.data) != bool(self.texts), "give either --data or --texts")
        require(0 <= self.threshold <= 1, "--threshold is a probability, between 0 and 1")
        require(not self.output or Path(self.output).suffix in (".csv", ".jsonl"),
                "--output must end in .csv or .jsonl")


@dataclass
class MergeSettings:
    """Add a run's adapter to its model's weights, for use without peft and bitsandbytes."""

    run: str = field(metadata={"help": "The folder of a finished run.", **PATH})
    output: str = field(metadata={"help": "A new folder for the merged model.", **PATH})
    model: str | None = option(None, "The run's base model, where it has moved.", **PATH)


COMMANDS = {"": Settings, "predict": PredictSettings, "merge": MergeSettings}


def parse_command(argv: list[str]) -> Settings | PredictSettings | MergeSettings:
    """The command line as settings; what cannot be understood ends the program with exit code 2."""
    from transformers import HfArgumentParser

    name, *rest = argv if argv and argv[0] in COMMANDS else ["", *argv]
    parser = HfArgumentParser(
        COMMANDS[name], allow_abbrev=False, prog=f"main.py {name}".strip(),
        description=COMMANDS[name].__doc__,
        epilog="" if name else "main.py predict --help and main.py merge --help say what can be "
                               "done with a finished run.")
    try:
        "".join(argv).encode()
    except UnicodeEncodeError:
        parser.error("the arguments are not UTF-8: type them again, or rename the file")
    try:
        settings, unknown = parser.parse_args_into_dataclasses(
            args=rest, return_remaining_strings=True, look_for_args_file=False)
        check_values(settings)
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}; see --help")
    return settings
