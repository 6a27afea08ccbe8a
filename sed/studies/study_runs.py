"""The runs of a study: each is trained once and kept, goes on after a kill, and is evaluated in a process of its own.

All methods of a seed share labels, weights and the order of the data, so that their burn-in is one and the same
supervised training: the supervised baseline runs it, the others resume from its checkpoint, which is exact
(tests/engine compares bit by bit). Whatever differs in burn-in trains from its own beginning.

    <folder>/asked.json     what the run was asked for; the folder appears in one rename, with the checkpoint in it
    <folder>/result.json    its cost and its evaluation: the run is finished
    <folder>.log            what its processes print
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from sed.config import ConfigError, leaves
from sed.data.files import new_folder, save_text
from sed.runtime.checkpoint_files import checkpoint_path, checkpoints
from sed.studies.halves import half_of
from sed.studies.processes import call, stop_all
from sed.studies.study_file import Words

ASKED, RESULT, WEIGHTS = "asked.json", "result.json", "model_final.pth"
# Keys that change no weight: where a run lies, how it is saved and what it is tested on
FREE = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "DATASETS.TEST", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
FREE += ("TRACKER", "SEMI.COLLAPSE_STEPS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINTS_KEPT")
FREE += ("TEST.EVAL_PERIOD", "TEST.IMS_PER_BATCH")
# Beginnings of keys that change nothing before the end of burn-in
AFTER_BURN_IN = (
    "SED.",
    "SED_PLUS.",
    "PSEUDO_LABEL.",
    "SEMI.METHOD",
    "SEMI.RAMP_STEPS",
    "SEMI.EMA.",
    "SEMI.IMS_PER_BATCH_UNLABELED",
)
POLL_SECONDS = 0.2
Result = dict[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What is measured on finished weights.

    Attributes:
        dataset: the set, or half of it (`sed.studies.halves`).
        models: which of "teacher" and "student"; none: nothing is measured, and the last checkpoint stays.
        sizes: short sides of the images beside INPUT.MIN_SIZE_TEST and its half.
        everything: also the ensemble of all sizes and the score distance.
    """

    dataset: str
    models: tuple[str, ...] = ("teacher",)
    sizes: tuple[int, ...] = ()
    everything: bool = False


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        folder: its OUTPUT_DIR.
        words: all other overrides of the config.
        test: see there.
        baseline: the supervised run whose burn-in it shares wherever its own is the same; None: it is one itself.
        own_burn_in: it shares none.
    """

    folder: Path
    words: Words
    test: Evaluation
    baseline: Run | None = None
    own_burn_in: bool = False


class Runner:
    """Trains and evaluates runs, `jobs` side by side with one thread each.

    Args:
        config_file: of every run.
        load: config file (or None: the defaults), overrides -> config.
        train: module or script that trains, as sed.cli.train_net.
        evaluate: the same for sed.cli.evaluate_scales.
        jobs: processes at a time.
        bar: its total is what is planned; runs that are finished already are taken from it.
    """

    def __init__(
        self,
        config_file: str | Path,
        load: Callable[[str | None, Words], CfgNode],
        train: str | Path,
        evaluate: str | Path,
        jobs: int,
        bar: tqdm,
    ) -> None:
        self.config_file, self._load, self.bar = str(config_file), load, bar
        self.train, self.evaluate, self.jobs = train, evaluate, jobs
        self.train_flags: Words = ()  # of every training, such as --num-gpus 8
        self.threads = 1  # of each process
        self.kept: dict[Path, tuple[dict, Result]] = {}  # folder -> what a finished run was asked for, and its result
        self.before: Callable[[], None] | None = None  # called once, before the first run that is not finished
        self._configs: dict[Words, dict[str, Any]] = {}
        self._defaults: dict[str, Any] = {}
        self._code = code_version()
        self._home: dict[Path, Run] = {}  # folder -> the run that is done in its place, being the same
        self._futures: dict[Path, Future] = {}
        self._stopped = threading.Event()

    # ------------------------------------------------------------------------------------------ many runs
    def run_all(self, runs: Sequence[Run]) -> dict[Path, Result]:
        """Train and evaluate what is not finished; equal configs are one run. A failing run does not stop the others.

        Returns:
            folder -> {"seconds_per_step": median of those after burn-in, "steps", "steps_after_burn_in", "code":
            `code_version`, "teacher": {"full": metrics, "half": on half-size images, "sizes": {"96": metrics},
            "ensemble", "score_distance"}, "student": the same}.

        Raises:
            ConfigError: before anything is run, for a folder that holds another run than is asked for.
            SystemExit: at the end, with the messages of the runs that failed.
        """
        groups: dict[str, list[Run]] = {}
        for run in runs:
            groups.setdefault(self._identity(run), []).append(run)
        homes: list[tuple[Run, int]] = []
        for group in groups.values():
            home = min(group, key=lambda run: (run.baseline is not None, not (run.folder / ASKED).exists()))
            self._home |= {run.folder: home for run in group}
            homes.append((home, len(group)))
        for home, count in homes:
            self._check(home)
            if (home.folder / RESULT).exists():
                self.bar.total -= count
        if self.before and not all((home.folder / RESULT).exists() for home, _ in homes):
            self.before()
            self.before = None
        homes.sort(key=lambda row: row[0].baseline is not None)  # baselines first; else as they were given
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                new: dict[Future, int] = {}
                for home, count in homes:
                    finished = (home.folder / RESULT).exists()
                    self._futures[home.folder] = future = pool.submit(self._run, home)
                    new[future] = 0 if finished else count
                for future in as_completed(new):
                    self.bar.update(new[future])
            except BaseException:  # an interrupt
                pool.shutdown(wait=False, cancel_futures=True)
                stop_all(self._stopped)
                raise
        errors = dict.fromkeys(_told(error) for future in new if (error := future.exception()))
        if errors:
            raise SystemExit("\n\n".join(["runs failed; repeat the command to try them again", *errors]))
        return {run.folder: self._futures[self._home[run.folder].folder].result() for run in runs}

    def config(self, words: Words) -> dict[str, Any]:
        """The config of some overrides as (dotted key -> value), in json's types."""
        if words not in self._configs:
            self._configs[words] = json.loads(json.dumps(dict(leaves(self._load(self.config_file, words)))))
        return self._configs[words]

    def shares_burn_in(self, run: Run) -> bool:
        """Whether a run may start from its baseline's checkpoint at the end of burn-in."""
        if run.baseline is None or run.own_burn_in:
            return False
        return same_burn_in(self.config(run.words), self.config(run.baseline.words))

    def changes(self, words: Words) -> dict[str, Any]:
        """The keys that the config file and some overrides set to other values than the defaults."""
        asked = self._asked(self.config(words))
        return {key: value for key, value in asked["config"].items() if value != asked["defaults"].get(key)}

    # ------------------------------------------------------------------------------------------ one run
    def _run(self, run: Run) -> Result:
        cfg, done = self.config(run.words), run.folder / RESULT
        start = partial(call, log=run.folder.with_suffix(".log"), threads=self.threads, stopped=self._stopped)
        base, out = ["--config-file", self.config_file], ("OUTPUT_DIR", str(run.folder))
        result: Result = json.loads(done.read_text()) if done.exists() else {}
        if not result:
            self._prepare(run, cfg)
            saved: Words = ()
            if run.baseline is None and cfg["SEMI.BURN_IN"]:  # the others need its checkpoint
                saved = ("SOLVER.CHECKPOINT_PERIOD", str(cfg["SEMI.BURN_IN"]), "SOLVER.CHECKPOINTS_KEPT", "1000")
            if not (run.folder / WEIGHTS).exists():  # the last that a training leaves
                start(self.train, [*base, *self.train_flags, "--resume", *run.words, *saved, *out])
            steps = cfg["SOLVER.MAX_ITER"]
            result = {"seconds_per_step": seconds_per_step(run.folder, cfg["SEMI.BURN_IN"]), "steps": steps}
            result |= {"steps_after_burn_in": max(0, steps - cfg["SEMI.BURN_IN"]), "code": self._code}
        test = self._test(run, cfg)
        if result.get("test") != test:
            last = checkpoint_path(run.folder, cfg["SOLVER.MAX_ITER"])
            for model in run.test.models:
                to = run.folder / f"evaluation_{model}.json"
                flags = ["--weights", str(run.folder / WEIGHTS if model == "teacher" else last), "--which", model]
                flags += ["--sizes", *map(str, test["sizes"]), *(["--all"] if test["everything"] else [])]
                dataset = half_of(run.test.dataset, cfg["DATASETS.IMAGE_ROOT"], run.folder)
                words = [*run.words, *out, "DATASETS.TEST", dataset]
                start(self.evaluate, [*base, *flags, "--output", str(to), *words])
                found = json.loads(to.read_text())
                full, half = (found["sizes"][str(size)] for size in test["full and half"])
                result[model] = {"full": full, "half": half, **found}
            result["test"] = test
            save_text(json.dumps(result, indent=1), done)
        kept = [cfg["SEMI.BURN_IN"]] * (run.baseline is None)  # the others begin there
        kept += [cfg["SOLVER.MAX_ITER"]] * ("student" in (run.test.models or "student"))  # the only file that holds it
        for path in set(checkpoints(run.folder)) - {checkpoint_path(run.folder, step) for step in kept}:
            path.unlink()
        return result

    def _prepare(self, run: Run, cfg: Mapping[str, Any]) -> None:
        """Make the folder with what the run starts from, in one rename; nothing where it is there."""
        if run.folder.exists():
            return
        burnt_in = self._burnt_in(run, cfg)
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        work = new_folder(run.folder)
        save_text(json.dumps(self._asked(cfg), indent=1), work / ASKED)
        if burnt_in is not None:
            shutil.copy(burnt_in, work / burnt_in.name)
        work.rename(run.folder)

    def _burnt_in(self, run: Run, cfg: Mapping[str, Any]) -> Path | None:
        """The baseline's checkpoint at the end of burn-in, waited for; None where the run has a burn-in of its own."""
        if run.baseline is None or not self.shares_burn_in(run):
            return None
        folder = self._home.get(run.baseline.folder, run.baseline).folder
        path, baseline = checkpoint_path(folder, cfg["SEMI.BURN_IN"]), self._futures.get(folder)
        while baseline is not None and not path.exists() and not baseline.done():  # files appear whole
            time.sleep(POLL_SECONDS)
        if not path.exists() and baseline is not None:
            baseline.result()  # raises what went wrong there
        return path if path.exists() else None  # deleted by hand: from its beginning it is the same, only slower

    # ------------------------------------------------------------------------------------------ what is asked
    def _asked(self, cfg: Mapping[str, Any]) -> dict[str, Any]:
        if not self._defaults:
            self._defaults = json.loads(json.dumps(dict(leaves(self._load(None, ("ENGINE", cfg["ENGINE"]))))))
        return {"config": cfg, "defaults": self._defaults}

    def _check(self, run: Run) -> None:
        """Raise ConfigError where the run's folder holds another run; take one that is kept, where it is the same."""
        if not run.folder.exists():
            asked, result = self.kept.get(run.folder, ({}, {}))
            tested = result.get("test") == self._test(run, self.config(run.words))
            if asked and tested and not self._changed(run, asked):
                run.folder.mkdir(parents=True)
                save_text(json.dumps(asked, indent=1), run.folder / ASKED)
                save_text(json.dumps(result, indent=1), run.folder / RESULT)
            elif asked:
                _log.warning("%s: the study asks for another run than is kept; it is made anew", run.folder)
            return
        try:
            there = json.loads((run.folder / ASKED).read_text())
        except FileNotFoundError:
            raise ConfigError(f"{run.folder}: no {ASKED}, so no study made it; choose another --output") from None
        if changed := self._changed(run, there):
            raise ConfigError(
                f"{run.folder}: the study has changed since this run ({'; '.join(changed)}); delete the folder to run "
                "it anew, or give the old values"
            )

    def _changed(self, run: Run, there: Mapping[str, Any]) -> list[str]:
        return differences(there, self._asked(self.config(run.words)))

    def _identity(self, run: Run) -> str:
        cfg = self.config(run.words)
        trained = {key: value for key, value in cfg.items() if key not in FREE}
        return json.dumps([trained, self._test(run, cfg)])

    def _test(self, run: Run, cfg: Mapping[str, Any]) -> dict[str, Any]:
        """All that the evaluation depends on."""
        full, longest = cfg["INPUT.MIN_SIZE_TEST"], cfg["INPUT.MAX_SIZE_TEST"]
        sizes = sorted({full, full // 2, *run.test.sizes})
        more = {"dataset": run.test.dataset, "models": list(run.test.models), "everything": run.test.everything}
        return {"sizes": sizes, "full and half": [full, full // 2], "longest": longest, **more}


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, (SystemExit, ConfigError)) else f"{type(error).__name__}: {error}"


def code_version() -> str:
    """A hash of all of this package's code: runs are kept for days, and the code may change between two of them."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def same_burn_in(cfg: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool:
    """Whether two configs train alike until the end of burn-in."""
    burn_in = baseline["SEMI.BURN_IN"]
    if not 0 < burn_in < min(cfg["SOLVER.MAX_ITER"], baseline["SOLVER.MAX_ITER"]):
        return False
    later = AFTER_BURN_IN
    stepwise = cfg["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"  # a cosine knows from its first step when it ends
    if stepwise and min([math.inf, *cfg["SOLVER.STEPS"], *baseline["SOLVER.STEPS"]]) >= burn_in:
        later += ("SOLVER.MAX_ITER", "SOLVER.STEPS")
    changed = [key for key in {**cfg, **baseline} if key not in FREE and cfg.get(key) != baseline.get(key)]
    return all(key.startswith(later) for key in changed)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two asked.json have otherwise, as "KEY: there -> here"; a key that one side lacks counts as its default."""
    absent, lines = object(), []
    for key in sorted({**there["config"], **here["config"]}):
        old, new = (side["config"].get(key, absent) for side in (there, here))
        old = here["defaults"].get(key) if old is absent else old
        new = there["defaults"].get(key) if new is absent else new
        if key not in FREE and old != new:
            lines.append(f"{key}: {old!r} -> {new!r}")
    return lines


def seconds_per_step(folder: Path, burn_in: int) -> float:
    """Median over the lines after burn-in of what either engine writes; NaN where there is none."""
    found = []
    for name, step, offset, seconds in (
        ("metrics.jsonl", "step", 0, "seconds_per_step"),
        ("metrics.json", "iteration", 1, "time"),  # Detectron2's; iteration i ends step i + 1
    ):
        path = folder / name
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found += [r[seconds] for r in rows if r.get(seconds) and r[step] + offset > burn_in]
    return statistics.median(found) if found else math.nan
