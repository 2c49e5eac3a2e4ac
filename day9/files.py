"""Files that are there whole or not at all, and their digests. Written by hand, not tangled."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A new name beside `path` for a file or folder, which takes its place once it is complete.

    By then all is on the disk. If something goes wrong, nothing is left but what was there before.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield draft
        flush_files(draft)
        draft.replace(path)
    finally:
        remove(draft)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_files(path: Path) -> None:
    """See to it that a file, or all files of a folder, are on the disk."""
    for written in (path, *path.rglob("*")):
        if written.is_file():
            with written.open("rb") as file:
                os.fsync(file.fileno())


def write_json(path: Path, content) -> None:
    """Write readable JSON, whole or not at all."""
    with whole(path) as draft:
        draft.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, under its name."""
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def sha256(content) -> str:
    """The digest of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
