"""Which device a run computes on."""

from __future__ import annotations

import torch


def device_name(name: str) -> str:
    """MODEL.DEVICE with "auto" settled; looks for a GPU without starting CUDA.

    Raises:
        ValueError: for a device that there is not; the message names the key and the remedy.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("MODEL.DEVICE is cuda, but torch finds no GPU; set it to auto or cpu")
        return name
    try:
        torch.zeros(1, device=torch.device(name)).cpu()
    except (RuntimeError, NotImplementedError, ImportError, AssertionError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        what = f"MODEL.DEVICE is {name}, which torch has not got here ({told})"
        raise ValueError(f"{what}; set it to auto or cpu") from None
    return name


def find_device(name: str) -> torch.device:
    """MODEL.DEVICE as this process's device.

    Raises:
        ValueError: see `device_name`.
    """
    name = device_name(name)
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)
