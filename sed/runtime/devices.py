"""Which device a run computes on."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """MODEL.DEVICE as this process's device.

    Raises:
        ValueError: for a device that there is not; the message names the key and the remedy.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("MODEL.DEVICE is cuda, but torch finds no GPU; set it to auto or cpu")
        return torch.device("cuda", torch.cuda.current_device())
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, NotImplementedError, ImportError, AssertionError) as error:
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"MODEL.DEVICE is {name}, which torch has not got here ({told}); set it to auto or cpu"
        ) from None
    return device
