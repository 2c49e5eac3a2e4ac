"""What comes in: texts as written, refusals that name the place and the mend, and the audit of what is odd."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT
from datasets import ClassLabel, Dataset, Features, Value

import main
import reading

STRANGE = ["NA", "007", "null", "True", 'a "quoted", text\nof two lines', "日本 🙂", "<|eot_id|>", " padded ", "1e5", "x" * 200_000]
STRANGE_LABELS = ["a, b", 'say "yes"', "two\nlines", "🙂", "здоровье", "NA", "007", " padded", "None", "true"]


def written(folder, suffix, texts, labels):
    """A file of two columns in one of the formats."""
    file, rows = folder / f"train{suffix}", {"text": texts, "label": labels}
    if suffix in (".csv", ".tsv"):
        with file.open("w", newline="", encoding="utf-8-sig") as handle:  # with a byte order mark, as spreadsheets write it
            csv.writer(handle, delimiter="\t" if suffix == ".tsv" else ",").writerows([["text", "label"], *zip(texts, labels)])
    elif suffix == ".parquet":
        Dataset.from_dict(rows).to_parquet(file)
    else:
        items = [dict(zip(rows, row)) for row in zip(texts, labels)]
        file.write_text(json.dumps(items) if suffix == ".json" else "".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return file


@pytest.mark.parametrize("suffix", reading.READERS)
def test_texts_and_labels_come_through_as_written(tmp_path, suffix):
    read = main.two_columns(main.find_data(str(written(tmp_path, suffix, STRANGE, STRANGE_LABELS)))["train"], "text", "label")
    assert list(read["text"]) == STRANGE and list(read["label"]) == STRANGE_LABELS


def test_numbers_and_class_names_become_strings():
    split = Dataset.from_dict({"body": [7, 8], "team": [1, 0]}, features=Features({"body": Value("int64"), "team": ClassLabel(names=["x", "y"])}))
    assert main.two_columns(split, "body", "team").to_list() == [{"text": "7", "label": "y"}, {"text": "8", "label": "x"}]


def test_missing_splits_are_made_the_same_way_every_time(tmp_path):
    file = tmp_path / "all.csv"
    file.write_text("message,team\n" + "".join(f"message {i},{'ab'[i % 2]}\n" for i in range(100)))
    first, second = (main.load_splits(main.Settings(data=str(file), text_column="message", label_column="team", seed=7)) for _ in range(2))
    assert {name: len(split) for name, split in first.items()} == {"train": 72, "test": 20, "validation": 8}
    assert all(list(first[name]["text"]) == list(second[name]["text"]) for name in first)
    assert not set(first["train"]["text"]) & set(first["test"]["text"])
    assert list(first["test"]["label"]).count("a") == 10


def test_what_is_tested_is_not_trained_on(tmp_path, capsys):
    for name, texts in (("validation", ["four", "six"]), ("test", ["three", "SIX", "seven", "eight"]), ("train", ["one", "two", "Three ", "four", "five"])):
        written(tmp_path, ".csv", texts, ["a", "b"] * 2 + ["b"] if name == "train" else ["a", "b"] * (len(texts) // 2)).rename(tmp_path / f"{name}.csv")
    splits = main.load_splits(main.Settings(data=str(tmp_path)))
    assert {name: list(split["text"]) for name, split in splits.items()} == {
        "train": ["one", "two", "five"], "validation": ["four"], "test": ["three", "SIX", "seven", "eight"]}
    assert "2 texts of the train split are also in validation or test: dropped from train" in capsys.readouterr().out


def test_the_audit_counts_what_is_odd(tokenizer, capsys):
    texts = ["same", "Same ", "", "cafÃ© au lait", "long " * 500, "plain"]
    split = Dataset.from_dict({"text": texts, "label": ["billing"] * 4 + ["Billing", "other"]})
    form = main.make_format(tokenizer, ["Billing", "billing", "other"], 128)
    found = main.audit({"train": split, "test": split.select([5])}, tokenizer, form)["train"]
    assert {name: found[name] for name in ("rows", "classes", "rarest", "empty", "repeated", "garbled", "shortened")} == {
        "rows": 6, "classes": 3, "rarest": 1, "empty": 1, "repeated": 1, "garbled": 1, "shortened": 1}
    assert found["labels"] == {"billing": 4, "Billing": 1, "other": 1} and found["most_tokens"] >= 500
    said = capsys.readouterr().out
    assert said.count("warning") == 5 and "'Billing', 'billing'" in said
    other = split.select(range(5))
    assert main.audit_split(other, tokenizer, form)["sha256"] != found["sha256"] == main.audit_split(split, tokenizer, form)["sha256"]


ROWS = "text,label\n" + "".join(f"a{i},b\nc{i},d\n" for i in range(20))


@pytest.mark.parametrize("content, arguments, message", [
    (None, [], "check --data"),
    (b"", [], "empty"),
    (b"text,label\n", [], "empty"),
    (b"text,label\ngood,a\ncaf\xe9,b\n", [], "line 3, byte 4 (0xe9): not UTF-8"),
    ("text,label\nа,b\n".encode("utf-16"), [], "line 1, byte 1 (0xff): not UTF-8"),
    (b"text,label\nnul\0,b\n", [], "line 2, byte 4: a NUL byte"),
    (b"text,label\na,b,c\nd,e,f\n", [], "row 1, which ends in line 2, has 3 fields and the header 2"),
    (b"text,label\na,b\nc,d, e\n", [], "row 2, which ends in line 3, has 3 fields"),
    (b"text,label\na,b\nc\n", [], "row 2, which ends in line 3, has 1 fields"),
    (b'text,label\na,b\n"never closed,b\nc,d\n', [], "close every quote"),
    (b"text,label\na,b\nc,b\n", [], "single class"),
    (b"text,label\na,b\nc,d\n", ["--text-column", "body"], "no column 'body'; there are text, label: choose with --text-column"),
    (b"text,label\na,b\nc,\n", [], "row 2 has no label"),
    (b"text,label\na,b\nc,d\ne,f\n", [], "the data cannot be split by class"),
    (ROWS.encode(), ["--model", "no/such-model"], "check --model"),
    (ROWS.encode(), ["--max-length", "20"], "raise it"),
])
def test_bad_input_costs_one_line(tmp_path, capsys, content, arguments, message):
    file = tmp_path / "data.csv"
    if content is not None:
        file.write_bytes(content)
    assert main.main(["--data", str(file), "--output-dir", str(tmp_path / "run"), *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, content, message", [
    ("data.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "cannot read"),
    ("data.jsonl", b'{"text": "a", "label": "b"}\n{"text": "c"}\n', "row 2 has no label"),
    ("data.json", b'{"text": "a\xff"}', "byte 12 (0xff): not UTF-8"),
    ("data.parquet", b"text,label\n", "cannot read"),
    ("data.xlsx", b"", "none of .csv"),
])
def test_bad_files_of_other_formats(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert main.main(["--data", str(tmp_path / name), "--output-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error


def test_a_test_label_that_training_never_sees(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    (tmp_path / "validation.csv").write_text("text,label\ne,x\nf,y\n")
    (tmp_path / "test.csv").write_text("text,label\ng,x\nh,z\n")
    assert main.main(["--data", str(tmp_path), "--output-dir", str(tmp_path / "run")]) == 1
    assert "the test split has labels that training never sees: z" in capsys.readouterr().err


def test_labels_that_the_tokenizer_cannot_tell_apart(tokenizer, monkeypatch):
    monkeypatch.setattr(main, "as_written", lambda tokenizer, texts: [[7] for _ in texts])
    with pytest.raises(main.InputError, match="same to the tokenizer"):
        main.make_format(tokenizer, ["a", "b"], 128)


def test_unknown_options_and_wrong_values_are_refused(capsys):
    for arguments in (["--epoch-count", "3"], ["--epoch", "3"], ["--epochs", "many"], ["--rank", "0"], ["--learning-rate", "nan"],
                      ["--resume", "run", "--rank", "3"], ["predict", "--run", "r"], ["predict", "--run", "r", "--data", "a.csv", "--texts", "a"],
                      ["predict", "--run", "r", "--output", "a.xlsx", "--texts", "a"], ["merge", "--run", "r"]):
        with pytest.raises(SystemExit) as stop:
            main.main(arguments)
        assert stop.value.code == 2, arguments


def test_a_run_with_results_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    assert main.main(["--output-dir", str(tmp_path)]) == 1
    assert "choose a new --output-dir" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text() == "{}"
    for command in (["predict", "--texts", "a text"], ["merge", "--output", str(tmp_path / "new")]):
        assert main.main([command[0], "--run", str(tmp_path), *command[1:]]) == 1
        assert "check --run" in capsys.readouterr().err
    assert main.main(["--resume", str(tmp_path / "elsewhere")]) == 1
    assert "check --resume" in capsys.readouterr().err


@pytest.mark.parametrize("gpu, native, hip, apple, expected, words", [
    (True, False, None, False, torch.float16, "only emulates"),  # a T4
    (True, True, None, False, torch.bfloat16, "natively"),  # Ampere and later
    (True, True, "6.4", False, torch.bfloat16, "ROCm"),
    (False, False, None, True, torch.float32, "Apple"),
    (False, False, None, False, torch.float32, "processor"),
])
def test_precision_by_hardware(monkeypatch, gpu, native, hip, apple, expected, words):
    def supported(including_emulation=True):
        return native or including_emulation  # as on a T4: emulated bfloat16 counts as supported unless asked otherwise
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    dtype, reason = main.choose_precision()
    assert dtype == expected and words in reason


@pytest.mark.parametrize("config, refusal", [
    (transformers.Qwen2Config(num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2), None),
    (transformers.MambaConfig(num_hidden_layers=2, hidden_size=64, state_size=4), "a mamba model cannot score all labels in one pass"),
])
def test_other_architectures_work_or_are_refused(tmp_path, tokenizer, capsys, config, refusal):
    config.update({"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 5})
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data.csv").write_text(ROWS)
    argv = ["--model", str(tmp_path / "model"), "--no-quantize", "--data", str(tmp_path / "data.csv"), "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    assert main.main(argv) == (1 if refusal else 0)
    assert not refusal or refusal in capsys.readouterr().err


def test_weights_are_read_from_safetensors_and_no_code_from_anywhere(tmp_path, random_llama, capsys):
    (tmp_path / "data.csv").write_text(ROWS)
    for name, damage in (("pickled", lambda folder: torch.save({}, folder / "pytorch_model.bin") or (folder / "model.safetensors").unlink()),
                         ("with-code", lambda folder: (folder / "config.json").write_text(json.dumps(
                             {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}})))):
        folder = tmp_path / name
        shutil.copytree(random_llama, folder)
        damage(folder)
        (folder / "mine.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
        assert main.main(["--model", str(folder), "--data", str(tmp_path / "data.csv"), "--output-dir", str(tmp_path / "run")]) == 1
        error = capsys.readouterr().err.strip()
        assert "check --model" in error and "\n" not in error and not (tmp_path / "trace").exists()


STORIES = ROOT.parent / "shared" / "models" / "stories260K"


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not here")
@pytest.mark.parametrize("quantize", [True, False])
def test_a_llama_of_odd_widths_learns(tmp_path, quantize):
    """A real Llama whose layers are not multiples of what 4-bit kernels for processors ask for."""
    file = tmp_path / "data.csv"
    file.write_text(ROWS)
    argv = ["--model", str(STORIES), "--data", str(file), "--epochs", "1", "--rank", "4", "--output-dir", str(tmp_path / "run")]
    assert main.main(argv + ([] if quantize else ["--no-quantize"])) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["systems"]["fine_tuned"]["n"] == 8


def test_help_is_quick_and_does_not_load_the_libraries():
    done = subprocess.run([str(Path(main.sys.executable)), "-X", "importtime", str(ROOT / "main.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout
    assert not any(f" {name}\n" in done.stderr for name in ("torch", "datasets", "sklearn", "matplotlib", "trl"))
