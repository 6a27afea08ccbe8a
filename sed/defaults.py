"""The config, made from the options (`sed.options`): defaults, checks, messages for old keys, and docs/options.md.

    python -m sed.defaults > docs/options.md

How a config is read: `sed.config`.
"""

from __future__ import annotations

from math import inf

from fvcore.common.config import CfgNode

from sed.options import Options, rows

ROWS = {row.key: row for row in rows(Options)}
CHOICES = {key: row.choices for key, row in ROWS.items() if row.choices}
LIMITS = {key: (row.low, row.high) for key, row in ROWS.items() if (row.low, row.high) != (-inf, inf)}
LISTS = {key: row for key, row in ROWS.items() if isinstance(row.default, (list, tuple))}
CLASSES_KEYS = {  # meta-architecture -> the key of K
    "ScaleConsistentRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "ScaleConsistentRetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "ScaleConsistentDETR": "MODEL.DETR.NUM_CLASSES",
}
_HAS_IT = "is gone: neither a table of the paper nor a shipped config needs it; commit c64a2f6 has it"
# Keys of this project's earlier versions -> what to write instead
OLD_KEYS = {
    "SED.PRESET": (
        "is gone: paper is SED.SCALE_TARGET student, anchored is SED.SCALE_TARGET teacher, plus is SEMI.METHOD sed_plus"
    ),
    "SED.THRESHOLD": "is SED_PLUS.THRESHOLD now, with SEMI.METHOD sed_plus",
    "SED.TEMPERATURE": _HAS_IT,
    "SED.TOP_MASS": f"{_HAS_IT}; for SED.TOP_MASS 1.0 with the former preset plus: SED_PLUS.REGION_TARGET hard",
    "SED.BOX.WEIGHT": _HAS_IT,
    "SED.BOX.KIND": _HAS_IT,
    "SED.REWEIGHT.SCALE_TERM": _HAS_IT,
    "SED.REWEIGHT.MOMENTUM": _HAS_IT,
    "SED.REWEIGHT.OHEM_FRACTION": "is gone: it is 0.1",
    "SED.REWEIGHT.FOCAL_GAMMA": "is gone: it is 2",
}
OLD_VALUES = {
    ("SED.DISTILL_TARGET", "objects"): "SEMI.METHOD sed_plus takes its place",
    ("SED.DISTILL_TARGET", "hard_regions"): f"that value {_HAS_IT}",
}


def get_cfg() -> CfgNode:
    """A new config with the default of every option; it may be changed."""
    cfg = CfgNode()
    for row in rows(Options):
        *parents, leaf = row.key.split(".")
        node = cfg
        for parent in parents:
            node = node.setdefault(parent, CfgNode())
        node[leaf] = row.default
    return cfg


def options_page() -> str:
    """docs/options.md: every key with its default, its values and its meaning."""
    lines = [
        "# Options",
        "",
        "Every key of a config file or of `KEY VALUE` words. Made of [sed/options](../sed/options) by",
        "`python -m sed.defaults > docs/options.md`; a test compares. [O] the paper leaves it open, [D] a deviation",
        "([method.md](method.md)).",
    ]
    section = None
    for key, row in ROWS.items():
        top = key.partition(".")[0] if "." in key else "The run"
        if top != section:
            lines += ["", f"## {top}", "", "| key | default | values | meaning |", "| --- | --- | --- | --- |"]
            section = top
        values = " ".join(f"`{choice}`" for choice in row.choices) or _range(row.low, row.high)
        lines.append(f"| `{key}` | `{row.default!r}` | {values} | {row.meaning.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def _range(low: float, high: float) -> str:
    if (low, high) == (-inf, inf):
        return ""
    return f"{low} to {high}" if high < inf else f"{low} or more"


if __name__ == "__main__":
    print(options_page(), end="")
