"""A GPU that is not there, so that a machine without one can run the whole program on it.

A tensor "on the GPU" is one on the CPU whose storage is marked. So everything is computed, views
and files need no care, and torch refuses what it would refuse on CUDA: two devices in one
operation, numpy() of what is on the GPU, gradients in bfloat16 for a GradScaler. Speed, memory,
the GPU's own kernels and several processes are not rehearsed.
"""

import os
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DEVICES = {"cpu": CPU, "cuda": GPU, "cuda:0": GPU}
COPIES = {"to", "copy_", "__set__", "_has_compatible_shallow_copy_type"}  # __set__: of .data
NAMING = {"device", "_parse_to"}  # a device is named, and nothing done there
INDEXING = {"__getitem__", "__setitem__"}
UNSCALE = "_amp_foreach_non_finite_check_and_unscale_"


def home(tensor: torch.Tensor) -> torch.device | None:
    """Where a tensor is said to be; None where autograd made it, or it has no contents."""
    return getattr(tensor.untyped_storage(), "home", None)


def told(tensor: torch.Tensor) -> torch.device:
    """The device that the program sees; what autograd makes is on the GPU."""
    return tensor.device if tensor.is_meta or home(tensor) == CPU else GPU


def refuse(name: str, tensors: list[torch.Tensor], homes: list[torch.device | None]) -> None:
    """Raise what CUDA would raise. A scalar of the CPU may join the GPU's tensors, or indices."""
    if GPU not in homes or name in COPIES:
        return
    strangers = [tensor for tensor, at in zip(tensors, homes) if at == CPU and tensor.dim()]
    if strangers and not (name in INDEXING and homes[0] == GPU):
        raise RuntimeError(f"pretended CUDA: {name} of tensors on cuda:0 and, of the shape "
                           f"{tuple(strangers[0].shape)}, on the CPU")
    if name in ("numpy", "__array__"):
        raise TypeError(f"pretended CUDA: {name} of a tensor on cuda:0, which wants cpu() first")
    if name == UNSCALE and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        raise RuntimeError(f"pretended CUDA: {name} is not implemented for bfloat16")


class PretendGpu(TorchFunctionMode):
    """While it is on, storages remember their device. It holds for one thread."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.__name__, dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return told(*args)
        if func == torch.Tensor.is_cuda.__get__:
            return told(*args) == GPU
        if func is torch.Tensor.backward:
            with self:  # layers may be computed again in it
                return torch.autograd.backward(*args, kwargs.pop("gradient"), **kwargs)
        kwargs.pop("pin_memory", None)  # torch has no memory of that kind here
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        homes = [home(tensor) for tensor in tensors]
        refuse(name, tensors, homes)
        asked = CPU if name == "cpu" else None
        for leaf in leaves:
            if isinstance(leaf, (str, torch.device)):
                asked = DEVICES.get(str(leaf), asked)
        if asked and name not in NAMING:
            args, kwargs = tree_map_only(
                (str, torch.device), lambda leaf: CPU if str(leaf) in DEVICES else leaf,
                (args, kwargs))
        result = func(*args, **kwargs)
        if asked and tensors and home(result) != asked:
            result = result.clone()  # in a storage of its own
        at = asked or next((at for at in (GPU, CPU) if at in homes), None if tensors else CPU)
        for tensor in tree_leaves(result):
            if at and isinstance(tensor, torch.Tensor) and home(tensor) is None:
                tensor.untyped_storage().home = at
        return result


def pretend(native: bool, memory: float = 15e9, gpus: int = 1) -> PretendGpu:
    """Let torch say that it has GPUs, which compute bfloat16 or not, with so much memory free.

    For the rest of the process: nothing is put back.
    """
    import bitsandbytes  # noqa: F401  it would look for CUDA's libraries afterwards

    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # no threads
    major, minor = (8, 0) if native else (7, 5)
    answers = {
        "is_available": True, "device_count": gpus, "current_device": 0, "set_device": None,
        "_lazy_init": None, "mem_get_info": (int(memory), 16 * 10**9),
        "get_device_capability": (major, minor), "get_device_properties": SimpleNamespace(
            name="pretended", major=major, minor=minor, total_memory=16 * 10**9),
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "set_rng_state": None}
    for name, answer in answers.items():
        for module in (torch.cuda, torch.cuda.random):
            if hasattr(module, name):
                setattr(module, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.is_bf16_supported = lambda including_emulation=True: native or including_emulation
    torch.from_numpy = torch.as_tensor  # the same, in sight of the mode
    begin = torch.autocast.__init__
    torch.autocast.__init__ = lambda self, device_type, dtype=None, *more, **rest: begin(
        self, "cpu", dtype or torch.float16, *more, **rest)
    for name in ("is_autocast_enabled", "get_autocast_dtype"):
        setattr(torch, name, lambda *_, answer=getattr(torch, name): answer("cpu"))
    return PretendGpu()
