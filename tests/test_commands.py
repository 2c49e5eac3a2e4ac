"""predict and merge."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import cut, empty, interrupt, point, read_rows, refuse, uses, write_rows
from transformers import AutoModelForCausalLM

import main
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
    """What the user calls a draft of it stays."""
    output, draft = tmp_path / name, tmp_path / f"{name}.draft"
    kept = draft / "chapter.txt" if name == "merged" else draft
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    argv = [*map(str, uses(finished, output)[name == "merged"]), "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(function, interrupt)
        assert main.main(argv) == 130
    assert list(tmp_path.iterdir()) == [draft]
    assert main.main(argv) == 0
    assert set(tmp_path.iterdir()) == {draft, output} and kept.read_text() == "kept"


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
