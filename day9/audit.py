"""Counts of what usually goes wrong with data. Written by hand, not tangled."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from contextlib import suppress

import numpy as np
from datasets import Dataset

from day9.errors import shortened
from day9.prompts import Prompt
from day9.reading.splits import text_keys
from day9.reading.values import look

GARBLED = ("\ufffd", "â€")  # what no text has that was read in its own encoding


def is_garbled(text: str) -> bool:
    """Whether UTF-8 was read as something else: as that again, the text is shorter in UTF-8.

    Portuguese, as in NÃO, is not: there no other byte of a character follows.
    """
    for encoding in ("cp1252", "latin-1"):
        found = text.encode(encoding, "ignore")
        with suppress(UnicodeDecodeError):
            if len(found.decode("utf-8")) < len(found):
                return True
    return any(sign in text for sign in GARBLED)


def audit_split(split: Dataset, tokenizer, prompt: Prompt) -> dict:
    """Counts of what may be wrong with a split, and the SHA-256 of its texts and labels."""
    lengths, empty, garbled, digest = [], 0, 0, hashlib.sha256()
    for batch in split.iter(1000):
        lengths += map(len, prompt.token_ids(tokenizer, batch["text"]))
        empty += sum(not text.strip() for text in batch["text"])
        garbled += sum(map(is_garbled, batch["text"]))
        digest.update(json.dumps(batch).encode())
    labels = split["label"][:]
    classes, different = Counter(labels), set(zip(text_keys(split).tolist(), labels))
    answers = Counter(key for key, _ in different)
    return {"rows": len(split), "classes": len(classes), "rarest": min(classes.values()),
            "empty": empty, "repeated": len(split) - len(different), "garbled": garbled,
            "two labels": sum(count > 1 for count in answers.values()),
            "median_tokens": int(np.median(lengths)), "most_tokens": max(lengths),
            "shortened": sum(length > prompt.text_room for length in lengths),
            "labels": dict(classes.most_common()), "sha256": digest.hexdigest()}


ODDITIES = {
    "empty": "empty texts: {:,} (they can only be guessed)",
    "repeated": "texts that repeat another of their split: {:,}",
    "two labels": "texts with two labels: {:,} (decide on one)",
    "garbled": "texts that look as if read in a wrong encoding: {:,} (save the file as UTF-8)",
    "shortened": "texts that are too long and lose their end: {:,} (raise --max-length, if the "
                 "model allows it)"}


def alike(labels: list[str]) -> list[str]:
    """The labels that look like another, or are the same number."""
    counts = Counter(map(look, labels))
    return [label for label in labels if counts[look(label)] > 1]


def several(labels: Collection[str]) -> list[str]:
    """The labels that are lists in brackets, or others of the labels with | or ; between them."""
    def is_several(label: str) -> bool:
        parts = [part.strip() for part in re.split(r"[|;]", label)]
        return (re.fullmatch(r"\[.*[,'\"].*\]|\{.*[,'\"].*\}", label, re.DOTALL) is not None
                or len(parts) > 1 and all(part in labels for part in parts))

    return [label for label in labels if is_several(label)]


def print_audit(counts: dict[str, dict]) -> None:
    """The counts of all splits as a table, and one warning for each kind of trouble."""
    columns = [name for name in counts["train"] if name not in ("labels", "sha256")]
    print(f"{'':10}" + "".join(f"{name.replace('_', ' '):>14}" for name in columns))
    for split, found in counts.items():
        print(f"{split:10}" + "".join(f"{found[name]:>14,}" for name in columns))
    for kind, advice in ODDITIES.items():
        if count := sum(found[kind] for found in counts.values()):
            print("warning:", advice.format(count))
    labels = counts["train"]["labels"]
    if similar := alike(sorted(labels)):
        shown = (f"{ascii(label)} ({labels[label]:,})" for label in similar)
        print(f"warning: labels differ in spelling alone: {', '.join(shown)}")
    if lists := several(labels):
        print(f"warning: rows with several labels in one: {sum(map(labels.get, lists)):,}, as in "
              f"{ascii(shortened(lists[0]))} (this program gives a text one label, not several: "
              "each such list is a class of its own)")


def balance(split: Dataset, seed: int) -> Dataset:
    """Repeat rows of rare classes, drawn at random, until all are as large as the largest."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(split["label"][:]):
        rows.setdefault(label, []).append(row)
    most, random = max(map(len, rows.values())), np.random.default_rng(seed)
    every = [[*same, *random.choice(same, most - len(same))] for same in rows.values()]
    return split.select(np.concatenate(every).astype(int))
