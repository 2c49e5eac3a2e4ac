"""README.org as a notebook: demonstrations become cells. Written by hand, not tangled."""

import ast
import re
from base64 import b64encode
from collections.abc import Iterator

import nbformat
from nbformat import NotebookNode, v4

from tools.document import ROOT, Block, blocks

INTRODUCTION = """\
*This notebook is woven from README.org by `make notebook`: edit that file. The
program is imported; its definitions are shown as text.*

*It is made for Colab with a T4, where it has not been tried. Run the next cell
first. Then go to [Your csv on a T4](#your-csv-on-a-t4) with a file of your own,
or to [One evening](#one-evening) and run the cells from there in order.*
"""
SETUP = """\
#@title Run this first
ADDRESS = ""  #@param {type:"string"}
# The address of the repository; not needed where the folder day9 lies beside the notebook.

import os
import sys

if not os.path.exists("main.py"):
    if ADDRESS and not os.path.exists("day9"):
        !git clone --quiet "{ADDRESS}" day9
    if not os.path.exists("day9/main.py"):
        raise SystemExit("the project is not here: give the repository's address as ADDRESS, or "
                         "upload its folder as day9")
    %cd -q day9
if "google.colab" in sys.modules:
    !pip list --format=freeze | grep ^torch= > torch.txt  # the one that fits the GPU's driver
    !pip install --quiet -r requirements.txt -c torch.txt
    !pip uninstall --quiet --yes torchao  # not needed, and peft refuses to run beside an old one
!"{sys.executable}" -m tools.smollm2
!"{sys.executable}" -m tools.minilm

import torch
from IPython.display import Image
from pandas import DataFrame

DRIVE = "/content/drive/MyDrive"
RUNS = f"{DRIVE}/day9-runs" if os.path.exists(DRIVE) else "outputs"
print("device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
print("your runs are kept in", RUNS)"""
COLAB = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}
PICTURE = re.compile(r"^\[\[file:(\S+\.png)\]\]\n", re.MULTILINE)
LINK = r"\[\[(?P<target>[^]]+)\](?:\[(?P<text>[^]]+)\])?\]"
EMPHASIS = (r"(?<![^\s('\"{-])(?P<mark>[*/=~])(?P<words>\S|\S(?:(?!\n\n).)*?\S)(?P=mark)"
            r"(?=[-\s.,;:!?'\")}\[]|$)")
INLINE = re.compile(f"{LINK}|{EMPHASIS}", re.DOTALL)


def escape(text: str) -> str:
    """The text with a backslash before what only Markdown would take for more than itself."""
    return re.sub(r"([\\*_$<`])", r"\\\1", text)


def inline(text: str) -> str:
    """Links, emphasis and code in Markdown."""
    parts, end = [], 0
    for found in INLINE.finditer(text):
        parts.append(escape(text[end:found.start()]))
        end = found.end()
        if found["target"]:
            target = found["target"].removeprefix("file:")
            parts.append(f"[{inline(found['text'] or target)}]({target})")
        elif found["mark"] in "=~":
            parts.append(f"`{found['words']}`")
        else:
            mark = "**" if found["mark"] == "*" else "*"
            parts.append(mark + inline(found["words"]) + mark)
    return "".join(parts) + escape(text[end:])


def table(rows: str) -> str:
    """An Org table in Markdown: a rule after the header, numbers to the right."""
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")]
             for row in rows.splitlines() if not row.startswith("|-")]
    numeric = [all(re.fullmatch(r"[-+\d.,% ]*", cell) for cell in column)
               for column in zip(*cells[1:], strict=True)]
    rule = ["---:" if right else "---" for right in numeric]
    return "".join(f"| {' | '.join(map(inline, row))} |\n" if row is not rule else
                   f"| {' | '.join(row)} |\n" for row in (cells[0], rule, *cells[1:]))


def markdown(org: str) -> str:
    """Prose of the kind that README.org has, in Markdown."""
    org = re.sub(r"^#(\+(?!title|\w+_example)| |$).*\n", "", org, flags=re.MULTILINE)
    pieces = re.split(
        r"^(#\+title: .*\n|\*+ .*\n(?::PROPERTIES:\n(?::.*\n)*?:END:\n)?|(?:\|.*\n)+"
        r"|#\+begin_example\n(?:.*\n)*?#\+end_example\n)", org, flags=re.MULTILINE)
    for i, piece in enumerate(pieces):
        if piece.startswith("#+title: "):
            pieces[i] = "# " + piece.removeprefix("#+title: ")
        elif piece.startswith("#+begin_example"):
            pieces[i] = re.sub(r"#\+(begin|end)_example", "```", piece)
        elif heading := re.match(r"(\*+) (.*)\n(?:.*\n:CUSTOM_ID: (.*))?", piece):
            anchor = f'<a id="{heading[3]}" name="{heading[3]}"></a>\n\n' if heading[3] else ""
            pieces[i] = f"{anchor}#{'#' * len(heading[1])} {inline(heading[2])}\n"
        else:
            pieces[i] = table(piece) if piece.startswith("|") else inline(piece)
    return re.sub(r"\n{3,}", "\n\n", "".join(pieces)).strip()


def picture(path: str) -> NotebookNode:
    """A picture as an output."""
    data = {"image/png": b64encode((ROOT / path).read_bytes()).decode(), "text/plain": path}
    return v4.new_output("display_data", data)


def outputs(block: Block) -> list[NotebookNode]:
    """The output that a demonstration has in the document."""
    if not block.result:
        return []
    if found := PICTURE.match(block.result):
        return [picture(found[1])]
    if block.result.startswith("|"):
        data = {"text/markdown": table(block.result), "text/plain": block.result}
        return [v4.new_output("display_data", data)]
    return [v4.new_output("stream", text=block.output)]


def display_value(block: Block) -> str:
    """The code; a last line that is a picture's path or a table's rows is shown as such."""
    kind = re.search(r":results value (file|table)", block.header)
    if kind is None:
        return block.body.rstrip()
    value = ast.parse(block.body).body[-1].value
    lines = block.body.splitlines()
    rest = lines[:value.lineno - 1]
    last = "\n".join(lines[value.lineno - 1:])
    shown = f"Image({last})" if kind[1] == "file" else f"DataFrame({last}[2:], columns={last}[0])"
    return "\n".join([*rest, shown])


def pieces(text: str) -> Iterator[str | NotebookNode]:
    """Markdown and cells of code, in their order."""
    end = 0
    for block in (*blocks(text), None):
        prose = text[end:block.start if block else None]
        for i, part in enumerate(PICTURE.split(prose)):
            if i % 2:
                yield v4.new_code_cell(f'Image("{part}")', outputs=[picture(part)])
            else:
                yield from map(markdown, re.split(r"^(?=\*+ )", part, flags=re.MULTILINE))
        if block is None:
            break
        end = block.end
        if block.is_demonstration:
            yield v4.new_code_cell(display_value(block), outputs=outputs(block))
        elif block.body.startswith("!"):  # what a notebook hands to the shell
            yield v4.new_code_cell(block.body.rstrip())
        elif block.language != "emacs-lisp":
            yield f"```{block.language}\n{block.body}```"


def weave(text: str) -> str:
    """The notebook's file."""
    cells = []
    for piece in pieces(text):
        if not isinstance(piece, str):
            cells.append(piece)
        elif cells and cells[-1].cell_type == "markdown" and not re.match("#|<a", piece):
            cells[-1].source = f"{cells[-1].source}\n\n{piece}".strip()
        elif piece:
            cells.append(v4.new_markdown_cell(piece))
    cells[1:1] = [v4.new_markdown_cell(INTRODUCTION.strip()), v4.new_code_cell(SETUP)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    book = v4.new_notebook(cells=cells, metadata=COLAB | {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"}})
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"
