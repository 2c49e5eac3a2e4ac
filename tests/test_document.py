"""README.org is the program: it tangles to main.py, and lints clean."""

import os
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

needs_emacs = pytest.mark.skipif(shutil.which("emacs") is None and not os.environ.get("CI"), reason="Emacs is not installed")
LINT = """(progn (require 'org-lint) (require 'ob-python)
 (dolist (report (org-lint)) (princ (format "%s\\n" (aref (cadr report) 2)))))"""


def emacs(*arguments):
    done = subprocess.run(["emacs", "-Q", "--batch", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_emacs
@pytest.mark.parametrize("name", ["main.py", "data/tiny-llama/pretrain.py"])
def test_the_document_tangles_to_the_program(tmp_path, name):
    shutil.copy(ROOT / "README.org", tmp_path)
    emacs(str(tmp_path / "README.org"), "-f", "org-babel-tangle")
    assert (tmp_path / name).read_text() == (ROOT / name).read_text(), f"{name} is stale: run make tangle"
    assert os.access(ROOT / "main.py", os.X_OK)


@needs_emacs
def test_the_document_lints_clean():
    assert emacs(str(ROOT / "README.org"), "--eval", LINT) == ""


def test_blocks_are_short_and_demonstrations_show_their_output():
    text = (ROOT / "README.org").read_text(encoding="utf-8")
    blocks = re.findall(r"^#\+begin_src python([^\n]*)\n(.*?)^#\+end_src\n(\n#\+RESULTS:\n(?=[:|\[#]))?", text, re.M | re.S)
    assert len(blocks) > 20
    for header, body, results in blocks:
        assert len(body.splitlines()) <= 40, body[:80]
        if ":tangle no" in header:
            assert ":exports both" in header and results, f"no output under: {body[:80]}"


def test_every_contents_link_has_its_heading():
    text = (ROOT / "README.org").read_text(encoding="utf-8")
    headings = set(re.findall(r"^\*+ (.*)$", text, re.M))
    links = re.findall(r"\[\[\*(.*?)\]", text)
    assert len(links) >= 5 and set(links) <= headings
    assert all((ROOT / path).exists() for path in re.findall(r"\[\[file:(.*?)\]", text))
