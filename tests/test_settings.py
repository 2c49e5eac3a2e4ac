"""The command line."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from transformers import HfArgumentParser  # noqa: F401  # while its files can be read

import main
from day9.settings import parse_command


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


@pytest.mark.parametrize("arguments", [
    "--model=", "--output-dir=", "--data=", "--resume=", "--instruction=", "--data-revision=",
    "--text-column=", "predict --texts a --run=", "predict --run r --texts a --output=",
    "predict --run r --texts a --data=", "merge --run r --output="])
def test_an_empty_value_is_not_taken_for_none(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments.split())
    assert stop.value.code == 2
    assert "is empty: give a value" in capsys.readouterr().err.splitlines()[-1]


PATHS = ["--model", "--data", "--output-dir", "--resume", "predict --texts a --run",
         "predict --run r --data", "predict --run r --texts a --model", "merge --output new --run",
         "merge --run r --output", "merge --run r --output new --model"]


@pytest.fixture
def locked():
    """A folder that nobody may look into, not even root while it does not call itself root."""
    us = os.geteuid()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "locked"
        folder.mkdir(mode=0)
        Path(place).chmod(0o755)
        os.seteuid(us or 65534)
        try:
            yield folder
        finally:
            os.seteuid(us)


@pytest.mark.parametrize("option", PATHS)
def test_a_path_out_of_reach_costs_one_line(locked, capsys, option):
    """A folder of somebody else, or a text where a path should be."""
    for value, why in ((locked, "Permission denied"), (locked / "a", "Permission denied"),
                       ("a long message\n" * 40, "File name too long")):
        with pytest.raises(SystemExit) as stop:
            main.main([*option.split(), str(value)])
        last = capsys.readouterr().err.splitlines()[-1]
        assert stop.value.code == 2
        assert f"error: {option.split()[-1]} " in last and last.endswith(why)


def test_the_home_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for option in PATHS:
        name = option.split()[-1].lstrip("-").replace("-", "_")
        settings = parse_command([*option.split(), "~/a"])
        assert getattr(settings, name) == str(tmp_path / "a")
    assert parse_command(["--model", "owner/name"]).model == "owner/name"


def test_help_is_quick_and_does_not_load_the_libraries():
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / "main.py", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert "day9.settings" in loaded
    assert not loaded & {"torch", "datasets", "sklearn", "matplotlib", "trl", "peft"}
