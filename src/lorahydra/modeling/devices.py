"""Which device and dtype a base model uses: the `auto` rules, and clear errors if one is not available."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from lorahydra.config.schema import Dtype
from lorahydra.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["cpu_threads", "dtype_name", "moved", "resolve_device", "resolve_dtype"]


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on `device`; the CPU does not wait for the copy to a GPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def dtype_name(dtype: torch.dtype) -> Dtype:
    """What `model.dtype` calls a dtype."""
    return cast(Dtype, str(dtype).removeprefix("torch."))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many CPU threads inside the block, or on as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(requested: str) -> torch.device:
    """The device of `model.device`: `auto` (the first CUDA GPU, else the CPU), `cpu`, `mps`, `cuda` or `cuda:N`."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if requested == "auto":
        return torch.device("cuda:0" if gpus else "cpu")
    device = torch.device(requested)
    if device.type == "cuda":
        if not gpus:
            raise ConfigError(
                f"model.device={requested}: PyTorch {torch.__version__} sees no CUDA GPU here; "
                "use model.device=cpu or auto, or install a driver and a CUDA build of PyTorch"
            )
        if (device.index or 0) >= gpus:
            raise ConfigError(f"model.device={requested}: there is no such GPU; choose from cuda:0 to cuda:{gpus - 1}")
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"model.device={requested}: this machine has no Apple GPU; use model.device=cpu or auto")
    return device


def resolve_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` asks for; `auto` is bfloat16 on a CUDA GPU with native support, else float32."""
    import torch

    bfloat16 = True
    if device.type == "cuda":
        with torch.cuda.device(device):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "auto":
        return torch.bfloat16 if device.type == "cuda" and bfloat16 else torch.float32
    if requested == "bfloat16" and not bfloat16:
        raise ConfigError(f"model.dtype=bfloat16: the GPU {device} has no bfloat16; use float32, float16 or auto")
    if requested == "float16" and device.type == "cpu":
        # Half precision is emulated there: slower than float32, and its narrow range overflows in training.
        raise ConfigError("model.dtype=float16 needs a GPU; on the CPU use float32 or bfloat16")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[requested]
