"""Evaluate, check and weave README.org: python -m tools.document readme | check | html | notebook.

Written by hand, not tangled.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS, README = ROOT / "tools", ROOT / "README.org"
LIMIT = 3600  # seconds to evaluate all blocks, a second attempt included
LONG = 10  # lines of code; what is longer folds on the page, but for the first act
RESULT = r"\n#\+RESULTS:\n((?:#\+begin_example\n(?:.*\n)*?#\+end_example\n|(?:[:|\[].*\n)+))"
BLOCK = re.compile(
    r"^(?P<stars>\*+) (?P<heading>.*)\n"
    r"|(?:^# drift: (?P<drift>.*)\n)?^#\+begin_src (?P<language>\S+)(?P<header>.*)\n"
    rf"(?P<body>(?:.*\n)*?)#\+end_src\n(?P<shown>{RESULT})?", re.M)
NUMBER = r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"


@dataclass
class Block:
    """A block of README.org; `drift` is how far its result may differ, `result` still Org."""

    act: str
    heading: str
    start: int
    end: int
    line: int
    language: str
    header: str
    body: str
    drift: str
    result: str

    @property
    def where(self) -> str:
        """The place, for a message."""
        return f"line {self.line}, under “{self.heading}”"

    @property
    def is_demonstration(self) -> bool:
        """Whether it shows its output, and is no part of the program."""
        return self.language == "python" and ":tangle no" in self.header

    @property
    def output(self) -> str:
        """The result as it was printed."""
        lines = [line for line in self.result.splitlines(True)
                 if not line.startswith(("#+begin_example", "#+end_example"))]
        return "".join(re.sub(r"^(: ?|,(?=[*#]))", "", line) for line in lines)


def blocks(text: str) -> Iterator[Block]:
    """The blocks of an Org document, in their order."""
    act = heading = ""
    for found in BLOCK.finditer(text):
        if found["stars"]:
            heading = found["heading"]
            act = heading if found["stars"] == "*" else act
            continue
        yield Block(act, heading, *found.span(), text.count("\n", 0, found.start("header")) + 1,
                    found["language"], found["header"], found["body"], found["drift"] or "none",
                    (found["shown"] or "").removeprefix("\n#+RESULTS:\n"))


def demonstrations(text: str) -> list[Block]:
    """The blocks that show their output."""
    return [block for block in blocks(text) if block.is_demonstration]


def defined_names(body: str) -> list[str]:
    """The functions and classes that a block of Python defines."""
    return [node.name for node in ast.parse(body).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def evaluate(folder: Path, seconds: float = LIMIT) -> str | None:
    """Run all blocks of folder/README.org in one Emacs session; returns what went wrong.

    Results and pictures are removed first: a lost one must not look like an old one.
    """
    errors, readme = folder / "errors.txt", folder / "README.org"
    readme.write_text(re.sub(RESULT, "", readme.read_text(encoding="utf-8")), encoding="utf-8")
    for picture in folder.glob("outputs/*.png"):
        picture.unlink()
    session = {"PYTHONSTARTUP": str(TOOLS / "note_errors.py"), "DAY9_ERRORS": str(errors)}
    for attempt in range(1, 6):
        errors.unlink(missing_ok=True)
        try:
            done = subprocess.run(
                ["emacs", "-Q", "--batch", "README.org", "--load", str(TOOLS / "evaluate.el")],
                cwd=folder, timeout=seconds, capture_output=True, text=True,
                env=os.environ | session)
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:.0f} seconds"
        if done.returncode != 4:
            break
        print(f"start {attempt}: the Python session in Emacs did not answer", file=sys.stderr)
    if done.returncode or errors.exists():
        why = errors.read_text() if errors.exists() else ""
        return f"{done.stderr.strip().splitlines()[-1]}\n{why}"
    lost = [block for block in demonstrations(readme.read_text(encoding="utf-8"))
            if not block.result]
    return f"no result at {lost[0].where}" if lost else None


def project_files(pattern: str = "*") -> list[str]:
    """The project's files of such names: those that git keeps, and new ones."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern], cwd=ROOT,
        capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in files if name and (ROOT / name).exists()]


def copy_project(folder: Path) -> None:
    """The project's files in a folder, with links to .venv and to the pretrained models."""
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    for name in (".venv", "data/smollm2", "data/minilm"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    (folder / "outputs").mkdir(exist_ok=True)


def evaluated_copy(folder: Path) -> None:
    """Copy the project and evaluate the document there; one retry, and it is said."""
    start = time.monotonic()
    for attempt in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        copy_project(folder)
        failure = evaluate(folder, LIMIT - (time.monotonic() - start))
        if failure is None:
            return
        print(f"evaluation {attempt} of README.org failed: {failure}", file=sys.stderr)
    sys.exit("README.org could not be evaluated: run `make readme` and look at the block named "
             "above")


def drifted(old: str, new: str, drift: str) -> bool:
    """Whether a result is no longer what the document shows.

    drift: "none", all must be equal; a number, how far figures may differ, relative to the larger
    of 1 and the figure; "figures", figures may differ at will; "lines", only the number of lines
    counts. Seconds, "1.5 s", are the machine's and never compared.
    """
    old, new = (re.sub(rf"\s*{NUMBER} s\b", " s", text) for text in (old, new))
    if drift == "none":
        return old != new
    if drift == "lines":
        return old.count("\n") != new.count("\n")
    words = lambda text: re.sub(r"[\s:-]+", " ", re.sub(NUMBER, "", text))
    figures = lambda text: [float(found.replace(",", "")) for found in re.findall(NUMBER, text)]
    if words(old) != words(new) or len(figures(old)) != len(figures(new)):
        return True
    return drift != "figures" and any(abs(a - b) > float(drift) * max(1, abs(a))
                                      for a, b in zip(figures(old), figures(new)))


def readme() -> None:
    """Evaluate a copy, then take over its document and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        evaluated_copy(copy)
        shutil.copy(copy / "README.org", ROOT)
        for picture in (ROOT / "outputs").glob("*.png"):
            picture.unlink()
        for picture in (copy / "outputs").glob("*.png"):
            shutil.copy(picture, ROOT / "outputs")


def check() -> None:
    """Evaluate a copy and compare each result with what the document shows."""
    shown = demonstrations(README.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        evaluated_copy(Path(folder, "copy"))
        fresh = demonstrations(Path(folder, "copy", "README.org").read_text(encoding="utf-8"))
    stale = [(old, new) for old, new in zip(shown, fresh, strict=True)
             if drifted(old.result, new.result, old.drift)]
    for old, new in stale:
        print(f"README.org, {old.where}: the result has drifted (allowed: {old.drift}).\n"
              f"shown:\n{old.result}now:\n{new.result}", file=sys.stderr)
    if stale:
        sys.exit("`make readme` writes the new results; read them before you commit")
    print(f"all {len(shown)} results of README.org are what its blocks print")


def export(css: str) -> str:
    """The page that Emacs makes of README.org, with a style sheet in it."""
    with tempfile.TemporaryDirectory() as folder:
        style, source = Path(folder, "page.css"), Path(folder, "README.org")
        style.write_text(css, encoding="utf-8")
        shutil.copy(README, source)
        subprocess.run(
            ["emacs", "-Q", "--batch", str(source), "--load", str(TOOLS / "weave.el")],
            env=os.environ | {"PAGE_CSS": str(style)}, check=True, timeout=600,
            stderr=subprocess.DEVNULL)
        return source.with_suffix(".html").read_text(encoding="utf-8")


def fold(code: str, shown: str, long: int) -> str:
    """The page's code; more lines than `long`, and imports, fold under what they define."""
    lines, imports = code.count("\n"), code.startswith('"""')
    if lines <= long and not imports:
        return shown
    names = ", ".join(f"<code>{name}</code>" for name in defined_names(code))
    what = "Imports" if imports else names or "Code"
    return (f"<details><summary>{what} <small>{lines} lines</small></summary>\n{shown}\n"
            "</details>")


def html() -> None:
    """Weave one self-contained page: Emacs exports, Pygments colours, pictures are embedded."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    light, dark = (HtmlFormatter(style=style).get_style_defs("pre.src")
                   for style in ("default", "github-dark"))
    css = (TOOLS / "page.css").read_text(encoding="utf-8")
    page = export(f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{css}")
    first_act_ends = page.index('<h2 id="the-program"')

    def colour(found: re.Match) -> str:
        code = unescape(found[3])
        shown = found[1] + highlight(
            code, get_lexer_by_name(found[2]), HtmlFormatter(nowrap=True)) + "</pre>"
        if found[2] != "python":
            return shown
        return fold(code, shown, LONG if found.start() > first_act_ends else 40)

    def embed(found: re.Match) -> str:
        picture = b64encode((ROOT / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    def wrap(found: re.Match) -> str:
        longest = max(map(len, unescape(found[2]).splitlines()), default=0)
        return f'<pre class="example{" text" if longest > 110 else ""}"{found[1]}>{found[2]}</pre>'

    page = re.sub(r'(<pre class="src src-(python|sh)"[^>]*>)(.*?)</pre>', colour, page, flags=re.S)
    page = re.sub(r'<pre class="example"(.*?)>(.*?)</pre>', wrap, page, flags=re.S)
    page = re.sub(r'src="(?:file:)?([^":]+\.png)"', embed, page)
    page = re.sub(r'href="(?!#|\w+:)', 'href="../', page)  # files of the project
    page = page.replace("<p>\n<b>Remember:</b>", '<p class="remember">\n<b>Remember:</b>')
    page = page.replace("<h2>Table of Contents</h2>", "<details><summary>Contents</summary>")
    page = page.replace("</nav>", "</details></nav>")
    (ROOT / "outputs" / "README.html").write_text(page, encoding="utf-8")
    print("woven: outputs/README.html")


def notebook() -> None:
    """Weave README.org to a notebook, day9.ipynb."""
    from tools.notebook import weave

    (ROOT / "day9.ipynb").write_text(weave(README.read_text(encoding="utf-8")), encoding="utf-8")
    print("woven: day9.ipynb")


if __name__ == "__main__":
    {"readme": readme, "check": check, "html": html, "notebook": notebook}[sys.argv[1]]()
