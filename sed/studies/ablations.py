"""The paper's ablations (Tables 4, 6, 8, 9 and 10): their rows as overrides of a config, and their tables.

[O] marks what the paper leaves open. A run of each: `tools/ablate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sed.config import load_config
from sed.defaults import CLASSES_KEYS
from sed.studies.study_file import Words
from sed.studies.study_runs import Evaluation, Result, Run
from sed.studies.wording import slug, spread

Results = dict[str, dict[str, Result]]  # arm -> case -> result
SUPERVISED, RETINANET_SUPERVISED = "supervised", "RetinaNet, supervised"  # the baseline of each detector
RATES = (0, 1, 2, 3, 4)  # s of Tab. 8; 0 is rate 1, two views of one size: the fair comparison
NO_SCALE, NO_DISTILL = ("SED.LAMBDA_SCALE", "0.0"), ("SED.LAMBDA_DISTILL", "0.0")
PLAIN = ("SED.REWEIGHT.KIND", "none")
# arm -> overrides; arms of Tab. 8 are another detector, see `retinanet`, and have a baseline of their own
ARMS: dict[str, tuple[str, ...]] = {
    SUPERVISED: ("SEMI.METHOD", "supervised"),
    "scale, plain mean": (*NO_DISTILL, *PLAIN),
    "scale": NO_DISTILL,
    "distillation, plain mean": (*NO_SCALE, *PLAIN),
    "distillation": NO_SCALE,
    "all, hard targets": ("SED.DISTILL_TARGET", "hard"),
    "all": (),
    "all, plain mean": PLAIN,
    "all, OHEM": ("SED.REWEIGHT.KIND", "ohem"),
    "all, focal": ("SED.REWEIGHT.KIND", "focal"),
    "all, cosine EMA": ("SEMI.EMA.POLICY", "cosine", "SEMI.EMA.START", "0.996", "SEMI.EMA.END", "0.9"),
    "all, constant EMA": ("SEMI.EMA.POLICY", "constant", "SEMI.EMA.START", "0.95"),
    "distillation, wide jitter": NO_SCALE,  # and the sizes of `wide_jitter`
    RETINANET_SUPERVISED: ("SEMI.METHOD", "supervised"),
    **{f"RetinaNet, scale, rate {2**s}": (*NO_DISTILL, "SED.MAX_SCALE", str(s)) for s in RATES},
}
# table -> what it shows, and its rows: (arm, the paper's COCO AP)
TABLES: dict[int, tuple[str, list[tuple[str, float]]]] = {
    4: (
        "terms and targets",
        [
            (SUPERVISED, 23.86),
            ("scale, plain mean", 26.8),
            ("scale", 30.1),
            ("distillation, plain mean", 29.8),
            ("distillation", 31.4),
            ("all, hard targets", 29.5),
            ("all", 34.0),
        ],
    ),
    # [O] the first two rows are read as runs without the scale term: 31.4 is that row of Tab. 4
    6: ("scale jitter", [("distillation", 31.4), ("distillation, wide jitter", 32.0), ("all", 34.0)]),
    # [O] read as the scale term alone: 26.1 is far below the 31.4 that Tab. 5 has for all of SED on this detector
    8: (
        "down-sampling rate",
        [
            (RETINANET_SUPERVISED, 21.5),
            *((f"RetinaNet, scale, rate {2**s}", ap) for s, ap in enumerate((23.0, 26.1, 25.2, 23.1, 21.1))),
        ],
    ),
    9: ("EMA schedule", [("all, cosine EMA", 33.0), ("all", 34.1), ("all, constant EMA", 32.0)]),
    10: ("re-weighting", [("all, plain mean", 30.1), ("all, OHEM", 31.4), ("all, focal", 31.2), ("all", 34.0)]),
}


def make_cases(seeds: Sequence[int], folds: Sequence[int]) -> dict[str, Words]:
    """What an arm is repeated over: name -> overrides. Without folds the config's own SEMI.FOLD stays."""
    cases: dict[str, Words] = {}
    for seed in seeds:
        words = ("SEED", str(seed))
        cases |= {f"{seed}-fold{fold}": (*words, "SEMI.FOLD", str(fold)) for fold in folds} or {str(seed): words}
    return cases


def make_runs(
    arms: Sequence[str], cases: Mapping[str, Words], config_file: str, opts: Sequence[str], test: str, output: Path
) -> dict[str, list[Run]]:
    """A run for every arm and case; each knows the baseline of its detector and case."""
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for case, words in cases.items():

        def make(arm: str, baseline: Run | None, case: str = case, words: Words = words) -> Run:
            overrides = (*make_arm(arm, config_file, opts), *opts, *words)
            return Run(output / f"{slug(arm)}-{case}", overrides, Evaluation(test), baseline)

        baselines = {name: make(name, None) for name in (SUPERVISED, RETINANET_SUPERVISED)}
        for arm in arms:
            runs[arm].append(baselines.get(arm) or make(arm, baselines[detector_of(arm)]))
    return runs


def detector_of(arm: str) -> str:
    """The name of the supervised baseline with the detector of an arm."""
    return RETINANET_SUPERVISED if arm.startswith("RetinaNet") else SUPERVISED


def make_arm(name: str, config_file: str, opts: Sequence[str]) -> Words:
    """What an arm changes in the config."""
    detector = retinanet(config_file, opts) if detector_of(name) == RETINANET_SUPERVISED else ()
    return (*detector, *ARMS[name], *(wide_jitter(config_file, opts) if name.endswith("wide jitter") else ()))


def retinanet(config_file: str, opts: Sequence[str]) -> Words:
    """Tab. 8's RetinaNet R18 for the classes and the pyramid of the config, with its nine anchors a cell [O].

    Three octaves above the smallest size of each level, three ratios; from coco_10.yaml that is retinanet_r18.yaml.
    """
    cfg = load_config(config_file, opts)
    smallest = [min(sizes) for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    sizes = [[round(size * 2 ** (octave / 3), 1) for octave in range(3)] for size in smallest]
    classes: Any = cfg
    for part in CLASSES_KEYS[cfg.MODEL.META_ARCHITECTURE].split("."):
        classes = classes[part]
    words = ("MODEL.META_ARCHITECTURE", "ScaleConsistentRetinaNet", "MODEL.RESNETS.DEPTH", "18")
    words += ("MODEL.RETINANET.NUM_CLASSES", str(classes), "MODEL.ANCHOR_GENERATOR.SIZES", str(sizes))
    return (*words, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]")


def without_pair(config_file: str, opts: Sequence[str]) -> dict[str, str]:
    """Arms whose rate is too large for the config's pyramid: arm -> why."""
    levels = len(load_config(config_file, opts).MODEL.ANCHOR_GENERATOR.SIZES)
    why = f"a pyramid of {levels} levels has none that are {{}} apart"
    return {f"RetinaNet, scale, rate {2**s}": why.format(s) for s in RATES if s >= levels}


def wide_jitter(config_file: str, opts: Sequence[str]) -> Words:
    """Tab. 6's [300, 1200] in place of [640, 800], in proportion to the config's own sizes."""
    sizes = load_config(config_file, opts).INPUT
    low, high = min(sizes.MIN_SIZE_TRAIN) * 300 // 640, max(sizes.MIN_SIZE_TRAIN) * 1200 // 800
    longest = max(sizes.MAX_SIZE_TRAIN, sizes.MAX_SIZE_TRAIN * 1200 // 800)
    return ("INPUT.MIN_SIZE_TRAIN", f"({low}, {high})", "INPUT.MAX_SIZE_TRAIN", str(longest))


def make_table(table: int, results: Results, seeds: Sequence[int], folds: Sequence[int] = ()) -> str:
    """Markdown: a row an arm, the teacher's measured AP, its gain over the first row, and the paper's two figures."""
    title, rows = TABLES[table]
    over = f"Seeds {', '.join(map(str, seeds))}" + (f"; folds {', '.join(map(str, folds))}" if folds else "")
    lines = [f"Table {table}: {title}. {over}; mean ± standard deviation over all of them.", ""]
    lines += ["| arm | AP | AP50 | against the first | paper: AP | against the first |", "| --- " * 6 + "|"]
    first = rows[0]
    for arm, paper in rows:
        if arm not in results:  # its rate is too large for the pyramid
            continue
        runs = results[arm]
        ap, ap50 = ([run["teacher"]["full"][column] for run in runs.values()] for column in ("AP", "AP50"))
        base = [results[first[0]][case]["teacher"]["full"]["AP"] for case in runs]
        gains = [a - b for a, b in zip(ap, base, strict=True)]
        cells = [spread(ap), spread(ap50), spread(gains), f"{paper:.1f}", f"{paper - first[1]:+.1f}"]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
