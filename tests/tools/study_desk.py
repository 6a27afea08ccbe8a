"""A study with scripts in place of training and evaluation: `desk` of tests/tools/conftest.py."""

from __future__ import annotations

import json
from pathlib import Path

import study
import yaml

from sed.config import load_config
from sed.studies.study_runs import Runner

ROOT = Path(__file__).resolve().parents[2]
PLUS = {"options": "SED.SCALE_TARGET teacher", "candidates": {"a": "SED.LAMBDA_SCALE 1.0", "b": "SED.LAMBDA_SCALE 3.0"}}
STUDY = {
    "config": str(ROOT / "configs/digits.yaml"),
    "options": "ENGINE torchvision",
    "tune": "digits_tune",
    "test": "digits_test",
    "tune_seeds": [10, 11],
    "seeds": [0, 1, 2],
    "cases": {"30 labels": "SEMI.LABELED_COUNT 30"},
    "methods": {
        "control": "SEMI.METHOD supervised",
        "all labels": {"options": "SEMI.METHOD supervised SEMI.LABELED_COUNT 1500", "own_burn_in": True},
        "plus": {**PLUS, "candidates": {**PLUS["candidates"], "a again": "SED.LAMBDA_SCALE 1.0"}},
        "plus, hard": {"like": "plus", "options": "SED.DISTILL_TARGET hard"},
    },
    "reference": "plus",
    "equal_seconds": ["control"],
}
CONTROLS = ("30_labels/control-0", "30_labels/control-equal_seconds-0")

# A training: 0.1 s a step, with unlabelled images 0.25 s. The weights are what the run was told and where it began.
TRAIN = """
import json, os, sys, time
from pathlib import Path
words = sys.argv[sys.argv.index("--resume") + 1:]
told = dict(zip(words[::2], words[1::2]))
folder = Path(told["OUTPUT_DIR"])
begin = sorted(path.name for path in folder.glob("checkpoint_*"))
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"train {folder.parent.name}/{folder.name}\\n")
assert told.get("SED.REWEIGHT.BINS") != "13", "unlucky"
steps = int(told.get("SOLVER.MAX_ITER", 1050))
for step in (500, steps):
    (folder / f"checkpoint_{step:07d}.pth").touch()
pace = 0.1 if told.get("SEMI.METHOD") == "supervised" else 0.25
rows = [{"step": s, "seconds_per_step": pace if s > 500 else 9.0} for s in (100, 500, 520, steps)]
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(folder / "model_final.pth").write_text(json.dumps({"told": told, "begin": begin}))
"""
# Its AP: LAMBDA_SCALE on the tune set, 8.9 - 1.2 times that on the test set, plus a tenth of the seed; all labels: 40
EVALUATE = """
import json, os, sys
from pathlib import Path
at = {name: sys.argv.index(name) + 1 for name in ("--weights", "--sizes", "--output")}
output = Path(sys.argv[at["--output"]])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"{output.stem} {output.parent.parent.name}/{output.parent.name}\\n")
told = json.loads((output.parent / "model_final.pth").read_text())["told"]
sizes = [w for w in sys.argv[at["--sizes"]:at["--output"]] if w.isdigit()]
term = float(told.get("SED.LAMBDA_SCALE", 0.5))
ap = (term if sys.argv[-1] == "digits_tune" else 8.9 - 1.2 * term) + int(told["SEED"]) / 10
ap = 40 if told.get("SEMI.LABELED_COUNT") == "1500" else ap
row = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), ap) | {"APl": float("nan")}
found = {"sizes": {size: {k: v * int(size) / 128 for k, v in row.items()} for size in sizes}}
output.write_text(json.dumps(found))
"""


class Desk:
    def __init__(self, folder, monkeypatch):
        self.folder, self.output = folder, folder / "out"
        (folder / "train.py").write_text(TRAIN)
        (folder / "evaluate.py").write_text(EVALUATE)
        monkeypatch.setenv("CALLS", str(folder / "calls"))
        monkeypatch.setattr(study, "make_runner", self.runner)

    def runner(self, config, jobs, bar):
        scripts = (self.folder / "train.py", self.folder / "evaluate.py")
        return Runner(config, lambda path, words: load_config(path, words), *scripts, jobs, bar)

    def run(self, *more, **changes):
        """What the tool leaves of STUDY with some keys changed; and the calls that this took."""
        (self.folder / "calls").write_text("")
        path = self.folder / "study.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
        study.main(["--study", str(path), "--output", str(self.output), "--jobs", "2", *more])
        return json.loads((self.output / "results.json").read_text()) if not more else None

    @property
    def calls(self):
        return (self.folder / "calls").read_text().splitlines()

    def trained(self, name):
        return json.loads((self.output / name / "model_final.pth").read_text())
