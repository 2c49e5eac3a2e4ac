"""Files as people have them: each is read as it was written, or one line says why not."""

import csv
import datetime
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from day9 import hub
from day9.audit import alike
from day9.errors import InputError
from day9.reading.splits import READERS, load_splits, read_table

TEXTS = ["NA", "007", "null", "nan", "1e5", "1.0", "True", "2025-01-02", " padded ", "x" * 70_000,
         'a "quoted", text\nof two lines', "lone\rreturn", "both\r\n", "nul\0", "\x85\u2028",
         "日本 🙂", "a\tb;c|d", "#"]
LABELS = ["a, b", 'say "yes"', "two\nlines", "🙂", "NA", "007", " padded", "None", "true", "nan"]
CLASSES = ClassLabel(names=["no", "yes"])


def write(file, content):
    """A file from text, bytes, rows (as JSON lines), a table or a dataset (as parquet)."""
    if isinstance(content, Dataset):
        content.to_parquet(file)
    elif isinstance(content, pa.Table):
        pq.write_table(content, file)
    elif isinstance(content, list):
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def messages(word, count=30):
    """The content of a csv file large enough to train on."""
    return "text,label\n" + "".join(f"{word} {i},{'ab'[i % 2]}\n" for i in range(count))


def dataset(texts, labels, label_type=CLASSES):
    """Texts and classes as the datasets library keeps them."""
    features = Features({"text": Value("string"), "label": label_type})
    return Dataset.from_dict({"text": texts, "label": labels}, features)


def refusal(read, *arguments):
    """What is said instead of reading: one line, and not a long one."""
    with pytest.raises(InputError) as caught:
        read(*arguments)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 600
    return said


# Quotes

QUOTES = [
    ("a.tsv", 'text\tlabel\nok\tx\n" inch out\tx\nlate\ty\n"Nice" they said\ty\n',
     "line 3: row 2, up to line 5"),
    ("a.tsv", 'text\tlabel\n" inch out\tx\nlate\ty\nscreen of 15"\tx\n',
     "line 2: row 1, up to line 4"),
    ("a.csv", 'label,text\nx," inch out\ny,screen of 15"\ny,late\n',
     "line 2: row 1, up to line 3"),
    ("a.csv", 'id,text,label\n1," inch out,\n2,late,\n3,screen of 15",\n4,ok,\n',
     "line 2: row 1, up to line 4"),
    ("a.csv", 'text,label\n"She said \\"hi\\" twice",x\n', "without a backslash"),
    ("a.csv", 'text,label\nok,x\n"never closed,x\nlate,y\n', "line 3: row 2, up to line 4"),
]


@pytest.mark.parametrize("name, content, where", QUOTES)
def test_a_quote_that_is_only_a_character_swallows_no_rows(tmp_path, name, content, where):
    file = write(tmp_path / name, content)
    said = refusal(read_table, file, "text")
    assert f"{file}, " in said and where in said and "double each quote" in said


def test_quotes_that_quote_are_read(tmp_path):
    file = write(tmp_path / "a.csv", 'label,text\nx,"Dear all\nsee below, please"\ny,15" screen\n')
    assert read_table(file, "text")["text"][:] == ["Dear all\nsee below, please", '15" screen']
    file = write(tmp_path / "a.csv", 'text,label\n"Dear all,\nit came",x\n"""Hi""\tall",y\n')
    assert read_table(file, "text")["text"][:] == ["Dear all,\nit came", '"Hi"\tall']


# Paths and caches


@pytest.mark.parametrize("name", ["a[1].csv", "a*.csv", "?.csv", "x::y.csv", "file:a.csv"])
def test_a_path_is_a_path(tmp_path, name):
    for decoy in ("a.csv", "a1.csv"):
        write(tmp_path / decoy, messages("decoy"))
    file = write(tmp_path / name, messages("right"))
    for texts in (read_table(file, "text")["text"], load_splits(str(file))["train"]["text"]):
        assert all(text.startswith("right") for text in texts)


def test_a_folder_is_a_folder(tmp_path):
    for name in ("2 decoy", "[2025] *"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.csv", messages(name))
    assert load_splits(str(tmp_path / "[2025] *"))["train"]["text"][0].startswith("[2025] *")


def test_new_content_is_read_whatever_its_time_is(tmp_path):
    file = tmp_path / "a.csv"
    for word in ("one", "two"):
        write(file, messages(word))
        os.utime(file, (1e9, 1e9))
        assert load_splits(str(file))["train"]["text"][0].startswith(word)


# Values that are no strings, and missing ones

VALUES = [
    ("a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": ["x", "y"]}],
     "line 2: row 2 has a list in column 'label' (['x', 'y']): give one text and one label"),
    ("a.jsonl", [{"text": "a", "label": {"name": "x"}}] * 2,
     "line 1: row 1 has an object in column 'label'"),
    ("a.json", '[{"text": "a", "label": "x"}, {"text": ["b"], "label": "y"}]',
     ": row 2 has a list in column 'text'"),
    ("a.jsonl", [{"messages": [{"role": "user", "content": "a"}]}] * 2,
     "messages (a list): give one text and one label"),
    ("a.parquet", pa.table({"text": ["a"], "label": [["x"]]}),
     "row 1 has a list in column 'label'"),
    ("a.parquet", pa.table({"text": [b"a"], "label": ["x"]}), "row 1 has bytes in column 'text'"),
    ("a.parquet", dataset(["a"], [[1]], List(CLASSES)), "row 1 has a list in column 'label'"),
    ("a.jsonl", '{"text": "a", "label": "x", "label": "y"}\n{}\n',
     "line 1: row 1 has more than one value in column 'label'"),
    ("a.jsonl", '{"text": "\\ud83d", "label": "x"}\n{}\n', "line 1: row 1 has half a character"),
    ("a.csv", "text,label\na,x\n\nb, \n", "line 4: row 2 has no label"),
    ("a.jsonl", [{"text": "a", "label": "x"}, {"text": "b"}], "line 2: row 2 has no label"),
    ("a.jsonl", [{"text": "a", "label": "x"}, {"text": None, "label": "y"}],
     "line 2: row 2 has no text"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n',
     "line 2: row 2 has no label"),
    ("a.parquet", pa.table({"text": ["a", "b"], "label": [1.0, float("nan")]}),
     "row 2 has no label"),
    ("a.parquet", dataset(["a", "b"], [1, -1]), "row 2 has no label"),
]


@pytest.mark.parametrize("name, content, where", VALUES)
def test_one_text_and_one_label_per_row(tmp_path, name, content, where):
    file = write(tmp_path / name, content)
    said = refusal(load_splits, str(file))
    assert str(file) in said and where in said


@pytest.mark.parametrize("content", [
    '{"text": ["a", "b"], "label": ["x", "y"]}',
    '{"text": {"0": "a", "7": "b"}, "label": {"0": "x", "7": "y"}}',  # as pandas does
    '{"version": "1", "data": [\n{"text": "a"},\n{"text": "b"}]}',
    '{"0": {"text": "a", "label": "x"}, "7": {"text": "b", "label": "y"}}',
    '{"text": "a"}\n\n{"text": "b"}\n',
    ' [ {"text": "a"}\n,{"text": "b"}]',
])
def test_shapes_of_json(tmp_path, content):
    assert read_table(write(tmp_path / "a.json", content), "text")["text"][:] == ["a", "b"]


@pytest.mark.parametrize("content, words", [
    ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "one object with train, test"),
    ('{"text": ["a", "b"], "label": ["x"]}', "one object with text, label"),
    ('{"columns": ["text"], "data": [["a"]]}', "one object with columns, data"),
    ('["a", "b"]', "row 1 is not an object (a)"),
    ('[{"text": "a"}, {"text": "b" "c"}]', "row 2 is not JSON"),
    ('[{"text": "a"}, {"text": "b"}', "row 2 is not JSON"),
    ('[{"text": "a"}] [', "goes on after its list"),
    ('{"text": "a"}\n{"text": \n', "line 2: row 2 is not JSON"),
])
def test_other_json_is_told_which_shape_is_needed(tmp_path, content, words):
    file = write(tmp_path / "a.json", content)
    said = refusal(read_table, file, "text")
    assert str(file) in said and words in said and "give one object per row" in said


# Spelling


@pytest.mark.parametrize("suffix", READERS)
def test_texts_and_labels_come_through_as_written(tmp_path, suffix):
    rows = [{"text": text, "label": LABELS[i % len(LABELS)]} for i, text in enumerate(TEXTS)]
    file = tmp_path / f"a{suffix.upper()}"
    if suffix in (".csv", ".tsv"):
        with file.open("w", newline="", encoding="utf-8-sig") as handle:  # as spreadsheets do
            table = csv.writer(handle, delimiter=",\t"[suffix == ".tsv"], quoting=csv.QUOTE_ALL)
            table.writerows([["text", "label"], *(row.values() for row in rows)])
    else:
        write(file, {".json": json.dumps(rows), ".jsonl": rows,
                     ".parquet": pa.Table.from_pylist(rows)}[suffix])
    assert read_table(file, "text").to_list() == rows


def test_numbers_and_dates_come_through_as_written(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": 1.10, "label": 12345678901234567890, "is": true}\n'
                                       '{"text": "2025-01-02T03:04", "label": 1E2, "is": [1.0]}\n')
    assert read_table(file, "text").to_list() == [
        {"text": "1.10", "label": "12345678901234567890", "is": "true"},
        {"text": "2025-01-02T03:04", "label": "1E2", "is": "[1.0]"}]
    file = write(tmp_path / "a.parquet", pa.table({
        "text": [datetime.datetime(2025, 1, 2)], "label": pa.array([0.1], pa.float32()),
        "is": [{"b": b"x", "n": 1.0}]}))
    assert read_table(file, "text").to_list() == [
        {"text": "2025-01-02 00:00:00", "label": "0.1", "is": '{"b": "x", "n": 1.0}'}]


OLD = pa.array([-800_000], pa.int32()).cast(pa.date32())  # days since 1970
AFAR = pa.array([10**12]).cast(pa.timestamp("ms", "Mars/Base"))
KEY = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16)))


@pytest.mark.parametrize("column, value", [
    (OLD, "-0221-09-04"), (OLD.dictionary_encode(), "-0221-09-04"),
    (AFAR, "2001-09-09 01:46:40.000Z"),
    (pa.array([2**62]).cast(pa.duration("s")), str(2**62)),
    (KEY, "30303030-3030-3030-3030-303030303030"),
    (pa.StructArray.from_arrays([OLD, AFAR, KEY, pa.array([7])], ["d", "t", "k", "n"]),
     '{"d": "-0221-09-04", "t": "2001-09-09 01:46:40.000Z", '
     '"k": "30303030-3030-3030-3030-303030303030", "n": 7}'),
    (pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), OLD), '["-0221-09-04"]'),
])
def test_columns_that_python_cannot_hold_are_carried_along(tmp_path, column, value):
    file = write(tmp_path / "a.parquet", pa.table({"text": ["a"], "other": column}))
    assert read_table(file, "text").to_list() == [{"text": "a", "other": value}]


def test_labels_that_are_alike():
    assert alike(["1", "1.0", "2", "01", "NA", "na", " b", "b", "nan"]) == [
        "1", "1.0", "01", "NA", "na", " b", "b"]
    assert alike(["12345678901234567890", "12345678901234567891"]) == []
    same = ["can't", "can\u2019t", "a\u200b", "A", "\uff42", "b", "1\ufeff", "1", "two  words",
            "two words"]
    assert alike([*same, "e", "\u00e9"]) == same


COMPOSED, APART = "r\u00e9clamation", "re\u0301clamation"  # the same in NFC


def test_labels_that_are_the_same_in_unicode_are_one(tmp_path):
    write(tmp_path / "train.csv", messages("train").replace(",a", f",{COMPOSED}"))
    file = write(tmp_path / "test.csv", f"text,label\na,{APART} \nb,b\n")
    found = load_splits(str(tmp_path))
    assert set(found["test"]["label"]) == {COMPOSED, "b"}
    write(file, f"text,label\na,{APART}\u200b\nb,b\n")
    assert (r"('r\xe9clamation\u200b' looks like 'r\xe9clamation' of train): add"
            in refusal(load_splits, str(tmp_path)))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_columns_that_are_the_same_in_unicode_are_one(tmp_path, name):
    rows = [{" text": f"text {i}", APART: "ab"[i % 2]} for i in range(30)]
    text = f" text,{APART}\n" + "".join(f"{','.join(row.values())}\n" for row in rows)
    file = write(tmp_path / name, {"a.csv": text, "a.jsonl": rows}.get(
        name, pa.Table.from_pylist(rows)))
    assert len(load_splits(str(file), "text", COMPOSED)["test"]) == 6
    assert read_table(file, "text").column_names == ["text", APART]
    said = refusal(load_splits, str(file), "text", f"{COMPOSED}\u200b")
    assert r"no column 'r\xe9clamation\u200b', but 're\u0301clamation'" in said


@pytest.mark.parametrize("content, words", [
    (b"\x1f\x8b\x08\0", "packed by gzip"), (b"PK\x03\x04\0", "a zip archive"),
    (b"\xd0\xcf\x11\xe0\0", "a workbook"), (b"%PDF-1.7\n", "a pdf"), (b"PAR1\x15", "parquet"),
    (b"\n<!DOCTYPE html>\n<p>a,b", "a web page"), ("text\n".encode("utf-16"), "text in UTF-16"),
])
def test_a_file_of_another_kind_is_told_which(tmp_path, content, words):
    for suffix in (".csv", ".json"):
        file = write(tmp_path / f"a{suffix}", content)
        assert f"{file} is {words}" in refusal(read_table, file, "text")
    assert len(read_table(write(tmp_path / "a.csv", "PAR1,text\n1,a\n"), "text")) == 1


@pytest.mark.parametrize("content, where", [
    ("text\nok\ncaf\xe9\n".encode("latin-1"), "line 3, byte 4 (0xe9): not UTF-8"),
    ("text\nok\n".encode("utf-16-le"), "line 1, byte 2: a NUL byte"),
    (b"text\nok\nn\0ul\n", "line 3, byte 2: a NUL byte"),
    (b"text\nmy refund\rhas not come\n", "line 2: row 1 has a carriage return outside quotes"),
])
def test_bytes_out_of_place(tmp_path, content, where):
    assert where in refusal(read_table, write(tmp_path / "a.csv", content), "text")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path, end):
    file = write(tmp_path / "a.csv", f"\ufefftext,label{end}a,x{end}{end}b,y{end}")
    assert read_table(file, "text").to_list() == [
        {"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    file = write(tmp_path / "a.csv", f"text{end}a{end}{end}b")
    assert read_table(file, "text")["text"][:] == ["a", "", "b"]  # an empty line is a text


# Texts that are private

KILLED = """
import os, signal, sys
from pathlib import Path
from day9.reading.splits import load_splits, read_table
splits = load_splits(sys.argv[1])
splits = splits.map(lambda row: {"words": row["text"].split()})
kept = [*splits.values(), read_table(Path(sys.argv[1]), "text")]
print(sum(map(len, kept)), os.listdir(os.environ["TMPDIR"]), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_text_outlives_a_process_that_is_killed(tmp_path):
    """There is nothing to be found even while it lives, nor in the caches of the libraries."""
    file = write(tmp_path / "a.csv", messages("secret"))
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, file], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {
                              "TMPDIR": str(tmp_path / "temporary"),
                              "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL and done.stdout == "60 []\n", done.stderr
    assert load_splits(str(file))
    for path in tmp_path.rglob("*"):
        assert path == file or not path.is_file() or b"secret" not in path.read_bytes()
    assert not list((tmp_path / "temporary").iterdir())


# Large files


def large(suffix, count):
    """A file whose third column is missing at first, and then of one type after another."""
    notes = [{}, {"note": None}, {"note": 7}, {"note": "A-7"}, {"note": {"id": 7}}]
    rows = [{"text": f"message {i} {'x' * 300}", "label": "ab"[i % 2], **notes[5 * i // count]}
            for i in range(count)]
    if suffix == ".csv":
        return "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)
    if suffix == ".parquet":
        return pa.table({name: [row[name] for row in rows] for name in ("text", "label")})
    return json.dumps(rows) if suffix == ".json" else rows


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_large_files_are_read_a_piece_at_a_time(tmp_path, suffix):
    seconds = []
    for count in (3_000, 30_000):
        file = write(tmp_path / f"{count}{suffix}", large(suffix, count))
        tracemalloc.start()
        start = time.process_time()
        read = read_table(file, "text")
        seconds.append(time.process_time() - start)
        assert tracemalloc.get_traced_memory()[1] < 8e6
        tracemalloc.stop()
        assert len(read) == count and read[-1]["text"].startswith(f"message {count - 1} x")
    assert seconds[1] < 30 * seconds[0]


def test_a_column_that_nobody_asked_for_may_be_anything(tmp_path):
    file = write(tmp_path / "a.jsonl", large(".jsonl", 35_000))
    assert sum(map(len, load_splits(str(file)).values())) == 35_000
    assert read_table(file, "text")["note"][::7_000] == [None, None, "7", "A-7", '{"id": 7}']


def test_row_groups_of_any_size(tmp_path):
    pq.write_table(large(".parquet", 2_000), tmp_path / "a.parquet", row_group_size=301)
    assert len(read_table(tmp_path / "a.parquet", "text")) == 2_000


# Separators and headers

SEPARATED = [
    ("a.csv", "id;text;label\r\n1;a, b;x\r\n2;c;y\r\n", "semicolons"),
    ("a.csv", "id\ttext\tlabel\n1\ta, b\tx\n2\tc\ty\n", "tabs"),
    ("a.tsv", 'id,text,label\n1,"a, b",x\n2,c,y\n', "commas"),
    ("a.tsv", "id|text|label\n1|a, b|x\n2|c|y\n", "pipes"),
    ("a.csv", "\ufeffsep=;\r\nid;text;label\r\n1;a, b;x\r\n2;c;y\r\n", None),
    ("a.csv", 'id,text,label\n1,"a, b",x\n2,c,y\n', None),
]


@pytest.mark.parametrize("name, content, warning", SEPARATED)
def test_separators(tmp_path, capsys, name, content, warning):
    file = write(tmp_path / name, content)
    assert read_table(file, "text").to_list() == [
        {"id": "1", "text": "a, b", "label": "x"}, {"id": "2", "text": "c", "label": "y"}]
    said = capsys.readouterr().out
    assert f"warning: {file} is read with {warning} " in said if warning else not said


@pytest.mark.parametrize("content, words", [
    ('text,label\nok,x\na, "y"\n', "line 3: row 2 has a space before a quote (a, \"y\")"),
    ('text,label\nok,x\na, "b, c"\n', "line 3: row 2 has a space before a quote"),
    ('text, "label"\na, "x"\n', "line 1: the header has a space before a quote"),
    ("# exported, today\ntext,label\na,x\n", "line 1: '# exported, today' is above the header"),
    ("Messages of May,\ntext,label\na,x\n", "line 1: 'Messages of May,' is above the header"),
    ("Messages of May\n\ntext;label\na;x\n", "line 1: 'Messages of May' is above the header"),
    (f'"Dear all,\nit {"is late, " * 40}",x\nb,y\n', "it is late, is late"),
    (f'"Dear all,\nit {"is late, " * 40}",x\nb,y\n', "is a row, not a header: put a header above"),
    ("where is it,x\nit broke,y\nrefund me,x\n", "'where is it, x' is a row, not a header"),
    ("text~label\na~x\n", "'text~label' has no separator: put commas or tabs or"),
    ("text,label,text\na,x,b\n", "has 2 columns called 'text': rename"),
    ("text;label\na;b;x\n", "line 2: row 1 has 3 fields and the header 2 (a;b;x)"),
])
def test_what_is_wrong_with_a_table_is_said(tmp_path, content, words):
    file = write(tmp_path / "a.csv", content)
    said = refusal(load_splits, str(file))
    assert str(file) in said and words in said and "--text-column" not in said


@pytest.mark.parametrize("content, words", [
    ("message,team\na,x\n", "there are message, team: choose with --text-column"),
    ("message;team\na;x\n", "there are message, team: choose with --text-column"),
    ("Text,team\na,x\n", "but 'Text'"),
])
def test_columns_of_other_names_are_chosen_with_an_option(tmp_path, content, words):
    said = refusal(load_splits, str(write(tmp_path / "a.csv", content)))
    assert "no column 'text'" in said and words in said


# Splits


def test_missing_splits_are_made_the_same_way_every_time(tmp_path):
    rows = [f"message {i},{'ab'[i % 2]}\n" for i in range(100)]
    file = write(tmp_path / "a.csv", "".join(["message,team\n", *rows]))
    first, second = (load_splits(str(file), "message", "team", seed=7) for _ in range(2))
    assert {name: len(split) for name, split in first.items()} == {
        "train": 72, "validation": 8, "test": 20}
    assert all(first[name].to_list() == second[name].to_list() for name in first)
    assert not set(first["train"]["text"]) & set(first["test"]["text"])
    assert list(first["test"]["label"]).count("a") == 10


def test_what_is_tested_is_not_trained_on(tmp_path, capsys):
    for name, rows in (("train", "one,a\ntwo,b\nThree ,a\nfour,b\nfive,b\n"),
                       ("val", "four,a\nsix,b\n"),
                       ("test", "three,a\nSIX,b\nseven,a\neight,b\n")):
        write(tmp_path / f"{name}.csv", f"text,label\n{rows}")
    assert {name: list(split["text"]) for name, split in load_splits(str(tmp_path)).items()} == {
        "train": ["one", "two", "five"], "validation": ["four"],
        "test": ["three", "SIX", "seven", "eight"]}
    assert "2 texts of the train split are also in validation or test" in capsys.readouterr().out


# Folders and the hub


@pytest.mark.parametrize("split, names", [
    ("validation", ["val.csv", "valid.CSV", "dev.csv", "Eval.Csv", "validation.csv",
                    "evaluation.csv", "validate.csv", "val_data.csv", "dev/any.json"]),
    ("test", ["test_data.csv", "testing.csv", "test_set.csv", "heldout.csv", "holdout.csv",
              "Held-Out 2.csv", "Test Data.csv", "test-00000-of-00001.csv", "test/any.csv"]),
    (None, ["latest.csv", "contest.csv", "train_test.csv", "train_extra.csv", "notes.json"]),
])
def test_names_of_splits(tmp_path, capsys, split, names):
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        for place in (folder / "source", (folder / name).parent):
            place.mkdir(parents=True, exist_ok=True)
        write(folder / "train.csv", messages("train"))
        rows = [{"text": f"held out {i}", "label": "ab"[i % 2]} for i in range(6)]
        write(folder / name, rows if name.endswith("json") else messages("held out", 6))
        for other in (".DS_Store", "._train.csv", "notes.txt", "source/test.csv"):
            write(folder / other, b"\0")
        found = load_splits(str(folder)).items()
        assert [key for key, rows in found if "held out 0" in rows["text"][:]] == [split] * (
            split is not None), name
        said = capsys.readouterr().out
        unused = f"warning: {folder} has what is not used: {name} ("
        assert not said if split else unused in said


@pytest.mark.parametrize("names, words", [
    (["train.csv", "test_a.csv", "test_b.csv"], "test_a.csv and test_b.csv of "),
    (["train.csv", "test.csv", "test/a.csv"], "test.csv and test/a.csv of "),
    (["train.csv", "test-00000-of-00003.csv", "test-00002-of-00003.csv"],
     "test-*-of-00003.csv: 2 files, not each number once"),
])
def test_files_of_splits_that_are_in_doubt(tmp_path, names, words):
    (tmp_path / "test").mkdir()
    for name in names:
        write(tmp_path / name, messages(name))
    assert words in refusal(load_splits, str(tmp_path))


def test_shards_are_read_in_order_and_the_exact_name_wins(tmp_path, capsys):
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test", "test_old", "val"):
        write(tmp_path / f"{name}.csv", messages(name, 4))
    found = load_splits(str(tmp_path))
    assert found["train"]["text"][:] == [f"train-0000{i // 4}-of-00002 {i % 4}" for i in range(8)]
    assert found["test"]["text"][0] == "test 0"
    assert "not used: test_old.csv (" in capsys.readouterr().out


@pytest.mark.parametrize("names, sizes, words", [
    (["train", "Val", "test"], [10, 10, 10], ""),
    (["train", "", "test"], [22, 2, 6], "train among them, and has ''"),
    (["test"] * 3, [22, 2, 6], "train among them, and has 'test'"),
])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_may_say_the_split(tmp_path, capsys, suffix, names, sizes, words):
    rows = [{"Split": names[i % 3], "text": f"text {i}", "label": "ab"[i % 2]} for i in range(30)]
    text = "Split,text,label\n" + "".join(f"{','.join(row.values())}\n" for row in rows)
    file = write(tmp_path / f"a{suffix}", text if suffix == ".csv" else pa.Table.from_pylist(rows))
    found = load_splits(str(file))
    assert [len(found[split]) for split in ("train", "validation", "test")] == sizes
    said = capsys.readouterr().out
    if words:
        assert "warning: column 'Split' of" in said and words in said
    else:
        assert not said and found["test"]["text"][:] == [f"text {i}" for i in range(2, 30, 3)]


def test_a_column_may_say_the_split_in_a_folder(tmp_path, capsys):
    """A file of a split is that split, and what is marked as of it elsewhere trains nobody."""
    rows = [f"text {i},{'ab'[i % 2]},{'test' if i < 6 else 'train'}\n" for i in range(40)]
    write(tmp_path / "train.csv", "text,label,split\n" + "".join(rows))
    found = load_splits(str(tmp_path))
    assert sorted(found["test"]["text"]) == [f"text {i}" for i in range(6)]
    write(tmp_path / "test.csv", messages("held out", 6))
    found = load_splits(str(tmp_path))
    assert all(text.startswith("held out") for text in found["test"]["text"])
    trained = {*found["train"]["text"], *found["validation"]["text"]}
    assert trained and not {f"text {i}" for i in range(6)} & trained
    assert "has a test file: the test rows of train are not used" in capsys.readouterr().out
    (tmp_path / "train.csv").write_text("text,label,split\n")
    with pytest.raises(InputError, match="is empty"):
        load_splits(str(tmp_path))


def test_a_path_that_cannot_be_looked_at():
    assert "File name too long: check --data" in refusal(load_splits, "x" * 5_000)


def test_with_several_files_a_message_names_the_file(tmp_path):
    write(tmp_path / "train.csv", messages("train"))
    for content, words in (("text,label\na,a\nb\n", "row 2 has 1 field and the header 2"),
                           ("text,label\na,a\nb,\n", "row 2 has no label"),
                           ("text,label\na,a\nb,z\n", "never sees: z"),
                           ("body,label\na,a\n", "no column 'text'"), ("", "empty")):
        file = write(tmp_path / "test.csv", content)
        said = refusal(load_splits, str(tmp_path))
        assert str(file) in said and words in said
    write(tmp_path / "test.jsonl", "")
    assert "test.csv and " in refusal(load_splits, str(tmp_path))


@pytest.mark.parametrize("content", ["id,text\n1,a\n2,b\n", "text,label\na,\nb,\n"])
def test_a_test_file_without_labels_is_left_out(tmp_path, capsys, content):
    write(tmp_path / "train.csv", messages("train"))
    file = write(tmp_path / "test.csv", content)
    assert len(load_splits(str(tmp_path))["test"]) == 6
    assert f"warning: {file} has no labels in column 'label'" in capsys.readouterr().out


def test_a_dataset_on_the_hub_is_held_to_the_same(monkeypatch, capsys):
    found = DatasetDict(train=dataset([f"text {i}" for i in range(30)], [0, 1] * 15),
                        test=dataset(["a", "b"], [-1, -1]), test_more=dataset(["a"], [0]))
    monkeypatch.setattr(hub, "is_silent", lambda *_: False)
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: found)
    splits = load_splits("someone/data")
    assert set(splits["train"]["label"]) == {"no", "yes"} and len(splits["test"]) == 6
    said = capsys.readouterr().out
    assert "warning: the test split of someone/data has no labels" in said
    assert "warning: someone/data has what is not used: test_more (" in said
    found["dev"] = dataset(["a"], [["x"]], List(Value("string")))
    assert "split of someone/data: row 1 has a list" in refusal(load_splits, "someone/data")
    found["validation"] = found["train"]
    assert "are both for validation" in refusal(load_splits, "someone/data")


def test_training_is_not_left_with_one_class(tmp_path):
    """Its other class is only in a text that is also tested, and dropped for that."""
    write(tmp_path / "train.csv", "text,label\none,a\ntwo,a\nsame,b\n")
    write(tmp_path / "validation.csv", "text,label\nthree,a\n")
    write(tmp_path / "test.csv", "text,label\nsame,a\nfour,a\n")
    assert "too few rows" in refusal(load_splits, str(tmp_path))
