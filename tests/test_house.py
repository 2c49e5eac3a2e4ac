"""The rooms of the house: what a file says of itself, and which way imports go."""

import ast
import re
import subprocess
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

FILES = [name for name in subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    if (ROOT / name).is_file()]  # not one that is about to be removed
PROGRAM = [name for name in FILES if re.fullmatch(r"(main|(day9|tools|benchmarks)/.+)\.py", name)]
TOP = {"README.org", "main.py", "requirements.txt", "constraints.txt", "Makefile", "day9.ipynb",
       "LICENSE", "data", "outputs", "day9", "tests", "benchmarks", "tools"}
TEACHING = ["model", "prompts", "layout", "classifier", "passes", "training", "plain", "metrics"]
HOUSEKEEPING = {f"day9.{room}" for room in (
    "errors", "hub", "reading", "loading", "runs", "commands")}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def tangled():
    """The files that README.org writes: blocks without a name of their own go to main.py."""
    blocks = re.findall(r"^#\+begin_src python(.*)$", read("README.org"), re.M)
    named = (re.search(r":tangle (\S+)", header) for header in blocks)
    return {found[1] if found else "main.py" for found in named} - {"no"}


@cache
def rooms():
    """The modules of the package, each with those that it imports."""
    found = {}
    for name in PROGRAM:
        if name.startswith("day9/"):
            module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            found[module] = ast.parse(read(name))
    for module, tree in found.items():
        asked = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{module} has a relative import"
                asked |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        found[module] = asked & found.keys() - {"day9", module}
    return found


def all_below(module):
    """What a module imports, and what that imports in turn."""
    below, ahead = set(), [module]
    while ahead:
        new = rooms()[ahead.pop()] - below
        below |= new
        ahead += new
    return below


def test_names_are_imported_one_by_one():
    for name in FILES:
        if name.endswith((".py", ".org")):
            assert not re.search(r"^\s*from \S+ import \*", read(name), re.M), name


@pytest.mark.parametrize("name", PROGRAM)
def test_a_file_says_whether_it_is_tangled(name):
    said = ast.get_docstring(ast.parse(read(name)))
    first, *_, last = [*said.splitlines(), said.splitlines()[-1]]
    phrase = ("Tangled from README.org." if name in tangled() else
              "Written by hand, not tangled.")
    assert first.endswith(phrase) or last.endswith(phrase)


def test_imports_go_downwards():
    assert len(rooms()) > 20 and all_below("day9.commands") >= {"day9.loading", "day9.errors"}
    TopologicalSorter(rooms()).prepare()  # raises CycleError


@pytest.mark.parametrize("room", TEACHING)
def test_what_teaches_needs_no_housekeeping(room):
    below = all_below(f"day9.{room}")
    assert not {module for module in below if ".".join(module.split(".")[:2]) in HOUSEKEEPING}


def test_the_top_of_the_project_is_tidy():
    top = {Path(name).parts[0] for name in FILES}
    assert {name for name in top if not name.startswith(".")} <= TOP
