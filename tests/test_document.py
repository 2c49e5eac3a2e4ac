"""README.org is the program: it tangles to main.py, and lints clean."""

import os
import re
import shutil
import subprocess

import document
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
@pytest.mark.parametrize("name", ["main.py", "reading.py", "data/tiny-llama/pretrain.py"])
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
    blocks = re.findall(r"^#\+begin_src python([^\n]*)\n(.*?)^#\+end_src\n", text, re.M | re.S)
    assert len(blocks) > 50 and all(len(body.splitlines()) <= 40 for _, body in blocks)
    shown = document.demonstrations(text)
    assert len(shown) == sum(":tangle no" in header for header, _ in blocks) > 20
    for block in shown:
        assert block["result"], f"no output at {block['where']}: run make readme"
        assert "Traceback" not in block["result"]


def test_a_forge_shows_everything():
    """What org-ruby drops or prints raw does not occur: see its handling of exports, drawers, maths, macros and special blocks."""
    text = (ROOT / "README.org").read_text(encoding="utf-8")
    prose = re.sub(r"^#\+begin_(src|example).*?^#\+end_\1", "", text, flags=re.M | re.S)
    for header in re.findall(r"^#\+begin_src python(.*:tangle no.*)$", text, re.M):
        assert ":exports both" in header and "drawer" not in header and "raw" not in header
    assert {kind.lower() for kind in re.findall(r"^#\+begin_(\w+)", text, re.M | re.I)} <= {"src", "example", "quote"}
    assert set(re.findall(r"^:(\w+):$", prose, re.M)) <= {"PROPERTIES", "END"}
    for raw in (r"\$[^$\n]+\$", r"\{\{\{", r"<<[^\n]+>>", r"^#\+include", r"\\[a-zA-Z]+"):
        assert not re.search(raw, prose, re.M | re.I), raw
    pictures = re.findall(r"\[\[file:(outputs/[^]]+)\]", text)
    assert len(set(pictures)) >= 5
    for picture in pictures:
        assert f"[[file:{picture}]]" in text  # with a description it would be a link, not a picture
        assert subprocess.run(["git", "check-ignore", "-q", picture], cwd=ROOT).returncode == 1, f"{picture} is ignored by git"


SHOWN = "#+begin_src python :tangle no :exports both\nprint(1)\n#+end_src\n\n#+RESULTS:\n: {}\n\n"


@pytest.mark.parametrize("drift, new, stale", [
    ("none", "acc 0.80 n 400", False), ("none", "acc 0.81 n 400", True), ("0.1", "acc  0.85 n 400", False), ("0.1", "acc 0.95 n 400", True),
    ("0.1", "accuracy 0.80 n 400", True), ("figures", "acc 9 n 1", False), ("figures", "acc n 1", True), ("lines", "what else", False)])
def test_drift_is_seen(drift, new, stale):
    old, fresh = (document.demonstrations(f"* Heading\n\n# drift: {drift}\n" + SHOWN.format(shown))[0] for shown in ("acc 0.80 n 400", new))
    assert old["drift"] == drift and "Heading" in old["where"]
    assert document.drifted(old["result"], fresh["result"], drift) == stale


@needs_emacs
@pytest.mark.parametrize("body, complaint", [("print(6 * 7)", None), ("print(6 * 7)\nraise ValueError('no')", "a Python error"), ("x = 1", "no result")])
def test_evaluation_finds_errors_and_lost_results(tmp_path, body, complaint):
    block = f"#+begin_src python :session day9 :tangle no :exports both :results output replace\n{body}\n#+end_src\n"
    (tmp_path / "README.org").write_text(f"* One\n\n{block}\n#+RESULTS:\n: an old result\n")
    failure = document.evaluate(tmp_path, 120)
    assert (failure is None) if complaint is None else complaint in failure, failure
    if complaint is None:
        assert ": 42" in (tmp_path / "README.org").read_text()


def test_every_link_leads_somewhere():
    """A forge makes its anchors from the headings: lower case, hyphens for blanks, no punctuation. Emacs and the page use CUSTOM_ID."""
    text = (ROOT / "README.org").read_text(encoding="utf-8")
    links = set(re.findall(r"\[\[#([^]]*)\]\[", text))
    anchors = {anchor: heading for heading, anchor in re.findall(r"^\*+ (.*)\n:PROPERTIES:\n:CUSTOM_ID: (.*)\n", text, re.M)}
    assert len(links) >= 8 and links == set(anchors) and "[[*" not in re.sub(r"^#\+begin_src.*?^#\+end_src", "", text, flags=re.M | re.S)
    for anchor, heading in anchors.items():
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    assert all((ROOT / path).exists() for path in re.findall(r"\[\[file:(.*?)\]", text))
