"""README.org is the program, is readable wherever it is read, and weaves to a notebook."""

import ast
import os
import re
import shutil
import statistics
import subprocess

import pytest
from conftest import ROOT

from tools import document
from tools.document import README, Block, blocks, demonstrations, project_files
from tools.notebook import markdown, weave

TANGLED = {"main.py"} | {f"day9/{name}.py" for name in (
    "model", "plain", "layout", "classifier", "training", "metrics")}
needs_emacs = pytest.mark.skipif(shutil.which("emacs") is None and not os.environ.get("CI"),
                                 reason="Emacs is not installed")
LINT = """(progn (require 'org-lint) (require 'ob-python)
 (dolist (report (org-lint)) (princ (format "%s\\n" (aref (cadr report) 2)))))"""


@pytest.fixture(scope="module")
def text() -> str:
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def python(text) -> list[Block]:
    return [block for block in blocks(text) if block.language == "python"]


@pytest.fixture(scope="module")
def prose(text) -> str:
    """The document without code and results."""
    for block in reversed([*blocks(text)]):
        text = text[:block.start] + text[block.end:]
    return text


def emacs(*arguments: object) -> str:
    done = subprocess.run(["emacs", "-Q", "--batch", *map(str, arguments)], capture_output=True,
                          text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_emacs
def test_the_document_tangles_to_the_program(tmp_path, python):
    shutil.copy(README, tmp_path)
    emacs(tmp_path / "README.org", "-f", "org-babel-tangle")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py")}
    assert made == TANGLED
    stale = [name for name in TANGLED
             if (tmp_path / name).read_bytes() != (ROOT / name).read_bytes()]
    assert not stale, f"run make tangle: {', '.join(sorted(stale))} is not what README.org says"
    assert all(os.access(folder / "main.py", os.X_OK) for folder in (tmp_path, ROOT))


@needs_emacs
def test_the_document_lints_clean():
    assert emacs(README, "--eval", LINT) == ""


def test_blocks_and_definitions_are_short(python):
    assert not [block.where for block in python if block.body.count("\n") > 40]
    sizes = [node.end_lineno - node.lineno + 1 for block in python if not block.is_demonstration
             for node in ast.parse(block.body).body
             if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    assert len(sizes) > 30 and statistics.median(sizes) <= 10


def test_every_demonstration_shows_its_output(text):
    shown = demonstrations(text)
    assert len(shown) > 30
    for block in shown:
        assert ":exports both" in block.header, f"a forge hides the output of {block.where}"
        assert block.output.strip(" ?\n"), f"no output at {block.where}: run make readme"
        assert not re.search("Traceback|>>>", block.result), f"debris at {block.where}"


def test_the_first_act_shows_an_output_every_sixty_lines(text):
    place = text.index("\n* One evening\n")
    for block in demonstrations(text):
        if block.act == "One evening":
            code_end = block.end - len(block.result)
            assert text.count("\n", place, code_end) <= 60, f"no output for long: {block.where}"
            place = block.end


def test_lines_fit_their_window(text, python, prose):
    """In 80 columns Emacs shows 79 of prose; 100 of code. A table or a link may be longer."""
    assert text.count("\n") <= 2450
    in_sight = lambda line: line.startswith(("|", "#+")) or "[[" in line or len(line) <= 79
    assert not [line for line in prose.splitlines() if not in_sight(line)]
    files = project_files("*.py")
    code = {name: (ROOT / name).read_text(encoding="utf-8") for name in files}
    code |= {block.where: block.body for block in python}
    assert len(files) > 15
    assert not [f"{where}: {line}" for where, body in code.items()
                for line in body.splitlines() if len(line) > 100]


def test_a_forge_shows_everything(text, prose):
    """Nothing occurs that org-ruby drops or prints raw.

    See its handling of exports, drawers, maths, macros and special blocks.
    """
    for block in demonstrations(text):
        assert "drawer" not in block.header and "raw" not in block.header
    kinds = {kind.lower() for kind in re.findall(r"^#\+begin_(\w+)", text, re.M | re.I)}
    assert kinds <= {"src", "example", "quote"}
    assert set(re.findall(r"^:(\w+):$", prose, re.M)) <= {"PROPERTIES", "END"}
    for raw in (r"\$[^$\n]+\$", r"\{\{\{", r"<<[^\n]+>>", r"^#\+include", r"\\[a-zA-Z]+", "@@"):
        assert not re.search(raw, prose, re.M | re.I), raw


def test_pictures_are_shown_and_kept(text):
    shown = set(re.findall(r"^\[\[file:(outputs/[^]]+)\]\]$", text, re.M))  # undescribed: a picture
    assert shown == set(re.findall(r"file:(outputs/[^]]+\.png)", text)) and len(shown) >= 5
    assert set(project_files("outputs/*.png")) == shown
    read = set(re.findall(r"outputs/\w+\.json", text))
    assert read and read <= set(project_files("outputs/*.json"))


def test_every_link_leads_somewhere(text, prose):
    """A forge makes its anchors from the headings, Emacs and the page use CUSTOM_ID.

    On a forge they are in lower case, with hyphens for blanks and without punctuation.
    """
    links = set(re.findall(r"\[\[#([^]]*)\]\[", text))
    anchors = {anchor: heading for heading, anchor in re.findall(
        r"^\*+ (.*)\n:PROPERTIES:\n:CUSTOM_ID: (.*)\n", text, re.M)}
    assert len(links) >= 8 and links <= set(anchors) and "[[*" not in prose
    for anchor, heading in anchors.items():
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    assert all((ROOT / path).exists() for path in re.findall(r"\[\[file:(.*?)\]", text))


SHOWN = """\
* Heading

# drift: {}
#+begin_src python :tangle no :exports both
print(1)
#+end_src

#+RESULTS:
: {}

"""


@pytest.mark.parametrize("drift, new, stale", [
    ("none", "acc 0.80 n 400 30 s", False), ("none", "acc 0.80 n 400  9 s", False),
    ("none", "acc 0.81 n 400 30 s", True), ("0.1", "acc  0.85 n 400 9 s", False),
    ("0.1", "acc 0.95 n 400 30 s", True), ("0.1", "accuracy 0.80 n 400 30 s", True),
    ("figures", "acc 9 n 1 2 s", False), ("figures", "acc n 1 2 s", True),
    ("lines", "what else", False)])
def test_drift_is_seen(drift, new, stale):
    old, fresh = (demonstrations(SHOWN.format(drift, shown))[0]
                  for shown in ("acc 0.80 n 400 30 s", new))
    assert old.drift == drift and old.where == "line 4, under “Heading”"
    assert document.drifted(old.result, fresh.result, drift) == stale


def test_outputs_are_read_as_they_were_printed():
    many = SHOWN.format("none", "1").replace(
        ": 1", "#+begin_example\none\n,* two\n  three\n#+end_example")
    assert demonstrations(many)[0].output == "one\n* two\n  three\n"
    assert demonstrations(SHOWN.format("none", "one\n:\n:  two"))[0].output == "one\n\n two\n"


@needs_emacs
@pytest.mark.parametrize("body, complaint", [
    ("print(6 * 7)", None), ("print(6 * 7)\nraise ValueError('no')", "a Python error"),
    ("x = 1", "no result")])
def test_evaluation_finds_errors_and_lost_results(tmp_path, body, complaint):
    (tmp_path / "README.org").write_text(
        "* One\n\n#+begin_src python :session day9 :tangle no :exports both "
        f":results output replace\n{body}\n#+end_src\n\n#+RESULTS:\n: an old result\n")
    failure = document.evaluate(tmp_path, 300)
    if complaint is None:
        assert failure is None and ": 42" in (tmp_path / "README.org").read_text()
    else:
        assert complaint in failure


@needs_emacs
def test_the_page_is_whole(text):
    """Every picture is in it, and every block; in the first act only the imports fold."""
    document.html()
    page = (ROOT / "outputs" / "README.html").read_text(encoding="utf-8")
    assert not re.search(r'src="(?!data:)', page)
    assert page.count("<pre class=\"src src-python") == sum(
        block.language == "python" for block in blocks(text))
    first, rest = (re.findall("<summary>(.*?)</summary>", part)
                   for part in page.split('<h2 id="the-program"', 1))
    assert all(what.startswith(("Contents", "Imports ")) for what in first)
    assert len(rest) > 20 and not any("</pre>" in what for what in rest)


def test_prose_becomes_markdown():
    org = ("#+title: Title\n# a comment\n* Head\n:PROPERTIES:\n:CUSTOM_ID: head\n:END:\n\n"
           "- *bold* and /slanted/, =a=b= and ~c~, alpha / r, 3 * 4, x_y $1 <a>\n\n"
           "See [[#head][the\nhead]], [[file:main.py][=main.py=]].\n\n"
           "| name | n |\n|------+---|\n| one  | 1 |\n\n#+begin_example\na *  b*\n#+end_example\n")
    assert markdown(org) == (
        '# Title\n<a id="head" name="head"></a>\n\n## Head\n\n'
        "- **bold** and *slanted*, `a=b` and `c`, alpha / r, 3 \\* 4, x\\_y \\$1 \\<a>\n\n"
        "See [the\nhead](#head), [`main.py`](main.py).\n\n"
        "| name | n |\n| --- | ---: |\n| one | 1 |\n\n```\na *  b*\n```")


def test_the_notebook_is_fresh(text):
    kept = ROOT / "day9.ipynb"
    assert kept.exists() and kept.read_text(encoding="utf-8") == weave(text), "run make notebook"


def test_the_notebook_runs(tmp_path, text, monkeypatch):
    """Its first act, on the tiny Llama and fewer questions."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing in place of the tiny Llama
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    document.copy_project(tmp_path)
    (tmp_path / "data" / "smollm2").unlink()
    (tmp_path / "data" / "smollm2").symlink_to(ROOT / "tests" / "tiny-llama")
    for split in ("validation", "test"):
        path = tmp_path / "data" / "health-questions" / f"{split}.csv"
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:61]), "utf-8")
    assert "range(320)" in text
    book = nbformat.reads(weave(text.replace("range(320)", "range(40)")), 4)
    end = next(i for i, cell in enumerate(book.cells) if cell.source.endswith("## The program"))
    book.cells = book.cells[:end]
    NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert sum(cell.cell_type == "code" for cell in book.cells) > 20
