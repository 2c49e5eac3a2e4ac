"""Base models: which, whether they can do the work, and whether they are what they were."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import (DAMAGES, ROOT, ROWS, answer, nonsense, other_weights, plain_model,
                      point, refuse, resumes, set_settings, uses)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import main
from day9 import loading
from day9.classifier import Classifier
from day9.errors import InputError
from day9.layout import lay_out
from day9.loading import check_prompt, check_scoring, choose_model, choose_precision
from day9.model import load_model
from day9.prompts import load_tokenizer, make_prompt
from day9.settings import Settings


@pytest.mark.parametrize("gpu, hip, apple, expected, words", [
    (True, None, False, torch.float16, "GPU"), (True, "6.4", False, torch.float16, "ROCm"),
    (False, None, True, torch.float32, "Apple"), (False, None, False, torch.float32, "CPU")])
def test_precision_by_hardware(monkeypatch, gpu, hip, apple, expected, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)
    dtype, reason = choose_precision()
    assert dtype == expected and words in reason


@pytest.mark.parametrize("factor, expected", [(1, torch.float16), (1e7, torch.bfloat16)])
def test_a_model_that_overflows_in_float16_computes_in_bfloat16(random_llama, tmp_path, monkeypatch,
                                                                capsys, factor, expected):
    shutil.copytree(random_llama, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"] *= factor
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr(loading, "choose_precision", lambda: (torch.float16, "of a GPU"))
    settings = Settings(model=str(tmp_path / "base"), quantize=False)
    model, *_ = loading.load_files(settings)
    assert model.dtype == expected
    assert ("overflows in float16" in capsys.readouterr().out) == (factor > 1)


def test_model_by_hardware(monkeypatch, tmp_path):
    local = tmp_path / "smollm2"
    local.mkdir()
    monkeypatch.setattr("day9.loading.SMALL_LLAMA", local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_model(None)[0] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (local / "config.json").touch()
    assert choose_model(None)[0] == str(local)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    name, reason = choose_model(None)
    assert "Llama-3.2-1B" in name and "GPU" in reason
    assert choose_model("mine") == ("mine", "it was asked for")


def test_labels_that_the_tokenizer_cannot_tell_apart(tokenizer, monkeypatch):
    monkeypatch.setattr("day9.prompts.token_ids", lambda tokenizer, texts: [[7] for _ in texts])
    prompt = make_prompt(tokenizer, ["a", "b"], "Which?", 128)
    with pytest.raises(InputError, match="same to the tokenizer"):
        check_prompt(prompt, Settings())


def see_everything(monkeypatch, model):
    def without_mask(*arguments):
        layout = lay_out(*arguments)
        return layout | {"attention_mask": torch.ones_like(layout["attention_mask"])}

    monkeypatch.setattr("day9.classifier.lay_out", without_mask)


def misplace_one_label(monkeypatch, model):
    """The tokens of the longest label stand at position 0, after every text."""
    def misplaced(prompts, completions, trunk=0):
        layout = lay_out(prompts, completions, trunk)
        lengths = [len(completion) for completion in completions]
        wrong = max(completions, key=len)
        for completion, sources in zip(completions, layout["sources"].split(lengths)):
            if completion == wrong:
                layout["position_ids"][0, sources[1:]] = 0
        return layout

    monkeypatch.setattr("day9.classifier.lay_out", misplaced)


def forget_positions(monkeypatch, model):
    monkeypatch.setattr("day9.classifier.lay_out", lambda *arguments: (
        layout := lay_out(*arguments)) | {"position_ids": layout["position_ids"] * 0})


@pytest.mark.parametrize("damage", [see_everything, misplace_one_label, forget_positions])
def test_a_model_that_ignores_the_layout_is_refused(random_llama, tokenizer, prompt, monkeypatch,
                                                    damage):
    model = plain_model(random_llama)
    classifier = Classifier(model, tokenizer, prompt)
    check_scoring(classifier)
    damage(monkeypatch, model)
    with pytest.raises(InputError, match="a llama model cannot score labels in one pass"):
        check_scoring(classifier)


BANKING = ["Refund_not_showing_up", "card_payment_wrong_exchange_rate", "pin_blocked",
           "wrong_exchange_rate_for_cash_withdrawal"]  # labels of banking77
LONG = [f"The person who writes wants to be called by the {team} desk, in the new building by the "
        "river, and asks how long this usually takes" for team in ("billing", "heart")]


@pytest.mark.parametrize("labels", [BANKING, LONG])
def test_rounding_in_16_bits_is_no_reason_to_refuse_a_model(monkeypatch, labels):
    """But a label laid out wrongly is."""
    tokenizer = load_tokenizer(str(loading.SMALL_LLAMA))
    model = load_model(str(loading.SMALL_LLAMA), torch.bfloat16, quantize=False)
    prompt = make_prompt(tokenizer, labels, "Which?", 256)
    check_scoring(Classifier(model, tokenizer, prompt))
    misplace_one_label(monkeypatch, model)
    with pytest.raises(InputError, match="cannot score labels in one pass"):
        check_scoring(Classifier(model, tokenizer, prompt))


@pytest.mark.parametrize("error", [
    RuntimeError("CUDA error: an illegal memory access was encountered"), KeyError("a name"),
    AssertionError("a fault of the program")], ids=lambda error: type(error).__name__)
def test_other_errors_are_not_blamed_on_the_model(arguments, monkeypatch, tmp_path, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("day9.loading.score_labels", fail)
    with pytest.raises(type(error)) as caught:
        main.main([*arguments, "--output-dir", str(tmp_path / "run")])
    assert caught.value is error


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


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json",
                                  "tokenizer_config.json"])
def test_a_damaged_base_model_costs_one_line(tmp_path, random_llama, arguments, capsys, name,
                                             damage):
    shutil.copytree(random_llama, tmp_path / "base")
    damage(tmp_path / "base" / name)
    error = refuse(capsys, *arguments, "--model", tmp_path / "base", "--output-dir",
                   tmp_path / "run")
    assert str(tmp_path / "base") in error and not (tmp_path / "run").exists()
    assert ("git lfs pull" in error) == (damage is point)
    assert name in error or damage in (Path.unlink, nonsense) or "safetensors" in name


def test_a_damaged_chat_template_costs_one_line(tmp_path, random_llama, arguments, capsys):
    shutil.copytree(random_llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages")
    assert str(tmp_path / "base") in refuse(capsys, *arguments, "--model", tmp_path / "base",
                                            "--output-dir", tmp_path / "run")


@pytest.mark.parametrize("template", [
    "{% for message in messages %}{{ message['content'][0]['image'] }}{% endfor %}",
    "{{ messages[-1]['content'] }}", "{{ raise_exception('no text') }}"])
def test_a_chat_template_that_cannot_write_texts_costs_one_line(tmp_path, random_llama, arguments,
                                                                capsys, template):
    """One of them can write a single message, but no examples before it."""
    shutil.copytree(random_llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(template)
    said = refuse(capsys, *arguments, "--model", tmp_path / "base", "--output-dir", tmp_path / "r")
    assert "its chat template cannot write messages" in said and str(tmp_path / "base") in said


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_file_is_no_model(tmp_path, arguments, capsys, suffix):
    file = tmp_path / f"model{suffix}"
    file.touch()
    said = refuse(capsys, *arguments, "--model", file, "--output-dir", tmp_path / "run")
    assert f"{file} is a file: give for --model the folder" in said and "convert" in said


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path, random_llama, arguments, capsys,
                                                     special):
    """It is refused, unless what the model does not know is a control token that nothing holds."""
    shutil.copytree(random_llama, tmp_path / "base")
    tokenizer = load_tokenizer(random_llama)
    tokenizer.add_tokens(["visit"], special_tokens=special)
    tokenizer.save_pretrained(tmp_path / "base")
    argv = [*arguments, "--epochs", "1", "--model", tmp_path / "base", "--output-dir",
            tmp_path / "run"]
    if special:
        assert main.main([str(argument) for argument in argv]) == 0
    else:
        said = refuse(capsys, *argv)
        assert "has 4,097 tokens" in said and "knows 4,096" in said


def test_a_model_stored_in_another_quantized_form_is_refused(tmp_path, random_llama, arguments,
                                                             capsys):
    shutil.copytree(random_llama, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    for more in ([], ["--no-quantize"]):
        assert "is stored as gptq: choose a --model" in refuse(
            capsys, *arguments, "--model", tmp_path / "base", "--output-dir", tmp_path / "r", *more)


def test_a_run_is_not_a_model(tmp_path, finished, arguments, place, capsys):
    model = ["--model", finished]
    for command in (["--output-dir", tmp_path / "run", *arguments], ["--resume", place / "run"],
                    *uses(finished, tmp_path / "new")):
        assert f"main.py merge --run {finished}" in refuse(capsys, *command, *model)


def other_config(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))


def other_shape(base):
    config = AutoModelForCausalLM.from_pretrained(base).config
    config.hidden_size, config.intermediate_size = 32, 64
    AutoModelForCausalLM.from_config(config).save_pretrained(base)


@pytest.mark.parametrize("change", [other_weights, other_config, other_shape])
def test_another_base_model_at_the_same_place_is_refused(tmp_path, copied, place, capsys, change):
    for base in (tmp_path / "base", place / "base"):
        change(base)
    for command in (*uses(copied, tmp_path / "new"), ["--resume", place / "run"]):
        error = refuse(capsys, *command)
        assert "base is not what it was when the run began" in error and "--model" in error


def test_the_version_of_the_library_is_no_difference(tmp_path, copied, capsys):
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(config | {"transformers_version": "9.0.0"}))
    assert answer(capsys, copied)


def other_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|start_header_id|>", "", 1))


def other_tokens(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:100]
    path.write_text(json.dumps(content))


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize("change", [other_template, other_tokens, no_template])
def test_another_tokenizer_is_refused(tmp_path, copied, place, capsys, change):
    for folder in (copied, place / "base"):
        change(folder)
    for command in (*uses(copied, tmp_path / "new"), ["--resume", place / "run"]):
        assert "is not what it was when the run began" in refuse(capsys, *command)


def test_a_base_model_that_has_moved_is_named(tmp_path, copied, capsys):
    before = answer(capsys, copied)
    (tmp_path / "base").rename(tmp_path / "moved")
    for command in uses(copied, tmp_path / "new"):
        assert "check --model" in refuse(capsys, *command)
        assert main.main([*map(str, command), "--model", str(tmp_path / "moved")]) == 0
    assert answer(capsys, copied, "--model", str(tmp_path / "moved")) == before


# The embedder


def test_a_named_embedder_that_cannot_be_loaded_ends_the_program(tmp_path, arguments, capsys,
                                                                 monkeypatch):
    """Before anything is trained; the default one is left out, and the verdict says so."""
    monkeypatch.setattr(main, "judge_base_model", lambda *_: sys.exit("too late"))
    for name in (str(tmp_path), "someone/unknown", str(ROOT / "README.org")):
        error = refuse(capsys, *arguments, "--embedder", name, "--output-dir", tmp_path / "run")
        assert name in error and "embedder" in error
    assert not (tmp_path / "run").exists()


def test_without_the_default_embedder_a_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "SMALL_EMBEDDER", tmp_path / "nothing")
    embed, digest, settings = loading.load_embedder(Settings())
    assert embed is None and digest is None and settings.embedder == "none"
    assert "warning: the rival `embeddings` is left out: " in capsys.readouterr().out


def test_an_embedder_is_the_one_that_a_run_began_with(place, capsys):
    set_settings(place / "run", embedder=str(ROOT / "data" / "minilm"))
    path = place / "run" / "audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"embedder": "another digest"}))
    error = refuse(capsys, "--resume", place / "run")
    assert "minilm is not what it was when the run began" in error and "--embedder" in error
    assert resumes("--resume", place / "run", "--embedder", "none")  # the verdict will say so
