"""The order of trainings and labellings: Alg. 1 and 2 of DMT, Alg. 1 of DST-CBC, and their baselines.

    mutual       A0  B0 | A0 labels, B0 -> B1 | B0 labels, A0 -> A1 | A1 labels, B1 -> B2 | ...   (DMT, segmentation)
    one model    A0 | A0 labels, A0 -> A1 | A1 labels, A1 -> A2 | ...                                 (DST-CBC, CBST)
    re-trained   A0 | A0 labels, fresh -> A1 | A1 labels, fresh -> A2 | ...                 (DMT and CL, classification)
    online       A0 | A0 -> A1, which labels each batch itself                                        (OST)

A stage is finished once its result.json lies in its folder; a finished stage is never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BEST = "best"  # the best of all trainings so far


@dataclass(frozen=True)
class Stage:
    """One training or one labelling.

    Attributes:
        name: of its folder.
        kind: "train" or "label".
        model: "A" or "B": who is trained, or who labels.
        round: 0: the baseline; i: with the i-th share.
        share: alpha of a round; 0: no pseudo-labels.
        start: training: the stage whose weights it goes on from, or BEST; "": a fresh model.
        labels: training: the stage whose pseudo-labels it learns; "": none.
        labeler: labelling: the training whose model labels, or BEST.
    """

    name: str
    kind: str
    model: str
    round: int
    share: float = 0.0
    start: str = ""
    labels: str = ""
    labeler: str = ""


def plan(
    shares: Sequence[float], mutual: bool, retrain: bool = False, keep_best: bool = False, online: bool = False
) -> list[Stage]:
    """The stages in their order; the arguments are those of `dmt.config`'s METHOD.

    With `mutual` both models of a round learn from the other's state before the round: B's labels for A are B's of the
    round before, not of the training just made (Alg. 2).
    """
    stages: list[Stage] = []

    def add(kind: str, model: str, number: int, **fields: object) -> str:
        name = f"{len(stages):02d}_{'baseline' if kind == 'train' and not number else kind}_{model}{number}"
        stages.append(Stage(name, kind, model, number, **fields))  # type: ignore[arg-type]
        return name

    newest = {model: add("train", model, 0) for model in ("AB" if mutual else "A")}
    if online:
        add("train", "A", 1, share=1.0, start=newest["A"])
        return stages
    for number, share in enumerate(shares, start=1):
        before = dict(newest)
        for teacher, student in (("A", "B"), ("B", "A")) if mutual else (("A", "A"),):
            labeler = BEST if keep_best else before[teacher]
            start = "" if retrain else BEST if keep_best else before[student]
            labels = add("label", teacher, number, share=share, labeler=labeler)
            newest[student] = add("train", student, number, share=share, start=start, labels=labels)
    return stages
