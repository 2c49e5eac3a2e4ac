"""What comes in: refusals of one line that say what to do, the audit."""

import json

import pytest
from conftest import ROWS, refuse
from datasets import Dataset

from day9.prompts import make_prompt
from day9.audit import audit_split, balance, is_garbled, print_audit, several

SHORT = "text,label\na,b\nc,d\n"


@pytest.mark.parametrize("name, content, arguments, message", [
    ("a.csv", None, [], "check --data"),
    ("a.csv", b"", [], "empty"),
    ("a.csv", b"text,label\n", [], "empty"),
    ("a.csv", b"text,label\ngood,a\ncaf\xe9,b\n", [], "line 3, byte 4 (0xe9): not UTF-8"),
    ("a.csv", SHORT + "e,f,g\n", [], "row 3 has 3 fields and the header 2"),
    ("a.csv", SHORT + '"never closed,f\n', [], "close every quote"),
    ("a.csv", SHORT + "e,\n", [], "row 3 has no label"),
    ("a.csv", "text,label\na,b\nc,b\n", [], "single class"),
    ("a.csv", "text,label\n,b\n  ,c\n", [], "no words in column 'text'"),
    ("a.csv", SHORT, ["--text-column", "body"], "no column 'body'; there are text, label"),
    ("a.csv", SHORT + "e,f\n", [], "the data cannot be split by class"),
    ("a.csv", ROWS, ["--model", "no/such-model"], "check --model"),
    ("a.csv", ROWS, ["--max-length", "20"], "raise it"),
    ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', [], "cannot read"),
    ("a.parquet", b"text,label\n", [], "cannot read"),
    ("a.xlsx", b"", [], "none of .csv"),
], ids=lambda value: value if isinstance(value, str) and value.isprintable() else "")
def test_bad_input_costs_one_line(tmp_path, random_llama, capsys, name, content, arguments,
                                  message):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refuse(capsys, "--model", random_llama, "--data", file, "--output-dir",
                  tmp_path / "run", *arguments)
    assert message in said and not (tmp_path / "run").exists()


def test_texts_to_predict_are_read_as_carefully(tmp_path, finished, capsys):
    ask = ["predict", "--run", finished, "--data"]
    assert "check --data" in refuse(capsys, *ask, tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("body\na text\n")
    assert "choose with --text-column" in refuse(capsys, *ask, tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text('text\n"never closed\n')
    assert "close every quote" in refuse(capsys, *ask, tmp_path / "b.csv")
    assert "is in a folder that does not exist" in refuse(
        capsys, *ask, tmp_path / "a.csv", "--output", tmp_path / "none" / "out.csv")


def test_the_audit_counts_what_is_odd(tokenizer, capsys):
    texts = ["same", "Same ", "", "cafÃ© au lait", "long " * 500, "plain", "both", "Both", "both"]
    split = Dataset.from_dict({"text": texts, "label": ["billing"] * 4 + ["Billing", "other"]
                               + ["other", "billing", "billing"]})
    prompt = make_prompt(tokenizer, ["Billing", "billing", "other"], "Which?", 128)
    found = audit_split(split, tokenizer, prompt)
    print_audit({"train": found,
                 "test": audit_split(split.select([5]), tokenizer, prompt)})
    expected = {"rows": 9, "classes": 3, "rarest": 1, "empty": 1, "repeated": 2, "garbled": 1,
                "two labels": 1, "shortened": 1,
                "labels": {"billing": 6, "Billing": 1, "other": 2}}
    assert {name: found[name] for name in expected} == expected and found["most_tokens"] >= 500
    said = capsys.readouterr().out
    assert said.count("warning") == 6 and "'Billing' (1), 'billing' (6)" in said
    assert "warning: texts with two labels: 1 " in said
    digests = [audit_split(part, tokenizer, prompt)["sha256"]
               for part in (split, split.select(range(5)))]
    assert digests[0] == found["sha256"] != digests[1]


@pytest.mark.parametrize("text, garbled", [
    ("caf\u00e9 \u2615".encode().decode("latin-1"), True), ("Ð”Ð° ok", True),
    ("it\u2019s".encode().decode("cp1252"), True), ("half\ufffd", True),
    ("\U0001f642 cafÃ©", True),
    ("NÃO É O CAMINHÃO", False), ("«CAFÉ»", False), ("50 € “Ã”", False), ("日本 🙂", False)])
def test_what_is_garbled_would_be_shorter_as_utf_8(text, garbled):
    assert is_garbled(text) is garbled


@pytest.mark.parametrize("labels, found", [
    (["['billing', 'urgent']", "{a, b}", "[0, 1]", "[other]", "a, b"], 3),
    (["billing|urgent", "billing", "urgent", "billing; urgent", "a;b", "a"], 2)])
def test_several_labels_in_one_are_counted(labels, found):
    assert len(several(labels)) == found


def test_balancing_repeats_rows_of_rare_classes_alone():
    labels = ["a"] * 7 + ["b"] * 3 + ["c"]
    split = Dataset.from_dict({"text": [str(i) for i in range(11)], "label": labels})
    rows = list(zip(*balance(split, 0).to_dict().values()))
    assert sorted(label for _, label in rows) == ["a"] * 7 + ["b"] * 7 + ["c"] * 7
    assert set(rows) == set(zip(split["text"], split["label"]))


@pytest.mark.parametrize("row", [
    {"text": "\ud800", "label": "a"}, {"text": "b", "label": "\udfff"}])
def test_half_a_character_costs_one_line(tmp_path, finished, arguments, capsys, row):
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(40)] + [row]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refuse(capsys, *arguments, "--data", file, "--output-dir", tmp_path / "run")
    assert "row 41" in error and "half a character" in error
    assert "half a character" in refuse(capsys, "predict", "--run", finished, "--data", file)


def test_half_a_character_in_another_column(tmp_path, finished, capsys):
    for number, row in enumerate([{"text": "a", "id": "\ud800"}, {"text": "a", "\ud800": 1}]):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        assert "half a character" in refuse(capsys, "predict", "--run", finished, "--data", file)
