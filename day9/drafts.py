"""The draft of a long result: its lock, its rows, its name at last. Written by hand, not tangled.

A result NAME has a folder NAME.draft beside it until it is complete. That holds the result, as far
as it goes, and a mark, which says what work makes it and how much of it is on the disk.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from day9.errors import InputError, explain
from day9.files import flush_files, remove, write_json
from day9.report import write_rows
from day9.runs import alone_in

MARK = "draft.json"


@dataclass
class Draft:
    """A result that is not complete; `rows` and `size` in bytes count what is on the disk."""

    result: Path  # its name at last
    work: dict = field(default_factory=dict)  # digests of what makes it
    rows: int = 0
    size: int = 0

    @property
    def folder(self) -> Path:
        """Where the result and its mark are kept."""
        return self.result.with_name(f"{self.result.name}.draft")

    @property
    def path(self) -> Path:
        """The file or folder that becomes the result."""
        return self.folder / self.result.name

    def keep_mark(self, rows: int = 0, size: int = 0) -> None:
        """Keep how far it is."""
        write_json(self.folder / MARK, {"work": self.work, "rows": rows, "size": size})
        self.rows, self.size = rows, size

    def take_over(self) -> None:
        """Count what a dead process has left. Raises InputError if the folder is not a draft."""
        try:
            kept = json.loads((self.folder / MARK).read_bytes())
            self.work, self.rows, self.size = (kept[name] for name in ("work", "rows", "size"))
        except (OSError, ValueError, TypeError, KeyError) as error:
            if not all(path.name.startswith(f".{MARK}.")  # the mark of one that died at once
                       for path in self.folder.iterdir()):
                raise InputError(not_ours(self.folder)) from error
        if not self.path.is_file() or self.path.stat().st_size < self.size:
            self.rows = self.size = 0
        if not self.rows:
            remove(self.path)
            self.keep_mark()

    def begin(self, work: dict) -> None:
        """Say what work makes it. Raises InputError if there are rows of other work."""
        if self.rows and self.work != work:
            raise InputError(f"{self.folder} holds {self.rows:,} rows of another run or input, or "
                             "of other options: give the same again, remove it, or name another "
                             "--output")
        self.work = work
        if self.rows:
            print(f"{self.folder} holds {self.rows:,} rows: going on after them", flush=True)

    def add(self, columns: dict[str, list]) -> None:
        """Append rows. They count once they are on the disk, and the mark says so."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.truncate(self.size)  # a chunk that was interrupted is written again whole
            write_rows(file, columns, self.result.suffix, header=not self.rows)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        self.keep_mark(self.rows + len(next(iter(columns.values()))), size)

    def finish(self) -> None:
        """Give the result its name. Raises InputError if that was taken meanwhile."""
        flush_files(self.path)
        if os.path.lexists(self.result):
            raise InputError(f"{self.result} has appeared meanwhile: move it away, and give the "
                             "same command again")
        self.path.rename(self.result)
        self.rows = 0  # nothing is left to do


def not_ours(folder: Path) -> str:
    """What to say of a file or folder that has the name of a draft."""
    return f"{folder} is not a draft of this program: move it away, or name another --output"


@contextlib.contextmanager
def claimed(output: str) -> Iterator[Draft]:
    """The draft of a new result, which no other process can claim while this one lives.

    It stays where work is stopped and has rows, and is removed otherwise. Raises InputError where
    the name, or that of the draft, is not free.
    """
    draft = Draft(Path(output))
    if not draft.result.name:  # as of the folder .
        raise InputError(f"{output} exists already: name a new --output")
    if not PartialState().is_main_process:  # the first of several claims it for all
        yield draft
        return
    folder, parent = draft.folder, draft.result.parent
    if not parent.is_dir():
        raise InputError(f"{output} is in a folder that does not exist: name a new --output")
    try:
        folder.mkdir(exist_ok=not folder.is_symlink())
    except FileExistsError as error:
        raise InputError(not_ours(folder)) from error
    except OSError as error:
        raise InputError(f"cannot write to {parent}: {error.strerror}: name another --output"
                         ) from error
    with alone_in(folder, f"the process that writes {output}"):
        draft.take_over()
        try:
            if os.path.lexists(output):
                raise InputError(f"{output} exists already: name a new --output")
            with explaining(draft):
                yield draft
        finally:
            if not draft.rows:
                shutil.rmtree(folder)


@contextlib.contextmanager
def explaining(draft: Draft) -> Iterator[None]:
    """Work that is stopped says how it goes on."""
    again = lambda: f"the same command goes on after row {draft.rows:,}"
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if draft.rows:
            print(f"\nstopped: {again()}", file=sys.stderr)
        raise
    except Exception as error:
        line = None if isinstance(error, InputError) else explain(error)
        if line and draft.rows:
            raise InputError(f"{line}; {again()}") from error
        raise
