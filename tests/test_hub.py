"""Models and datasets from the hub, here a local one (hub.py): what loads, what is said if not."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import ROOT, command, other_weights, write_rows
from hub import Hub
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Runs main.main for each list of arguments in a child of its own, all at once and after a single
# import, which is the slow part. A child's stderr goes to a file by its descriptor, so that what
# libraries log is in it too. No child outlives the limit.
DRIVER = """
import json, os, pathlib, signal, sys, traceback
import main
folder, limit, children = pathlib.Path(sys.argv[1]), float(sys.argv[2]), []
for number, arguments in enumerate(json.loads(sys.argv[3])):
    child = os.fork()
    if not child:
        code = 1
        try:
            for descriptor, name in ((1, f"{number}.out"), (2, f"{number}.err")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
            signal.setitimer(signal.ITIMER_REAL, limit)
            code = main.main(arguments)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    children.append(child)
ends = {}
while len(ends) < len(children):
    child, status = os.wait()
    ends[child] = os.waitstatus_to_exitcode(status)
print(json.dumps([{"code": ends[child], "error": (folder / f"{number}.err").read_text()}
                  for number, child in enumerate(children)]))
"""
PATIENCE = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}  # seconds; usually 10
LIMIT = 60  # seconds after which a case is killed (exit code -14)
CONFIGS = "--data-config.*plain.*other|plain.*other.*--data-config"
# What is asked for, and what the one line must say (a pattern).
ONLINE = {
    "gated model": (["--model", "someone/gated"], "licence|access"),
    "gated model, no login": (["--model", "someone/gated-login"], "log in"),
    "private model": (["--model", "someone/private"], "log in"),  # as if it did not exist
    "expired login": (["--model", "someone/expired"], "log in"),
    "unknown model": (["--model", "someone/unknown"], "check --model"),
    "unknown revision": (["--model", "someone/tiny", "--revision", "v9"], "--revision"),
    "hub down": (["--model", "someone/down"], "try again"),
    "hub busy": (["--model", "someone/busy"], "try again"),
    "silent hub": (["--model", "someone/silent"], "try again"),
    "half a model": (["--model", "someone/cut"], "again"),
    "gated data": (["--data", "someone/gated"], "licence|access"),
    "gated data, no login": (["--data", "someone/gated-login"], "log in"),
    "private data": (["--data", "someone/private"], "log in"),
    "expired login, data": (["--data", "someone/expired"], "log in"),
    "unknown data": (["--data", "someone/unknown"], "check --data"),
    "unknown data revision": (
        ["--data", "someone/messages", "--data-config", "plain", "--data-revision", "v9"],
        "--data-revision"),
    "no config named": (["--data", "someone/messages"], CONFIGS),
    "unknown config": (["--data", "someone/messages", "--data-config", "none"], CONFIGS),
    "data hub down": (["--data", "someone/down"], "try again"),
    "data hub busy": (["--data", "someone/busy"], "try again"),
    "silent data hub": (["--data", "someone/silent"], "try again"),
    "half the data": (["--data", "someone/cut", "--data-config", "plain"], "again"),
}
OFFLINE = {  # HF_HUB_OFFLINE=1, and nothing in the cache
    "model offline": (["--model", "someone/tiny"], "HF_HUB_OFFLINE"),
    "data offline": (["--data", "someone/messages"], "HF_HUB_OFFLINE"),
}
UNREACHABLE = {  # nobody listens at HF_ENDPOINT, as where there is no network
    "no network": (["--model", "someone/tiny"], "try again"),
    "no network, data": (["--data", "someone/messages"], "try again"),
}
CARD = """---
configs:
- config_name: plain
  data_files: plain.csv
- config_name: other
  data_files: other.csv
---
A card.
"""


@pytest.fixture(scope="module")
def folders(random_llama, tmp_path_factory):
    """Two revisions of a model and of a dataset with two configurations, as the hub keeps them."""
    place = tmp_path_factory.mktemp("repositories")
    model = AutoModelForCausalLM.from_pretrained(random_llama)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(place / "model-v1")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (place / "model-v1" / file).write_bytes((type(place)(random_llama) / file).read_bytes())
    for revision in ("main", "v1"):
        (place / f"data-{revision}").mkdir()
        for config in ("plain", "other"):
            rows = [[f"{config} text {i} of {revision}", "ab"[i % 2]] for i in range(40)]
            write_rows(place / f"data-{revision}" / f"{config}.csv", ["text", "label"], rows)
        (place / f"data-{revision}" / "README.md").write_text(CARD)
    return {"model": {"main": random_llama, "v1": place / "model-v1"},
            "data": {"main": place / "data-main", "v1": place / "data-v1"}}


@pytest.fixture(scope="module")
def hub(folders):
    def named(kind, name):
        return {f"someone/{each}": folders[kind] for each in (name, "cut", "gated", "gated-login")}

    with Hub(models=named("model", "tiny"), datasets=named("data", "messages")) as hub:
        yield hub


@pytest.fixture(scope="module")
def outcomes(hub, folders, tmp_path_factory):
    """Exit code and stderr of every case, in three surroundings, each in a process of its own."""
    with Hub() as gone:
        pass
    running = []
    for cases, surroundings in ((ONLINE, {}), (OFFLINE, {"HF_HUB_OFFLINE": "1"}),
                                (UNREACHABLE, {"HF_ENDPOINT": gone.url})):
        place = tmp_path_factory.mktemp("cases")
        local = ["--data", str(folders["data"]["main"] / "plain.csv")]  # a later --data wins
        arguments = [[*local, *asked, "--output-dir", str(place / f"run{i}")]
                     for i, (asked, _) in enumerate(cases.values())]
        running.append((cases, subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(place), str(LIMIT), json.dumps(arguments)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE,
            env=hub.environment(place / "home", **PATIENCE | surroundings))))
    return {name: outcome for cases, process in running
            for name, outcome in zip(cases, json.loads(process.communicate(timeout=280)[0]))}


@pytest.mark.parametrize("case", [*ONLINE, *OFFLINE, *UNREACHABLE])
def test_a_failure_is_one_line_that_says_what_to_do(outcomes, case):
    (asked, pattern), outcome = (ONLINE | OFFLINE | UNREACHABLE)[case], outcomes[case]
    assert outcome["code"] == 1, outcome
    assert outcome["error"].startswith("main.py: error: "), outcome
    assert outcome["error"].count("\n") == 1, outcome
    assert asked[1] in outcome["error"] and re.search(pattern, outcome["error"]), outcome


LOAD = """
import json
import torch
from day9.loading import find_model
from day9.model import load_model
from day9.prompts import load_tokenizer
from day9.reading.splits import load_splits
found = []
for revision in (None, "v1"):
    folder = str(find_model("someone/tiny", revision))
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, torch.float32, quantize=False)
    texts = {}
    for name in ("plain", "other"):
        splits = load_splits("someone/messages", config=name, revision=revision)
        texts[name] = sorted(text for split in splits.values() for text in split["text"])
    weight = model.get_input_embeddings().weight.double().sum().item()
    found.append([len(tokenizer), model.config.hidden_size, weight, texts])
print(json.dumps(found))
"""


def test_models_and_data_load_from_the_hub(hub, folders, tokenizer, tmp_path):
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=ROOT, env=hub.environment(tmp_path),
                          text=True, capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for revision, (tokens, width, weight, texts) in zip(("main", "v1"), found, strict=True):
        stored = load_file(f"{folders['model'][revision]}/model.safetensors")
        whole = stored["model.embed_tokens.weight"].double().sum().item()
        assert (tokens, width) == (len(tokenizer), 64) and weight == pytest.approx(whole)
        assert texts == {name: sorted(f"{name} text {i} of {revision}" for i in range(40))
                         for name in ("plain", "other")}


HUB = """
import json, os, sys
sys.path.insert(0, "tests")
from hub import Hub
first, second, data, place = sys.argv[1:]
with Hub(models={"someone/tiny": {"main": first}}) as hub:
    surroundings = hub.environment(place + "/home")
    os.environ.clear()
    os.environ.update(surroundings)
    import main
    began, train = [], main.train
    def note(*arguments):
        began.append(len(hub.requests))
        return train(*arguments)
    main.train = note
    codes = [main.main(["--model", "someone/tiny", "--data", data, "--epochs", "1", "--rank", "4",
                        "--checkpoint-steps", "1", "--output-dir", place + "/run"])]
    asked = hub.requests[:]
    hub.repositories["models"]["someone/tiny"] = {"main": second, "before": first}
    for more in ([], ["--model", first], ["--model", "someone/tiny"], ["--model", second]):
        codes.append(main.main(["predict", "--run", place + "/run", "--texts", "a text", *more]))
print(json.dumps([codes, began, asked]))
"""


@pytest.fixture(scope="module")
def hub_run(tmp_path_factory, random_llama, arguments):
    """A run with a model on the hub, whose branch then moves on, and predictions with it.

    Its folder, exit codes, the number of requests until training began, all until it ended, and
    stderr.
    """
    place = tmp_path_factory.mktemp("hub-run")
    shutil.copytree(random_llama, place / "second")
    other_weights(place / "second")
    done = command("-c", HUB, random_llama, place / "second", arguments[3], place, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return place / "run", *json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_model_on_the_hub_is_loaded_as_it_was(hub_run):
    """Its files are the same in a folder."""
    run, codes, _, _, error = hub_run
    assert codes == [0, 0, 0, 0, 1], error
    assert "second is not what it was when the run began" in error
    commit = json.loads((run / "settings.json").read_text())["revision"]
    adapter = json.loads((run / "adapter_config.json").read_text())
    assert len(commit) == 40 and adapter["revision"] == commit


def test_the_hub_is_asked_for_each_file_once_and_not_while_training(hub_run):
    """peft would ask for config.json at each save of an adapter, of a model that has a name."""
    _, _, [began], asked, _ = hub_run
    assert len(asked) == began, asked[began:]
    question, *others = asked  # whether the hub answers
    assert question == "HEAD /someone/tiny/resolve/main/config.json"
    files = Counter((request.split()[0], request.split("/")[-1]) for request in others)
    assert files["GET", "config.json"] == 1 and max(files.values()) == 1, asked


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
