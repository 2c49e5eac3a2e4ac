"""Single values as strings, spelled as they were written. Written by hand, not tangled."""

import json
import re
import unicodedata
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal, InvalidOperation
from uuid import UUID

import numpy as np


class Number(str):
    """A number as it was written in JSON."""


class Repeated:
    """Stands for the values of a name that a JSON object gives more than once."""

    def __repr__(self) -> str:
        return "..."


ONE_PER_ROW = "give one text and one label per row"
NOT_PLAIN = {  # what it is called, and the remedy
    list: ("a list", ONE_PER_ROW), dict: ("an object", ONE_PER_ROW),
    bytes: ("bytes", "store strings"), Repeated: ("more than one value", "keep one")}
NUMBERS = (bool, int, float, np.floating, Decimal, Number)
PLAIN = (str, *NUMBERS, date, time, timedelta, UUID)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold one, UTF-8 cannot

STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")  # curly quotes


def is_missing(value: object) -> bool:
    """True for None and for what is not a number, such as NaN."""
    return value is None or isinstance(value, PLAIN) and value != value


def is_blank(value: object) -> bool:
    """True for what is_missing, or white space alone."""
    return is_missing(value) or not str(value).strip()


def as_written(value: object) -> str | None:
    """A plain value as a string, None where it is missing. Raises ValueError: kind, remedy."""
    if is_missing(value):
        return None
    if not isinstance(value, PLAIN):
        kind = type(value)
        raise ValueError(*NOT_PLAIN.get(kind, (f"a {kind.__name__}", "store strings")))
    text = str(value).lower() if isinstance(value, bool) else str(value)  # as JSON has it
    if LONE_SURROGATE.search(text):
        raise ValueError("half a character (a lone surrogate)", "remove it")
    return text


def required(what: str, value: object) -> str:
    """A "text" as_written, or a tidy "label". Raises ValueError if missing, or a label is blank."""
    text = as_written(value)
    if text is None or what == "label" and is_blank(text):
        raise ValueError(f"no {what}", "fill it in or remove the row")
    return tidy(text) if what == "label" else text


def in_json(value: object) -> str:
    """A value in JSON, with numbers as they were written. Raises ValueError as as_written does."""
    if isinstance(value, dict):
        items = (f"{in_json(name)}: {in_json(item)}" for name, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_json, value))}]"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = as_written(value)
    if text is None:
        return "null"
    return text if isinstance(value, NUMBERS) else json.dumps(text, ensure_ascii=False)


def in_one_string(value: object) -> str | None:
    """as_written where that is possible, in_json otherwise. Raises ValueError as they do."""
    return as_written(value) if value is None or isinstance(value, PLAIN) else in_json(value)


def normalised(text: str) -> str:
    """The same for texts that differ in case and white space alone."""
    return " ".join(text.casefold().split())


def tidy(name: str) -> str:
    """A label or the name of a column, composed (NFC) and without the space around it."""
    return unicodedata.normalize("NFC", name).strip()


def look(name: str) -> str | Decimal:
    """The same for names that look alike, or are the same number."""
    straight = unicodedata.normalize("NFKC", name).translate(STRAIGHT)
    plain = normalised("".join(c for c in straight if unicodedata.category(c) != "Cf"))
    with suppress(InvalidOperation):
        if (number := Decimal(plain)).is_finite():
            return number
    return plain
