"""The command line."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import main


@pytest.mark.parametrize("arguments", [
    "--epoch-count 3", "--epoch 3", "--epochs many", "--epochs 0", "--rank 0",
    "--learning-rate nan", "--learning-rate 0", "--seed -1", "--resume run --rank 3",
    "predict --run r", "predict --run r --data a.csv --texts a",
    "predict --run r --output a.xlsx --texts a", "predict --run r --threshold 2 --texts a",
    "merge --run r"])
def test_unknown_options_and_wrong_values_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("main.py")


@pytest.mark.parametrize("arguments", [
    ["predict", "--run", "r", "--texts", "caf\udce9"], ["--instruction", "\udcff", "--rank", "4"],
    ["--seed", "1790000000000"], ["--seed", "-1"], ["--rank", "3", "--resume", "r"],
    ["predict", "--run", "r", "--texts", "a", "--threshold", "80"],
    ["predict", "--run", "r", "--texts", "a", "--threshold", "nan"]])
def test_what_cannot_be_used_is_refused_before_anything_else(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("main.py")


def test_help_is_quick_and_does_not_load_the_libraries():
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / "main.py", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert "day9.settings" in loaded
    assert not loaded & {"torch", "datasets", "sklearn", "matplotlib", "trl", "peft"}
