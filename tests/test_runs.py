"""What a run keeps is whole, is its own and is found again; where it is not, one line says so."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
from conftest import ROOT, read_rows, write_rows
from matplotlib import font_manager
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import keeping
import llama
import main
import reporting

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def refuse(capsys, *arguments):
    """Run the program, which refuses; what it says in one line."""
    capsys.readouterr()
    assert main.main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: ") and error.count("\n") == 1, error
    return error


def uses(folder, new):
    """The commands that read a finished run: each is refused alike where it is damaged."""
    return [["predict", "--run", folder, "--texts", "a text"],
            ["merge", "--run", folder, "--output", new]]


def answer(capsys, folder, *arguments):
    """The probability that predict prints for one text."""
    capsys.readouterr()
    assert main.main(["predict", "--run", str(folder), *arguments, "--texts", "my bill"]) == 0
    return json.loads(capsys.readouterr().out)["p_a"]


def set_settings(folder, **changes):
    path = folder / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(tmp_path, finished):
    """A copy of a finished run, with a copy of its base model."""
    folder, base = tmp_path / "copied", tmp_path / "base"
    shutil.copytree(finished, folder)
    shutil.copytree(json.loads((finished / "settings.json").read_text())["model"], base)
    set_settings(folder, model=str(base))
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, arguments):
    """The place of a run that was stopped at its first checkpoint, of its model and its data."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(arguments[1], place / "base")
    shutil.copytree(arguments[3], place / "data")
    with pytest.MonkeyPatch.context() as patch:
        def on_save(*_, mark=main.MarkComplete.on_save, **rest):
            mark(*_, **rest)
            raise KeyboardInterrupt

        patch.setattr(main.MarkComplete, "on_save", on_save)
        patch.setattr(main, "judge_base_model", lambda *_: {})
        assert main.main([*arguments, "--model", str(place / "base"), "--data", str(place / "data"),
                          "--output-dir", str(place / "run")]) == 130
    return place


@pytest.fixture
def place(tmp_path, stopped, monkeypatch):
    """A copy of it; a run that is resumed there ends where training would begin."""
    monkeypatch.setattr(main, "judge_base_model", lambda *_: sys.exit("training begins"))
    copy = tmp_path / "stopped"
    shutil.copytree(stopped, copy)
    set_settings(copy / "run", model=str(copy / "base"), data=str(copy / "data"))
    return copy


def resumes(*arguments):
    with pytest.raises(SystemExit, match="training begins"):
        main.main([str(argument) for argument in arguments])
    return True


# One run in one folder


def test_a_run_is_not_resumed_while_it_lives(tmp_path, arguments, monkeypatch, capsys):
    """Whether it was new or resumed itself; afterwards it is."""
    folder, codes = tmp_path / "run", []

    def score(*_):
        codes.append(main.main(["--resume", str(folder)]))
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "judge_base_model", score)
    assert main.main([*arguments, "--output-dir", str(folder)]) == 130
    assert main.main(["--resume", str(folder)]) == 130
    assert codes == [1, 1]
    assert capsys.readouterr().err.count(f"error: the run in {folder} still lives") == 2


def test_a_killed_process_lets_go_of_its_run(place, capsys):
    reading, writing = os.pipe()
    if not (child := os.fork()):
        with keeping.alone_in(place / "run"):
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


@pytest.mark.parametrize("litter", [".DS_Store", "Thumbs.db", "lost+found"])
def test_a_folder_with_litter_is_empty(tmp_path, arguments, capsys, litter):
    """A run may begin in it, and one that never began leaves it as it was."""
    (tmp_path / litter).write_text("kept")
    for _ in range(2):
        assert "no column 'team'" in refuse(capsys, *arguments, "--label-column", "team",
                                            "--output-dir", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [litter]


def test_litter_does_not_damage_a_checkpoint(place, capsys):
    (place / "run" / "checkpoint-2" / ".DS_Store").write_text("")
    shutil.copytree(place / "run" / "checkpoint-2", place / "run" / "checkpoint-2 copy")
    assert keeping.newest_checkpoint(place / "run").name == "checkpoint-2"
    assert not capsys.readouterr().out


# The base model is half of a classifier


def other_weights(base):
    weights = load_file(base / "model.safetensors")
    save_file({name: weight * 1.1 for name, weight in weights.items()},
              base / "model.safetensors", {"format": "pt"})


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


HUB = """
import json, os, pathlib, sys
sys.path.insert(0, "tests")
from hub import Hub
first, second, data, place = sys.argv[1:]
with Hub(models={"someone/tiny": {"main": first}}) as hub:
    surroundings = hub.environment(place + "/home")
    os.environ.clear()
    os.environ.update(surroundings)
    import main
    codes = [main.main(["--model", "someone/tiny", "--data", data, "--epochs", "1", "--rank", "4",
                        "--output-dir", place + "/run"])]
    hub.repositories["models"]["someone/tiny"] = {"main": second, "before": first}
    for asked in ([], ["--model", first], ["--model", "someone/tiny"], ["--model", second]):
        codes.append(main.main(["predict", "--run", place + "/run", "--texts", "a text", *asked]))
print(json.dumps(codes))
"""


def test_a_model_on_the_hub_is_loaded_as_it_was(tmp_path, random_llama, arguments):
    """Its branch moves on; its files are the same in a folder."""
    shutil.copytree(random_llama, tmp_path / "second")
    other_weights(tmp_path / "second")
    done = subprocess.run([sys.executable, "-c", HUB, random_llama, tmp_path / "second",
                           arguments[3], tmp_path], cwd=ROOT, capture_output=True, text=True,
                          timeout=200)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, 0, 0, 1], done.stderr
    assert "second is not what it was when the run began" in done.stderr
    commit = json.loads((tmp_path / "run" / "settings.json").read_text())["revision"]
    adapter = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert len(commit) == 40 and adapter["revision"] == commit


# Places that have moved


def test_a_base_model_that_has_moved_is_named(tmp_path, copied, capsys):
    before = answer(capsys, copied)
    (tmp_path / "base").rename(tmp_path / "moved")
    for command in uses(copied, tmp_path / "new"):
        assert "check --model" in refuse(capsys, *command)
        assert main.main([*map(str, command), "--model", str(tmp_path / "moved")]) == 0
    assert answer(capsys, copied, "--model", str(tmp_path / "moved")) == before


def test_the_model_of_the_checkout_is_found_wherever_that_is(tmp_path, copied, place, capsys,
                                                             monkeypatch):
    before = answer(capsys, copied)
    own = tmp_path / "checkout" / "data"
    shutil.copytree(tmp_path / "base", own / "smollm2")
    shutil.copytree(place / "data", own / "patient-messages")
    monkeypatch.setattr(keeping, "HERE", tmp_path / "checkout")
    gone = {"model": "/gone/data/smollm2", "data": "/gone/data/patient-messages"}
    for folder in (copied, place / "run"):
        set_settings(folder, **gone)
    assert answer(capsys, copied) == before
    assert resumes("--resume", place / "run")
    other_weights(own / "smollm2")
    assert "is not what it was" in refuse(capsys, *uses(copied, "new")[0])


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


def test_a_run_is_not_a_model(tmp_path, finished, arguments, place, capsys):
    model = ["--model", finished]
    for command in (["--output-dir", tmp_path / "run", *arguments], ["--resume", place / "run"],
                    *uses(finished, tmp_path / "new")):
        assert f"main.py merge --run {finished}" in refuse(capsys, *command, *model)


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def point(path):
    path.write_text(POINTER)


def nonsense(path):
    path.write_text("[1, 2]")


DAMAGES = [Path.unlink, cut, empty, point, nonsense]
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


def test_a_damaged_chat_template_costs_one_line(tmp_path, random_llama, arguments, capsys):
    shutil.copytree(random_llama, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages")
    assert str(tmp_path / "base") in refuse(capsys, *arguments, "--model", tmp_path / "base",
                                            "--output-dir", tmp_path / "run")


@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, point])
def test_lost_predictions_cost_one_line(tmp_path, copied, capsys, damage):
    damage(copied / "predictions.csv")
    error = refuse(capsys, *uses(copied, tmp_path / "new")[1])
    assert f"{copied / 'predictions.csv'} is " in error and "--" not in error
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


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_checkpoint_is_worth_nothing_without_the_best_adapter(place, capsys, damage):
    """If validation was scored before it: training starts at an earlier one, or anew."""
    run, state = place / "run", place / "run" / "checkpoint-2" / "trainer_state.json"
    assert keeping.newest_checkpoint(run)
    content = json.loads(state.read_text())
    content["log_history"].append({"validation_loss": 1.0})
    state.write_text(json.dumps(content))
    keeping.write_json(state.parent / "complete.json", keeping.digests([state]))
    save_file({"weight": torch.zeros(100)}, run / keeping.BEST)
    assert keeping.newest_checkpoint(run)
    damage(run / keeping.BEST)
    assert keeping.newest_checkpoint(run) is None
    assert "checkpoint-2 is incomplete or damaged: skipped" in capsys.readouterr().out


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


def test_a_model_stored_in_four_bits(tmp_path, random_llama, tokenizer, arguments, capsys,
                                     recwarn):
    """It is trained as it is, used and merged, but not taken for one in full precision."""
    base, run, merged = tmp_path / "base", tmp_path / "run", tmp_path / "merged"
    llama.load_model(random_llama, torch.bfloat16).save_pretrained(base)
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


def test_a_model_stored_in_another_quantized_form_is_refused(tmp_path, random_llama, arguments,
                                                             capsys):
    shutil.copytree(random_llama, tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    for more in ([], ["--no-quantize"]):
        assert "is stored as gptq: choose a --model" in refuse(
            capsys, *arguments, "--model", tmp_path / "base", "--output-dir", tmp_path / "r", *more)


# What is given and what is written


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


@pytest.mark.parametrize("arguments", [
    ["predict", "--run", "r", "--texts", "caf\udce9"], ["--instruction", "\udcff", "--rank", "4"],
    ["--seed", "1790000000000"], ["--seed", "-1"], ["--rank", "3", "--resume", "r"],
    ["predict", "--run", "r", "--texts", "a", "--threshold", "80"],
    ["predict", "--run", "r", "--texts", "a", "--threshold", "nan"]])
def test_what_cannot_be_used_is_refused_before_anything_else(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("main.py")


def test_other_columns_come_first_in_the_answers(tmp_path, finished, capsys):
    rows = [("0017", "my bill", "é"), ("0018", "a visit", "")]
    write_rows(tmp_path / "a.csv", ["id", "text", "note"], rows)
    ask = ["predict", "--run", str(finished), "--data", str(tmp_path / "a.csv")]
    assert main.main([*ask, "--output", str(tmp_path / "out.csv")]) == 0
    answers = read_rows(tmp_path / "out.csv")
    assert list(answers[0])[:4] == ["id", "text", "note", "predicted"]
    assert [tuple(answer.values())[:3] for answer in answers] == rows


def test_a_place_that_cannot_be_written_is_refused_before_the_work(finished, capsys):
    for command in uses(finished, "/proc/new"):
        assert "name another --output" in refuse(capsys, *command, "--output", "/proc/new.csv")


# Surroundings


def test_a_narrow_output_whose_reader_leaves_and_no_home(tmp_path, finished):
    """As `| head -1` does at the command line: JSON comes, and then nothing more is said."""
    write_rows(tmp_path / "a.csv", ["text", "long"], [["日本 🙂 é", "x" * 50_000]] * 8)
    gone = {"HOME": "/dev/null/none", "PYTHONIOENCODING": "latin-1"}
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("HF_", "MPL", "XDG"))}
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "predict", "--run", finished, "--data",
         tmp_path / "a.csv"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept | gone)
    line = process.stdout.readline()
    process.stdout.close()
    assert json.loads(line.decode("ascii"))["text"] == "日本 🙂 é"
    assert process.stderr.read() == b"" and process.wait(60) == 141


def test_a_reader_that_left_before_the_first_line(monkeypatch, capsys):
    """Little is said, and it would only be written when the process ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(main, "predict", lambda settings: print("an answer"))
        assert main.main(["predict", "--run", "r", "--texts", "a"]) == 141


def test_any_text_can_be_printed(monkeypatch):
    """To an output that has no character for it, and which is afterwards as it was."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(main, "predict", lambda settings: print("账 é"))
    assert main.main(["predict", "--run", "r", "--texts", "a"]) == 0
    assert out.buffer.getvalue() == b"\\u8d26 \\xe9\n" and out.errors == "strict"


def test_the_program_runs_in_a_thread(finished, capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(
        main.main(["predict", "--run", str(finished), "--texts", "a text"])))
    thread.start()
    thread.join()
    assert codes == [0] and json.loads(capsys.readouterr().out)["text"] == "a text"


CACHE = """
import json, os, sys
sys.path.insert(0, "tests")
from hub import Hub
model, data, place = sys.argv[1:]
models, datasets = {"someone/tiny": {"main": model}}, {"someone/data": {"main": data}}
with Hub(models, datasets) as hub:
    surroundings = hub.environment("/dev/null/none")
    os.environ.clear()
    os.environ.update(surroundings)
    import main
    for asked in (["--model", "someone/tiny", "--data", data], ["--data", "someone/data"]):
        main.main([*asked, "--output-dir", place + "/run"])
"""


def test_a_cache_that_cannot_be_written_is_named(tmp_path, random_llama, arguments):
    done = subprocess.run([sys.executable, "-c", CACHE, random_llama, arguments[3], tmp_path],
                          cwd=ROOT, capture_output=True, text=True, timeout=200)
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "downloads cannot be kept in /dev/null/none" in line and "set HF_HOME" in line


@pytest.mark.filterwarnings("error")
def test_labels_of_any_script_are_drawn(tmp_path, monkeypatch, capfd):
    """Without a warning where no font has them, not as formulas, not over the whole picture."""
    labels = ["账单问题", "🙂 emoji", "$5 or $6", "a_b^2 \\alpha", "\\$", "two\nlines",
              "long " * 100, "é"]
    picture = Path(reporting.draw_confusion(labels, labels, labels, tmp_path / "a.png"))
    pixels = matplotlib.image.imread(picture)
    blue = (pixels[..., 2] > pixels[..., 0] + 0.1).mean()
    assert blue > 0.02 and capfd.readouterr().err == ""


def test_a_font_that_has_the_characters_is_used():
    usual, *more = reporting.find_fonts("abc é")
    assert not more
    found, [other] = "\u20d2", reporting.find_fonts("abc \u20d2")[1:]  # a mathematical sign
    path = font_manager.findfont(other, fallback_to_default=False)
    assert ord(found) in font_manager.get_font(path).get_charmap()
