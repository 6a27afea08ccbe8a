"""`device` of the tests marked gpu: `--device`, which is cuda unless told otherwise; without one they are skipped.

`--device cpu` compares the CPU with itself: that runs the tests themselves, and proves nothing more.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.contract.conftest import case

__all__ = ["case"]

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic matrix products


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds no CUDA device")
    return torch.device(name)


@pytest.fixture
def float32():
    """Full float32, without TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
