"""Counts of what usually goes wrong with data. Written by hand, not tangled."""

import hashlib
import json
from collections import Counter
from contextlib import suppress
from decimal import Decimal, InvalidOperation

import numpy as np
from datasets import Dataset

from day9.prompts import Prompt
from day9.reading.splits import text_keys
from day9.reading.values import normalised

GARBLED = ("\ufffd", "Ã", "â€")  # what UTF-8 becomes when it is read as something else


def audit_split(split: Dataset, tokenizer, prompt: Prompt) -> dict:
    """Counts of what may be wrong with a split, and the SHA-256 of its texts and labels."""
    lengths, empty, garbled, digest = [], 0, 0, hashlib.sha256()
    for batch in split.iter(1000):
        lengths += map(len, prompt.token_ids(tokenizer, batch["text"]))
        empty += sum(not text.strip() for text in batch["text"])
        garbled += sum(any(sign in text for sign in GARBLED) for text in batch["text"])
        digest.update(json.dumps(batch).encode())
    classes, keys = Counter(split["label"][:]), text_keys(split)
    return {"rows": len(split), "classes": len(classes), "rarest": min(classes.values()),
            "empty": empty, "repeated": len(keys) - len(np.unique(keys)), "garbled": garbled,
            "median_tokens": int(np.median(lengths)), "most_tokens": max(lengths),
            "shortened": sum(length > prompt.text_room for length in lengths),
            "labels": dict(classes.most_common()), "sha256": digest.hexdigest()}


ODDITIES = {
    "empty": "empty texts: {:,} (they can only be guessed)",
    "repeated": "texts that repeat another of their split: {:,}",
    "garbled": "texts that look as if read in a wrong encoding: {:,} (save the file as UTF-8)",
    "shortened": "texts that are too long and lose their end: {:,} (raise --max-length, if the "
                 "model allows it)"}


def alike(labels: list[str]) -> list[str]:
    """The labels that differ from another in case, white space or spelling of a number alone."""
    def key(label: str) -> str | Decimal:
        with suppress(InvalidOperation):
            if (number := Decimal(label)).is_finite():
                return number
        return normalised(label)

    counts = Counter(map(key, labels))
    return [label for label in labels if counts[key(label)] > 1]


def print_audit(counts: dict[str, dict]) -> None:
    """The counts of all splits as a table, and one warning for each kind of trouble."""
    columns = [name for name in counts["train"] if name not in ("labels", "sha256")]
    print(f"{'':10}" + "".join(f"{name.replace('_', ' '):>14}" for name in columns))
    for split, found in counts.items():
        print(f"{split:10}" + "".join(f"{found[name]:>14,}" for name in columns))
    for kind, advice in ODDITIES.items():
        if count := sum(found[kind] for found in counts.values()):
            print("warning:", advice.format(count))
    if similar := alike(sorted(counts["train"]["labels"])):
        print(f"warning: labels differ in spelling alone: {', '.join(map(repr, similar))}")


def balance(split: Dataset, seed: int) -> Dataset:
    """Repeat rows of rare classes, drawn at random, until all are as large as the largest."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(split["label"][:]):
        rows.setdefault(label, []).append(row)
    most, random = max(map(len, rows.values())), np.random.default_rng(seed)
    every = [[*same, *random.choice(same, most - len(same))] for same in rows.values()]
    return split.select(np.concatenate(every).astype(int))
