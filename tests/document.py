"""Evaluate, check and weave README.org: python tests/document.py readme | check | html."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 2400  # seconds to evaluate all blocks, a second attempt included
RESULT = r"\n#\+RESULTS:\n((?:#\+begin_example\n(?:.*\n)*?#\+end_example\n|(?:[:|\[].*\n)+))"
NUMBER = r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?"


def demonstrations(text: str) -> list[dict[str, str]]:
    """Every block that shows its output: where it stands, how far its result may drift, and the result."""
    found, heading = [], ""
    pattern = (r"^\*+ (?P<heading>.*)$|(?:^# drift: (?P<drift>.*)\n)?^#\+begin_src python(?P<header>.*)\n(?P<body>(?:.*\n)*?)#\+end_src\n"
               rf"(?P<shown>{RESULT})?")
    for match in re.finditer(pattern, text, re.M):
        if match["heading"]:
            heading = match["heading"]
        elif ":tangle no" in match["header"]:
            line = text.count("\n", 0, match.start("header")) + 1
            found.append({"where": f"line {line}, under “{heading}”", "drift": match["drift"] or "none", "result": (match["shown"] or "").removeprefix("\n#+RESULTS:\n")})
    return found


def evaluate(folder: Path, seconds: float = LIMIT) -> str | None:
    """Run all blocks of folder/README.org in one Emacs session, from no results at all; returns what went wrong."""
    tests, errors, readme = ROOT / "tests", folder / "errors.txt", folder / "README.org"
    readme.write_text(re.sub(RESULT, "", readme.read_text(encoding="utf-8")), encoding="utf-8")  # a lost result must not look like an old one
    for attempt in range(1, 6):
        errors.unlink(missing_ok=True)
        try:
            done = subprocess.run(["emacs", "-Q", "--batch", "README.org", "--load", str(tests / "evaluate.el")], cwd=folder, timeout=seconds,
                                  capture_output=True, text=True,
                                  env=os.environ | {"PYTHONSTARTUP": str(tests / "note_errors.py"), "DAY9_ERRORS": str(errors)})
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:.0f} seconds"
        if done.returncode != 4:
            break
        print(f"start {attempt}: the Python session in Emacs did not answer", file=sys.stderr)
    if done.returncode or errors.exists():
        return done.stderr.strip().splitlines()[-1] + "\n" + (errors.read_text() if errors.exists() else "")
    return next((f"no result at {block['where']}" for block in demonstrations(readme.read_text(encoding="utf-8"))
                 if not block["result"]), None)


def evaluated_copy(folder: Path) -> None:
    """Copy the project's files into `folder` and evaluate the document there; one retry, and it is said."""
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    start = time.monotonic()
    for attempt in (1, 2):
        shutil.rmtree(folder, ignore_errors=True)
        for name in filter(None, files.stdout.decode().split("\0")):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        failure = evaluate(folder, LIMIT - (time.monotonic() - start))
        if failure is None:
            return
        print(f"evaluation {attempt} of README.org failed: {failure}", file=sys.stderr)
    sys.exit("README.org could not be evaluated: run `make readme` and look at the block named above")


def drifted(old: str, new: str, drift: str) -> bool:
    """Whether a result is no longer what the document shows.

    drift: "none", all must be equal; a number, how far figures may differ, relative to the larger of 1 and the figure; "figures", figures
    may differ at will; "lines", only the number of lines counts. Seconds, "1.5 s", are the machine's and never compared.
    """
    old, new = (re.sub(NUMBER + r" s\b", "s", text) for text in (old, new))
    if drift == "none":
        return old != new
    if drift == "lines":
        return old.count("\n") != new.count("\n")
    words = lambda text: re.sub(r"[\s:-]+", " ", re.sub(NUMBER, "", text))
    figures = lambda text: [float(number.replace(",", "")) for number in re.findall(NUMBER, text)]
    if words(old) != words(new) or len(figures(old)) != len(figures(new)):
        return True
    return drift != "figures" and any(abs(a - b) > float(drift) * max(1, abs(a)) for a, b in zip(figures(old), figures(new)))


def readme() -> None:
    """Evaluate a copy, then take over its document and pictures."""
    with tempfile.TemporaryDirectory() as folder:
        evaluated_copy(Path(folder, "copy"))
        shutil.copy(Path(folder, "copy", "README.org"), ROOT)
        for picture in Path(folder, "copy", "outputs").glob("*.png"):
            shutil.copy(picture, ROOT / "outputs")


def check() -> None:
    """Evaluate a copy and compare each result with what the document shows."""
    shown = demonstrations((ROOT / "README.org").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        evaluated_copy(Path(folder, "copy"))
        fresh = demonstrations(Path(folder, "copy", "README.org").read_text(encoding="utf-8"))
    stale = [(old, new) for old, new in zip(shown, fresh, strict=True) if drifted(old["result"], new["result"], old["drift"])]
    for old, new in stale:
        print(f"README.org, {old['where']}: the result has drifted (allowed: {old['drift']}).\nshown:\n{old['result']}now:\n{new['result']}", file=sys.stderr)
    if stale:
        sys.exit("`make readme` writes the new results; read them before you commit")
    print(f"all {len(shown)} results of README.org are what its blocks print")


def html() -> None:
    """Weave one self-contained page: Emacs exports, Pygments colours, pictures are embedded."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    with tempfile.TemporaryDirectory() as folder:
        css, source = Path(folder, "page.css"), Path(folder, "README.org")
        light, dark = HtmlFormatter(style="default"), HtmlFormatter(style="github-dark")
        css.write_text((ROOT / "tests" / "page.css").read_text() + light.get_style_defs("pre.src") + "\n@media (prefers-color-scheme: dark) {\n"
                       + dark.get_style_defs("pre.src") + "\n}\n" + "pre.src { background: var(--soft) !important; }\n")
        shutil.copy(ROOT / "README.org", source)
        subprocess.run(["emacs", "-Q", "--batch", str(source), "--load", str(ROOT / "tests" / "weave.el")],
                       env=os.environ | {"PAGE_CSS": str(css)}, check=True, timeout=120, stderr=subprocess.DEVNULL)
        page = Path(folder, "README.html").read_text(encoding="utf-8")
    coloured = lambda m: m[1] + highlight(unescape(m[3]), get_lexer_by_name(m[2]), HtmlFormatter(nowrap=True)) + "</pre>"
    page = re.sub(r'(<pre class="src src-(python|sh)"[^>]*>)(.*?)</pre>', coloured, page, flags=re.S)
    embedded = lambda m: 'src="data:image/png;base64,' + b64encode((ROOT / m[1]).read_bytes()).decode() + '"'
    page = re.sub(r'src="(?:file:)?([^":]+\.png)"', embedded, page)
    (ROOT / "outputs" / "README.html").write_text(page, encoding="utf-8")
    print("woven: outputs/README.html")


if __name__ == "__main__":
    {"readme": readme, "check": check, "html": html}[sys.argv[1]]()
