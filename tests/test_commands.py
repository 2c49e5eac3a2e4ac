"""predict and merge."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (child, cut, empty, forks, interrupt, point, read_rows, refuse, uses, wait_for,
                      write_rows)
from transformers import AutoModelForCausalLM

import main
from day9 import classifier
from day9.drafts import claimed
from day9.model import load_model


def test_predict_answers_as_the_process_that_trained(main_job, tmp_path):
    """After the columns that the file has already."""
    _, _, run = main_job
    kept = read_rows(run / "predictions.csv")[:20]
    texts = [row["text"] for row in kept] + [""]
    (tmp_path / "new.jsonl").write_text("".join(
        json.dumps({"id": f"0{i}", "message": text, "note": None}) + "\n"
        for i, text in enumerate(texts)), encoding="utf-8")
    assert main.main(["predict", "--run", str(run), "--data", str(tmp_path / "new.jsonl"),
                      "--text-column", "message", "--output", str(tmp_path / "out.csv"),
                      "--threshold", "0.9"]) == 0
    answers = read_rows(tmp_path / "out.csv")
    assert list(answers[0]) == ["id", "message", "note", "predicted", "abstain", "confidence",
                                "p_billing", "p_heart and lungs"]
    assert [(row["id"], row["message"]) for row in answers] == [
        (f"0{i}", text) for i, text in enumerate(texts)]
    for old, new in zip(kept, answers):
        assert old["predicted"] == new["predicted"]
        assert float(old["p_billing"]) == pytest.approx(float(new["p_billing"]), abs=1e-4)
    assert {row["abstain"] for row in answers} == {"True", "False"}
    assert all((row["abstain"] == "True") == (float(row["confidence"]) < 0.9) for row in answers)


def test_predictions_are_printed_where_no_file_is_named(finished, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text;id\nmy bill;1\na visit;2\n")
    ask = ["predict", "--run", str(finished), "--data", str(tmp_path / "a.csv")]
    assert main.main(ask) == 0
    said = capsys.readouterr()
    assert "is read with semicolons" in said.err
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["text"] for answer in answers] == ["my bill", "a visit"]
    assert all(answer["p_a"] + answer["p_b"] == pytest.approx(1, abs=1e-5) for answer in answers)


def test_other_columns_come_first_in_the_answers(tmp_path, finished, capsys):
    rows = [("0017", "my bill", "é"), ("0018", "a visit", "")]
    write_rows(tmp_path / "a.csv", ["id", "text", "note"], rows)
    ask = ["predict", "--run", str(finished), "--data", str(tmp_path / "a.csv")]
    assert main.main([*ask, "--output", str(tmp_path / "out.csv")]) == 0
    answers = read_rows(tmp_path / "out.csv")
    assert list(answers[0])[:4] == ["id", "text", "note", "predicted"]
    assert [tuple(answer.values())[:3] for answer in answers] == rows


def test_a_text_with_a_carriage_return_comes_through(finished, tmp_path, capsys):
    """Out of the run's own predictions, into those of predict, and into what merge reads."""
    rows = read_rows(finished / "predictions.csv")
    assert rows[4]["text"] == 'test message 4 about a visit,\rand "more"'
    write_rows(tmp_path / "data.csv", ["id", "text"], [(i, row["text"])
                                                       for i, row in enumerate(rows)])
    for name in ("out.csv", "out.jsonl"):
        assert main.main(["predict", "--run", str(finished), "--data", str(tmp_path / "data.csv"),
                          "--output", str(tmp_path / name)]) == 0
    lines = (tmp_path / "out.jsonl").read_text().split("\n")[:-1]
    for answers in (read_rows(tmp_path / "out.csv"), list(map(json.loads, lines))):
        assert [row["text"] for row in answers] == [row["text"] for row in rows]
        assert [row["id"] for row in answers] == [str(i) for i in range(12)]
        assert [row["predicted"] for row in answers] == [row["predicted"] for row in rows]
    assert main.main(["merge", "--run", str(finished), "--output", str(tmp_path / "merged")]) == 0
    assert "on 12 test rows" in capsys.readouterr().out


def test_predict_overwrites_neither_files_nor_columns(finished, tmp_path, capsys, monkeypatch):
    def score_labels(*_):
        raise AssertionError("work before a refusal")

    monkeypatch.setattr("day9.classifier.score_labels", score_labels)
    older = tmp_path / "older.csv"
    older.write_text("kept")
    ask = ["predict", "--run", str(finished), "--output"]
    assert main.main([*ask, str(older), "--texts", "a text"]) == 1
    assert "exists already" in capsys.readouterr().err and older.read_text() == "kept"
    for there in (".", "/"):
        assert "exists already" in refuse(capsys, "merge", "--run", finished, "--output", there)
    data = str(finished / "predictions.csv")
    assert main.main([*ask, str(tmp_path / "new.csv"), "--data", data]) == 1
    error = capsys.readouterr().err.strip()
    assert "has a column 'confidence', which predict writes itself" in error and "\n" not in error


def test_a_place_that_cannot_be_written_is_refused_before_the_work(finished, capsys):
    for command in uses(finished, "/proc/new"):
        assert "name another --output" in refuse(capsys, *command, "--output", "/proc/new.csv")


def test_merging_changes_no_prediction(main_job, tmp_path, capsys):
    """The adapter learnt beside weights in four bits, and is added to what these stand for."""
    _, _, run = main_job
    merged = tmp_path / "merged"
    assert main.main(["merge", "--run", str(run), "--output", str(merged)]) == 0
    said = re.search(r"on 40 test rows the largest change of a probability is ([\d.]+); "
                     r"predictions that flip: (\d+)", capsys.readouterr().out)
    assert 0 < float(said[1]) < 0.05 and said[2] == "0"  # rounding to bfloat16 is all
    alone = AutoModelForCausalLM.from_pretrained(merged)
    assert alone.dtype == torch.bfloat16 and not hasattr(alone, "peft_config")
    assert not getattr(alone.config, "quantization_config", None)


@pytest.mark.parametrize("name, function", [
    ("merged", "transformers.PreTrainedTokenizerBase.save_pretrained"), ("out.csv", "csv.writer")])
def test_an_output_is_whole_or_not_there_and_nothing_is_beside_it(finished, tmp_path, monkeypatch,
                                                                  name, function):
    """Not even a draft, where that has no rows to go on after."""
    output = tmp_path / name
    argv = [*map(str, uses(finished, output)[name == "merged"]), "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(function, interrupt)
        assert main.main(argv) == 130
    assert not list(tmp_path.iterdir())
    assert main.main(argv) == 0
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("draft", ["out.csv.draft", "out.csv.draft/draft.json",
                                   "out.csv.draft/.hidden"])
def test_what_the_user_calls_a_draft_stays(finished, tmp_path, capsys, draft):
    output, kept = tmp_path / "out.csv", tmp_path / draft
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    for command in uses(finished, output):
        assert "is not a draft of this program" in refuse(capsys, *command, "--output", output)
    assert kept.read_text() == "kept" and not output.exists()


def test_of_two_results_of_one_name_the_second_is_refused_while_the_first_lives(finished, tmp_path,
                                                                                capsys):
    with claimed(tmp_path / "out.csv"):
        for command in uses(finished, "none"):
            said = refuse(capsys, *command, "--output", tmp_path / "out.csv")
            assert f"the process that writes {tmp_path / 'out.csv'} still lives" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, 1], ids=["predict", "merge"])
def test_a_name_that_was_taken_meanwhile_is_not_overwritten(finished, tmp_path, capsys, monkeypatch,
                                                            number):
    output = tmp_path / "out.jsonl"
    argv = [*uses(finished, output)[number], "--output", output]
    with monkeypatch.context() as patch:
        patch.setattr("day9.drafts.flush_files", lambda path: output.write_text("kept"))
        assert "has appeared meanwhile" in refuse(capsys, *argv)
    assert output.read_text() == "kept"
    output.unlink()
    assert main.main([str(argument) for argument in argv]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def child_in_blocks(size, argv, log):
    """The program in a process of its own, with few texts in a block."""
    classifier.BLOCK = size
    child(argv, log)


def killed_child(argv, log):
    """A merge that is killed while it writes."""
    shutil.copy = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    child(argv, log)


def start(target, *arguments):
    process = forks.Process(target=target, args=arguments)
    process.start()
    return process


def test_what_a_killed_merge_left_is_taken_over(finished, tmp_path):
    argv = list(map(str, uses(finished, tmp_path / "merged")[1]))
    process = start(killed_child, argv, "/dev/null")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["merged.draft"]
    assert main.main(argv) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert not list((tmp_path / "merged").glob("*draft*"))


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A file of 300 texts, some of them of two lines, beside notes of 20 KB."""
    monkeypatch.setattr("day9.classifier.BLOCK", 10)
    write_rows(tmp_path / "many.csv", ["text", "note"], [
        (f"message {i}\nabout {'my bill' if i % 3 else 'a visit'}", f"{i}" * 7_000)
        for i in range(100, 400)])
    return tmp_path / "many.csv"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_killed_predict_goes_on_after_the_last_whole_row(finished, tmp_path, many, capsys,
                                                          suffix):
    """And gives the file of one that was not killed."""
    ask = ["predict", "--run", str(finished), "--data", str(many), "--threshold", "0.6", "--output"]
    output, draft = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.draft"
    process = start(child_in_blocks, 10, [*ask, str(output)], str(tmp_path / "log"))
    wait_for(lambda: rows_kept(draft) >= 40, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    rows = rows_kept(draft)
    assert 40 <= rows < 300 and not output.exists(), (tmp_path / "log").read_text()
    with (draft / output.name).open("a") as file:
        file.write('"half a row')
    assert main.main([*ask, str(output)]) == 0
    assert f"{draft} holds {rows} rows: going on after them" in capsys.readouterr().err
    assert main.main([*ask, str(tmp_path / f"whole{suffix}")]) == 0
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not draft.exists()


def rows_kept(draft):
    path = draft / "draft.json"
    return json.loads(path.read_text())["rows"] if path.exists() else 0


def stop_after(blocks, monkeypatch, error=KeyboardInterrupt):
    """Ctrl-C, or something else, after so many blocks."""
    score, left = classifier.score_labels, iter(range(blocks))

    def score_labels(*arguments):
        if next(left, None) is None:
            raise error
        return score(*arguments)

    monkeypatch.setattr("day9.classifier.score_labels", score_labels)


def test_a_draft_goes_on_with_the_same_alone(finished, tmp_path, many, capsys, monkeypatch):
    ask = ["predict", "--run", finished, "--data", many, "--output", tmp_path / "out.csv"]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main.main([str(argument) for argument in ask]) == 130
    assert capsys.readouterr().err.endswith("stopped: the same command goes on after row 20\n")
    left = (tmp_path / "out.csv.draft" / "out.csv").read_bytes()
    assert "holds 20 rows of another run or input" in refuse(capsys, *ask, "--threshold", "0.7")
    many.write_text(many.read_text().replace("message 399", "letter 399"))
    assert "holds 20 rows of another run or input" in refuse(capsys, *ask)
    assert (tmp_path / "out.csv.draft" / "out.csv").read_bytes() == left


def test_a_full_disk_costs_no_row(finished, small_disk, many, capsys):
    """Of 6 MB only 2 fit; then there is room."""
    output, whole = small_disk / "out.csv", many.with_name("whole.csv")
    ask = ["predict", "--run", finished, "--data", many, "--output"]
    said = refuse(capsys, *ask, output)
    rows = rows_kept(small_disk / "out.csv.draft")
    assert f"the disk is full: make room; the same command goes on after row {rows}" in said
    assert rows >= 50
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    for path in (output, whole):
        assert main.main([*map(str, ask), str(path)]) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_answers_are_printed_as_they_come(finished, many, capsys, monkeypatch):
    stop_after(2, monkeypatch)
    assert main.main(["predict", "--run", str(finished), "--data", str(many)]) == 130
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["text"].split("\n")[0] for answer in answers] == [
        f"message {i}" for i in range(100, 120)]


def measured_child(argv, log):
    """The program without its model; it writes down the memory that it took, in MB."""
    classifier.score_labels = lambda model, encoded, prompt, *_: np.zeros(
        (len(encoded), len(prompt.completions)))
    assert main.main(argv) == 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(log).write_text(f"{most}")


def test_memory_does_not_grow_with_the_rows(finished, tmp_path):
    most = {}
    for rows in (1_000, 40_000):
        name = tmp_path / f"{rows}.csv"
        write_rows(name, ["text"], [(f"message {i} about my bill",) for i in range(rows)])
        process = start(measured_child, ["predict", "--run", str(finished), "--data", str(name),
                                         "--output", f"{name}.csv"], str(tmp_path / "log"))
        process.join(120)
        most[rows] = float((tmp_path / "log").read_text())
    assert most[40_000] < most[1_000] + 15


def test_a_printed_threshold_answers_its_part(main_job, tmp_path):
    """Of the test rows, the surest 90 % and so on; metrics.json keeps what is printed."""
    out, _, run = main_job
    rows = json.loads((run / "metrics.json").read_text())["coverage"]
    assert [row["coverage"] for row in rows] == [1, 0.9, 0.8, 0.5]
    for row in rows:
        printed = re.search(rf"^ *{row['coverage']:.0%} .* ([\d.]+)$", out, re.M)[1]
        assert float(printed) == row["threshold"] < 1
        output = tmp_path / f"{row['coverage']}.csv"
        assert main.main(["predict", "--run", str(run), "--threshold", printed, "--output",
                          str(output), "--texts",
                          *(row["text"] for row in read_rows(run / "predictions.csv"))]) == 0
        answers = read_rows(output)
        answered = sum(answer["abstain"] == "False" for answer in answers)
        assert answered >= row["coverage"] * len(answers)
        assert all((answer["abstain"] == "True") == (float(answer["confidence"]) < float(printed))
                   for answer in answers)


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, point])
def test_lost_predictions_cost_one_line(tmp_path, copied, capsys, damage):
    damage(copied / "predictions.csv")
    error = refuse(capsys, *uses(copied, tmp_path / "new")[1])
    assert f"{copied / 'predictions.csv'} is " in error and "--" not in error
    assert not (tmp_path / "new").exists()


def test_a_model_stored_in_four_bits(tmp_path, random_llama, tokenizer, arguments, capsys,
                                     recwarn):
    """It is trained as it is, used and merged, but not taken for one in full precision."""
    base, run, merged = tmp_path / "base", tmp_path / "run", tmp_path / "merged"
    load_model(random_llama, torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    argv = [*arguments, "--model", base, "--epochs", "1", "--output-dir", run]
    assert "leave out --no-quantize" in refuse(capsys, *argv, "--no-quantize")
    assert main.main(list(map(str, argv))) == 0
    for command in uses(run, merged):
        assert main.main(list(map(str, command))) == 0
    said = capsys.readouterr()
    change = float(said.out.split("change of a probability is ")[1].split(";")[0])
    assert change < 0.05 and not said.err
    assert not [warning for warning in recwarn if "quantization_config" in str(warning.message)]
    alone = AutoModelForCausalLM.from_pretrained(merged)
    assert alone.dtype == torch.bfloat16 and not hasattr(alone.config, "quantization_config")
