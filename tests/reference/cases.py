"""Every detector of every installed engine, for the contract suite."""

from __future__ import annotations

from tests.reference.detectors import SPECS
from tests.reference.frameworks import Case, TorchvisionCase

# What takes part where Detectron2 is installed (tests/reference/detectron2_case.py); named here for those who wait
DETECTRON2 = ("d2_small_rcnn", "d2_fpn_rcnn", "d2_fpn_rcnn_agnostic", "d2_c4_rcnn", "d2_retinanet")

CASES: list[Case] = [TorchvisionCase(name) for name in SPECS]
try:
    import detectron2  # noqa: F401
except ImportError as error:
    WHY_NOT = str(error)
else:
    from tests.reference.detectron2_case import Detectron2Case

    WHY_NOT = ""
    CASES += [Detectron2Case(name) for name in DETECTRON2]

TWO_STAGE = [case for case in CASES if case.two_stage]
ONE_STAGE = [case for case in CASES if not case.two_stage]
