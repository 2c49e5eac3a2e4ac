"""A run's folder is its own, and is found again; where it is damaged, one line says so."""

import fcntl
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import (DAMAGES, adapter, after_checkpoint, answer, cut, empty, nonsense,
                      other_weights, point, refuse, resumes, set_settings, start_child, uses)
from safetensors.torch import load_file, save_file

import main
from day9.errors import InputError
from day9.runs import alone_in


def test_a_run_with_results_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    assert "choose a new --output-dir" in refuse(capsys, "--output-dir", tmp_path)
    assert (tmp_path / "metrics.json").read_text() == "{}"
    for rest in (["predict", "--texts", "a text"], ["merge", "--output", tmp_path / "new"]):
        assert "check --run" in refuse(capsys, rest[0], "--run", tmp_path, *rest[1:])
    assert "check --resume" in refuse(capsys, "--resume", tmp_path / "elsewhere")


def test_a_finished_run_is_not_resumed_and_an_unfinished_one_not_used(tmp_path, arguments, finished,
                                                                      monkeypatch, capsys):
    assert main.main(["--resume", str(finished)]) == 1
    assert "finished run: there is nothing to resume" in capsys.readouterr().err
    folder = tmp_path / "run"
    after_checkpoint(2)(monkeypatch)
    assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    capsys.readouterr()
    for rest in (["predict", "--texts", "a text"], ["merge", "--output", str(tmp_path / "new")]):
        assert main.main([rest[0], "--run", str(folder), *rest[1:]]) == 1
        error = capsys.readouterr().err.strip()
        assert f"continue with main.py --resume {folder}" in error and "\n" not in error


def test_a_run_is_not_resumed_on_other_data(tmp_path, arguments, monkeypatch, capsys):
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(arguments[3], data)
    after_checkpoint(2)(monkeypatch)
    argv = [*arguments, "--data", str(data)]
    assert main.main([*argv, "--output-dir", str(folder)]) == 130
    train = data / "train.csv"
    train.write_text(train.read_text().replace("message 3", "letter 3"))
    capsys.readouterr()
    assert main.main(["--resume", str(folder)]) == 1
    assert "not what it was" in capsys.readouterr().err


def test_of_two_runs_into_one_folder_one_is_refused(tmp_path, arguments, finished):
    folder, logs = tmp_path / "run", [tmp_path / "log1", tmp_path / "log2"]
    both = [start_child([*arguments, "--output-dir", str(folder)], log) for log in logs]
    for process in both:
        process.join(120)
    assert sorted(process.exitcode for process in both) == [0, 1]
    [refused] = [log for process, log in zip(both, logs) if process.exitcode]
    line = refused.read_text().strip()
    assert f"the run in {folder} still lives: stop it first, or wait" in line and "\n" not in line
    assert adapter(folder) == adapter(finished)


def test_a_run_is_not_resumed_while_it_lives(tmp_path, arguments, monkeypatch, capsys):
    """Whether it was new or resumed itself; afterwards it is."""
    folder, codes = tmp_path / "run", []

    def score(*_):
        codes.append(main.main(["--resume", str(folder)]))
        raise KeyboardInterrupt

    monkeypatch.setattr("main.judge_base_model", score)
    assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    assert main.main(["--resume", str(folder)]) == 130
    assert codes == [1, 1]
    assert capsys.readouterr().err.count(f"error: the run in {folder} still lives") == 2


def test_a_finished_run_has_no_lock_file(finished):
    assert not [path for path in finished.iterdir() if path.name.startswith(".")]


def test_a_lock_has_one_holder_though_its_folder_is_removed_and_made_anew(tmp_path, monkeypatch):
    """By a run that never began, between another's opening and locking of the folder."""
    folder, flock = tmp_path / "run", fcntl.flock
    folder.mkdir()

    def lock_late(held, how):
        monkeypatch.setattr("fcntl.flock", flock)
        folder.rmdir()
        folder.mkdir()
        flock(held, how)

    monkeypatch.setattr("fcntl.flock", lock_late)
    with pytest.raises(InputError, match="removed"), alone_in(folder):
        pass
    with alone_in(folder), pytest.raises(InputError, match="still lives"), alone_in(folder):
        pass


def test_a_killed_process_lets_go_of_its_run(place, capsys):
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with alone_in(place / "run"):
            os.write(writing, b"held")
            time.sleep(60)
        os._exit(1)
    assert os.read(reading, 4) == b"held"
    assert "still lives" in refuse(capsys, "--resume", place / "run")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert resumes("--resume", place / "run")


def test_a_file_is_not_a_folder_in_which_another_run_starts(tmp_path, arguments, capsys):
    (tmp_path / "file").write_text("kept")
    assert "cannot write to" in refuse(capsys, *arguments, "--output-dir", tmp_path / "file")


def test_a_folder_that_cannot_be_written(tmp_path, arguments, capsys):
    (tmp_path / "file").write_text("kept")
    assert main.main([*arguments, "--output-dir", str(tmp_path / "file" / "run")]) == 1
    assert "cannot write to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_a_run_that_never_began_leaves_nothing(tmp_path, arguments, capsys):
    folder = tmp_path / "run"
    argv = [*arguments, "--label-column", "team", "--output-dir", str(folder)]
    assert main.main(argv) == 1 and not folder.exists()


@pytest.mark.parametrize("litter", [".DS_Store", "Thumbs.db", "lost+found"])
def test_a_folder_with_litter_is_empty(tmp_path, arguments, capsys, litter):
    """A run may begin in it, and one that never began leaves it as it was."""
    (tmp_path / litter).write_text("kept")
    for _ in range(2):
        assert "no column 'team'" in refuse(capsys, *arguments, "--label-column", "team",
                                            "--output-dir", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [litter]


def test_the_model_of_the_checkout_is_found_wherever_that_is(tmp_path, copied, place, capsys,
                                                             monkeypatch):
    before = answer(capsys, copied)
    own = tmp_path / "checkout" / "data"
    shutil.copytree(tmp_path / "base", own / "smollm2")
    shutil.copytree(place / "data", own / "patient-messages")
    monkeypatch.setattr("day9.runs.HERE", tmp_path / "checkout")
    gone = {"model": "/gone/data/smollm2", "data": "/gone/data/patient-messages"}
    for folder in (copied, place / "run"):
        set_settings(folder, **gone)
    assert answer(capsys, copied) == before
    assert resumes("--resume", place / "run")
    other_weights(own / "smollm2")
    assert "is not what it was" in refuse(capsys, *uses(copied, "new")[0])


def test_a_run_is_resumed_from_any_folder(place, monkeypatch):
    """Its data was given through a link, as the hub's cache has them, to a file of another name."""
    (place / "data" / "train.csv").rename(place / "blob")
    (place / "a.csv").symlink_to("blob")
    monkeypatch.chdir(place)
    assert resumes("--model", "base", "--data", "a.csv", "--output-dir", place / "new")
    monkeypatch.chdir("/")
    assert resumes("--resume", place / "new")


def test_a_run_is_resumed_where_its_model_and_data_are_now(place, capsys):
    for name in ("base", "data"):
        (place / name).rename(place / f"moved {name}")
    moved = ["--model", place / "moved base", "--data", place / "moved data"]
    assert "check --data" in refuse(capsys, "--resume", place / "run")
    assert "check --model" in refuse(capsys, "--resume", place / "run", *moved[2:])
    assert resumes("--resume", place / "run", *moved)
    kept = json.loads((place / "run" / "settings.json").read_text())
    assert [kept["model"], kept["data"]] == [str(path) for path in moved[1::2]]
    (place / "moved data" / "train.csv").write_text("text,label\n" + "a,a\nb,b\n" * 20)
    assert "--data" in refuse(capsys, "--resume", place / "run")


FILES = ["settings.json", "classifier.json", "adapter_config.json", "adapter_model.safetensors",
         "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_run_costs_one_line(tmp_path, copied, capsys, name, damage):
    damage(copied / name)
    for command in uses(copied, tmp_path / "new"):
        error = refuse(capsys, *command)
        assert str(copied) in error and ("git lfs pull" in error) == (damage is point)
        assert "--model" not in error and "--data" not in error and "the hub" not in error
        assert name in error or damage in (Path.unlink, nonsense) or "safetensors" in name
    assert not (tmp_path / "new").exists()


def test_an_adapter_that_lacks_weights_is_refused(copied, tmp_path, capsys):
    weights = load_file(copied / "adapter_model.safetensors")
    weights.pop(max(weights))
    save_file(weights, copied / "adapter_model.safetensors")
    for command in uses(copied, tmp_path / "new"):
        assert "check --run" in refuse(capsys, *command)


@pytest.mark.parametrize("damage", [cut, empty, point, nonsense])
@pytest.mark.parametrize("name", ["settings.json", "audit.json"])
def test_a_damaged_run_is_not_resumed(place, capsys, name, damage):
    damage(place / "run" / name)
    assert str(place / "run" / name) in refuse(capsys, "--resume", place / "run")
    assert (place / "run" / name).exists()
