"""Every detector of every installed engine, for the contract suite.

`dense`, `two_stage`, `one_stage` and `query` limit a test to the detectors that have those heads.
"""

from __future__ import annotations

import pytest

from tests.reference.detectors import SPECS
from tests.reference.frameworks import Case, TorchvisionCase
from tests.reference.transformers_case import FAMILY, TransformersCase

# The cases that need Detectron2 (tests/reference/detectron2_case.py); listed here so that a run without it can name
# them
DETECTRON2 = (
    "d2_small_rcnn",
    "d2_fpn_rcnn",
    "d2_fpn_rcnn_agnostic",
    "d2_c4_rcnn",
    "d2_retinanet",
    "d2_timm_rcnn",
    "d2_timm_retinanet",
)
DETECTRON2_FAMILY = ("detr", "rt_detr")

CASES: list[Case] = [*map(TorchvisionCase, SPECS), *map(TransformersCase, FAMILY)]
try:
    import detectron2  # noqa: F401
except ImportError as error:
    WHY_NOT = str(error)
else:
    from tests.reference.detectron2_case import Detectron2Case, Detectron2QueryCase

    WHY_NOT = ""
    CASES += [*map(Detectron2Case, DETECTRON2), *(Detectron2QueryCase(key, "d2_") for key in DETECTRON2_FAMILY)]


def _only(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, indirect=True, ids=lambda case: case.name)


dense = _only([case for case in CASES if "dense" in case.heads])
two_stage = _only([case for case in CASES if "region" in case.heads])
one_stage = _only([case for case in CASES if case.heads == {"dense"}])
query = _only([case for case in CASES if "query" in case.heads])
