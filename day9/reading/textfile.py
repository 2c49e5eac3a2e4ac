"""Text files: UTF-8, and their line ends as they are. Written by hand, not tangled."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from day9.errors import InputError


def check_bytes(path: Path) -> None:
    """Raise InputError, with line and byte, where a file is not UTF-8 or holds a NUL byte."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}, byte"
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{where} {error.start + 1} ({line[error.start]:#04x}): not "
                                 "UTF-8: save the file as UTF-8") from error
            if b"\0" in line:
                raise InputError(f"{where} {line.index(0) + 1}: a NUL byte: remove it, or save "
                                 "the file as UTF-8")


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """An open text file. Raises InputError where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except UnicodeDecodeError:
        check_bytes(path)
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
