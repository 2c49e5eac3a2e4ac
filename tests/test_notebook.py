"""The notebook's first cell, on a machine that looks like Colab."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from tools.document import README
from tools.notebook import SETUP, weave

COLAB = """\
import sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")"""
COMMANDS = {  # stand-ins, which note how they are called
    "git": 'mkdir -p day9/outputs; echo > day9/main.py',
    "pip": 'if [ $1 = list ]; then printf "torch==2.9.0+cu126\\ntorchao==0.10.0\\n"; fi'}


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """The file in which the stand-ins note their calls."""
    log = tmp_path / "calls.txt"
    for name, body in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{body}\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def run_setup(folder: Path, address: str = "", drive: str = "nowhere") -> str:
    """Run the first cell in a folder; returns what it printed."""
    code = SETUP.replace('ADDRESS = ""', f'ADDRESS = "{address}"').replace(
        "/content/drive/MyDrive", drive)
    book = v4.new_notebook(cells=[v4.new_code_cell(source) for source in (COLAB, code)])
    NotebookClient(book, timeout=120, resources={"metadata": {"path": folder}}).execute()
    return "".join(output.get("text", "") for output in book.cells[1].outputs)


def test_without_address_and_folder_it_says_what_is_missing(tmp_path, calls):
    with pytest.raises(CellExecutionError) as stopped:
        run_setup(tmp_path)
    assert stopped.value.ename == "SystemExit" and "ADDRESS" in stopped.value.evalue
    assert len(stopped.value.evalue.splitlines()) == 1
    assert not calls.exists()


def test_it_clones_keeps_the_torch_there_is_and_keeps_runs_on_the_drive(tmp_path, calls):
    printed = run_setup(tmp_path, "https://example.org/it", drive=str(tmp_path))
    assert calls.read_text().splitlines() == [
        "git clone --quiet https://example.org/it day9", "pip list --format=freeze",
        "pip install --quiet -r requirements.txt -c torch.txt",
        "pip uninstall --quiet --yes torchao"]
    assert (tmp_path / "day9" / "torch.txt").read_text() == "torch==2.9.0+cu126\n"
    assert f"your runs are kept in {tmp_path}/day9-runs" in printed


def test_a_folder_that_was_uploaded_is_taken_as_it_is(tmp_path, calls):
    (tmp_path / "day9").mkdir()
    (tmp_path / "day9" / "main.py").touch()
    assert "your runs are kept in outputs" in run_setup(tmp_path)
    assert "git" not in calls.read_text()


def test_the_commands_for_your_csv_are_cells():
    cells = nbformat.reads(weave(README.read_text(encoding="utf-8")), 4).cells
    handed = [cell.source for cell in cells
              if cell.cell_type == "code" and cell.source.startswith("!")]
    assert ["predict" in source for source in handed] == [False, True]
