"""What comes in: refusals of one line that say what to do, the audit, and other models."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT
from datasets import Dataset

import audit
import keeping
import main
import models
import prompts
import reading
from reading import read_table

ROWS = "text,label\n" + "".join(f"a{i},b\nc{i},d\n" for i in range(20))
SHORT = "text,label\na,b\nc,d\n"


def refuse(capsys, *arguments):
    """Run the program, which refuses; what it says in one line."""
    assert main.main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name, content, arguments, message", [
    ("a.csv", None, [], "check --data"),
    ("a.csv", b"", [], "empty"),
    ("a.csv", b"text,label\n", [], "empty"),
    ("a.csv", b"text,label\ngood,a\ncaf\xe9,b\n", [], "line 3, byte 4 (0xe9): not UTF-8"),
    ("a.csv", SHORT + "e,f,g\n", [], "row 3 has 3 fields and the header 2"),
    ("a.csv", SHORT + '"never closed,f\n', [], "close every quote"),
    ("a.csv", SHORT + "e,\n", [], "row 3 has no label"),
    ("a.csv", "text,label\na,b\nc,b\n", [], "single class"),
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


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    texts = ["lone\rreturn", "both\r\n", "two\nlines", 'a "quoted", text', '"', " padded ", "",
             "007", "日本 🙂", "\x85\u2028", "nul\0", "# no comment", "tab\there"]
    columns = {"text": texts, "label": [str(i) for i in range(len(texts))]}
    keeping.write_table(tmp_path / f"a{suffix}", columns)
    table = read_table(tmp_path / f"a{suffix}", "text")
    assert {name: table[name][:] for name in table.column_names} == columns
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_the_audit_counts_what_is_odd(tokenizer, capsys):
    texts = ["same", "Same ", "", "cafÃ© au lait", "long " * 500, "plain"]
    split = Dataset.from_dict({"text": texts, "label": ["billing"] * 4 + ["Billing", "other"]})
    prompt = main.make_prompt(tokenizer, ["Billing", "billing", "other"], "Which?", 128)
    found = audit.audit_split(split, tokenizer, prompt)
    audit.print_audit({"train": found,
                       "test": audit.audit_split(split.select([5]), tokenizer, prompt)})
    expected = {"rows": 6, "classes": 3, "rarest": 1, "empty": 1, "repeated": 1, "garbled": 1,
                "shortened": 1, "labels": {"billing": 4, "Billing": 1, "other": 1}}
    assert {name: found[name] for name in expected} == expected and found["most_tokens"] >= 500
    said = capsys.readouterr().out
    assert said.count("warning") == 5 and "'Billing', 'billing'" in said
    digests = [audit.audit_split(part, tokenizer, prompt)["sha256"]
               for part in (split, split.select(range(5)))]
    assert digests[0] == found["sha256"] != digests[1]


def test_balancing_repeats_rows_of_rare_classes_alone():
    labels = ["a"] * 7 + ["b"] * 3 + ["c"]
    split = Dataset.from_dict({"text": [str(i) for i in range(11)], "label": labels})
    rows = list(zip(*audit.balance(split, 0).to_dict().values()))
    assert sorted(label for _, label in rows) == ["a"] * 7 + ["b"] * 7 + ["c"] * 7
    assert set(rows) == set(zip(split["text"], split["label"]))


def test_labels_that_the_tokenizer_cannot_tell_apart(tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "token_ids", lambda tokenizer, texts: [[7] for _ in texts])
    prompt = main.make_prompt(tokenizer, ["a", "b"], "Which?", 128)
    with pytest.raises(reading.InputError, match="same to the tokenizer"):
        main.check_prompt(prompt, main.Settings())


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


def test_a_run_with_results_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text("{}")
    assert "choose a new --output-dir" in refuse(capsys, "--output-dir", tmp_path)
    assert (tmp_path / "metrics.json").read_text() == "{}"
    for rest in (["predict", "--texts", "a text"], ["merge", "--output", tmp_path / "new"]):
        assert "check --run" in refuse(capsys, rest[0], "--run", tmp_path, *rest[1:])
    assert "check --resume" in refuse(capsys, "--resume", tmp_path / "elsewhere")


# What this machine can carry


@pytest.mark.parametrize("gpu, native, hip, apple, expected, words", [
    (True, False, None, False, torch.float16, "only emulates"),  # a T4
    (True, True, None, False, torch.bfloat16, "natively"),  # Ampere and later
    (True, True, "6.4", False, torch.bfloat16, "ROCm"),
    (False, False, None, True, torch.float32, "Apple"),
    (False, False, None, False, torch.float32, "CPU"),
])
def test_precision_by_hardware(monkeypatch, gpu, native, hip, apple, expected, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",  # as on a T4, which emulates bfloat16
                        lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    dtype, reason = main.choose_precision()
    assert dtype == expected and words in reason


def test_model_by_hardware(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "HERE", tmp_path)
    local = tmp_path / "data" / "smollm2"
    local.mkdir(parents=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.choose_model(None)[0] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (local / "config.json").touch()
    assert main.choose_model(None)[0] == str(local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    name, reason = main.choose_model(None)
    assert "Llama-3.2-1B" in name and "GPU" in reason
    assert main.choose_model("mine") == ("mine", "it was asked for")


TOKENS = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 4, "pad_token_id": 5}
SMALL = TOKENS | {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
LIKE_LLAMA = SMALL | {"intermediate_size": 128, "num_key_value_heads": 2}


@pytest.mark.parametrize("config, refused", [
    (transformers.Qwen2Config(**LIKE_LLAMA), False),
    (transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, **TOKENS), False),
    (transformers.MistralConfig(sliding_window=8, **LIKE_LLAMA), True),
    (transformers.MistralConfig(sliding_window=64, **LIKE_LLAMA), False),
    (transformers.FalconConfig(alibi=True, **SMALL), True),  # its positions come from the mask
    (transformers.Lfm2Config(layer_types=["conv", "full_attention"], **LIKE_LLAMA), True),
    (transformers.MambaConfig(state_size=4, **SMALL), True),
], ids=lambda value: getattr(value, "model_type", ""))
def test_other_architectures_work_or_are_refused(tmp_path, tokenizer, capsys, config, refused):
    transformers.set_seed(0)
    folder, file = tmp_path / "model", tmp_path / "data.csv"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file.write_text(ROWS)
    argv = ["--model", folder, "--no-quantize", "--data", file, "--epochs", "1", "--output-dir",
            tmp_path / "run"]
    if refused:
        assert "--model" in refuse(capsys, *argv)
        return
    assert main.main([str(argument) for argument in argv]) == 0
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert kept["max_length"] == min(512, getattr(config, "sliding_window", None) or 512)


def pickled(folder, trace):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def with_code(folder, trace):
    classes = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (folder / "mine.py").write_text(f"open({str(trace)!r}, 'w')")


@pytest.mark.parametrize("damage", [pickled, with_code])
def test_weights_come_from_safetensors_and_code_from_nowhere(tmp_path, random_llama, capsys,
                                                             damage):
    folder, file, trace = tmp_path / "model", tmp_path / "data.csv", tmp_path / "trace"
    shutil.copytree(random_llama, folder)
    damage(folder, trace)
    file.write_text(ROWS)
    said = refuse(capsys, "--model", folder, "--data", file, "--output-dir", tmp_path / "run")
    assert "check --model" in said and not trace.exists()


STORIES = ROOT.parent / "shared" / "models" / "stories260K"


@pytest.mark.skipif(not STORIES.is_dir(), reason="the model is not here")
@pytest.mark.parametrize("quantize", [True, False])
def test_a_llama_of_odd_widths_learns(tmp_path, quantize):
    """Its layers are not multiples of what 4-bit kernels for CPUs ask for."""
    file, folder = tmp_path / "data.csv", tmp_path / "run"
    file.write_text(ROWS)
    argv = ["--model", STORIES, "--data", file, "--epochs", "1", "--rank", "4", "--output-dir",
            folder, *([] if quantize else ["--no-quantize"])]
    assert main.main([str(argument) for argument in argv]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["systems"]["fine_tuned"]["n"] == 8


def test_help_is_quick_and_does_not_load_the_libraries():
    done = subprocess.run([sys.executable, "-X", "importtime", ROOT / "main.py", "--help"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "--learning-rate" in done.stdout
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert "settings" in loaded
    assert not loaded & {"torch", "datasets", "sklearn", "matplotlib", "trl", "peft"}
