"""The whole program on a GPU that is not there: `pretend_gpu` says what that can find."""

import os
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, after_checkpoint, forks, read_rows, write_rows
from pretend_gpu import UNSCALE, PretendGpu, pretend
from safetensors.torch import load_file
from trl import SFTTrainer

import main
from day9 import loading
from day9.settings import SMALL_EMBEDDER
from tools.document import README, demonstrations


def on_gpu(work, log, native, memory, gpus):
    """Do the work in a process where torch has GPUs; all that it prints goes to a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if native:  # bfloat16 is for a model that float16 does not hold
        loading.overflows = lambda *_: True
    with pretend(native, memory, gpus):
        work()


def rehearse(work, log, precision, memory=15e9, gpus=1):
    """What the work prints on a GPU of such a precision. Fails where it fails."""
    process = forks.Process(
        target=on_gpu, args=(work, str(log), precision == "bfloat16", memory, gpus))
    process.start()
    process.join(300)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, Path(log).read_text()
    return Path(log).read_text()


def live(arguments, folder, scaled):
    """A run is interrupted, resumed and used; float16's gradients are scaled."""
    run = str(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        after_checkpoint(2)(patch)
        assert main.main([*arguments, "--output-dir", run]) == 130
    assert (folder / "run" / "checkpoint-2" / "scaler.pt").exists() == scaled
    for line in (["--resume", run], ["predict", "--run", run, "--texts", "my bill"],
                 ["merge", "--run", run, "--output", str(folder / "merged")]):
        assert main.main(line) == 0, line


@pytest.mark.parametrize("precision, options, memory, gpus", [
    ("float16", ["--pass-tokens", "32"], 15e9, 2), ("float16", ["--no-quantize"], 1e6, 1),
    ("bfloat16", ["--pass-tokens", "32"], 1e6, 1), ("bfloat16", ["--no-quantize"], 15e9, 2)])
def test_the_program_runs_on_a_gpu(tmp_path, arguments, precision, options, memory, gpus):
    """With several passes for a batch or one; where memory is scarce, layers are computed again.

    Of two GPUs one process uses one.
    """
    work = partial(live, [*arguments, *options, "--epochs", "1"], tmp_path, precision == "float16")
    said = rehearse(work, tmp_path / "log", precision, memory, gpus)
    wanted = {"float16": "torch.float16 arithmetic", "bfloat16": "torch.bfloat16 instead"}
    assert wanted[precision] in said and "resuming from" in said
    assert ("activations computed again" in said) == (memory < 1e9)
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def two_steps(trainer, begin, *, args, **more):
    args.max_steps = 2
    begin(trainer, args=args, **more)


def first_act(folder):
    """Its demonstrations in their order: the tiny Llama in place of the small, few questions."""
    (folder / "outputs").mkdir()
    (folder / "data" / "health-questions").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        path = f"data/health-questions/{split}.csv"
        rows = read_rows(ROOT / path)[:60]
        write_rows(folder / path, [*rows[0]], [row.values() for row in rows])
    for name, there in (("data/smollm2", TINY), ("data/minilm", SMALL_EMBEDDER),
                        ("outputs/overfit.json", ROOT / "outputs" / "overfit.json")):
        (folder / name).symlink_to(there)
    os.chdir(folder)
    SFTTrainer.__init__ = partialmethod(two_steps, SFTTrainer.__init__)
    shown, names = demonstrations(README.read_text(encoding="utf-8")), {"__name__": "__main__"}
    for block in shown:
        if block.act == shown[0].act:
            print(f"{block.where}:", flush=True)
            body = block.body.replace("range(320)", "range(40)")
            exec(compile(body, block.where, "exec"), names)


def test_the_first_act_runs_on_a_gpu(tmp_path):
    assert rehearse(partial(first_act, tmp_path), tmp_path / "log", "float16").count("line ") > 10


@pytest.mark.parametrize("wrong", [
    lambda here, there: here + there, lambda here, there: torch.cat([there.view(1, 2), here[None]]),
    lambda here, there: there.cpu() + there, lambda here, there: here[there.long()],
    lambda here, there: there.numpy(), lambda here, there: np.asarray(there[:1]),
    lambda here, there: getattr(torch, UNSCALE)(
        [there.bfloat16()], there.new_zeros(1), there.new_ones(1))])
def test_what_cuda_refuses_is_refused(wrong):
    with PretendGpu():
        here, there = torch.ones(2), torch.ones(2, device="cuda", requires_grad=True)
        (there[torch.tensor([0, 1])] * torch.tensor(3) + here.to("cuda")).sum().backward()
        assert str(there.grad.device) == "cuda:0" and there.grad.cpu().tolist() == [3, 3]
        assert (there.to("cpu") + here).device.type == "cpu" and here.device.type == "cpu"
        with pytest.raises((RuntimeError, TypeError), match="pretended CUDA"):
            wrong(here, there.detach())
