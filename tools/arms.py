"""What `benchmark.py` and `ablate.py` share: arms x seeds, each run once and kept, burn-in shared, one table.

An arm is a name and what it changes in the config. All arms of a seed share the labelled images, the weights they
start from, the order of the data and the steps. Burn-in is the same supervised training for all of them, so it is run
once, by the control; the others resume from its checkpoint, which is exact (tests/engine holds resume to be bit for
bit). An arm that changes burn-in itself says so and trains from its beginning.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sed.config import load_config
from sed.data.files import checkpoint_path
from sed.engine.study import call, slug

TRAIN = Path(__file__).with_name("train_net.py")
CONTROL = "supervised"
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
Results = dict[str, dict[int, dict]]


@dataclass(frozen=True)
class Arm:
    """One way of training: overrides of the config, and whether its first steps are the control's."""

    options: tuple[str, ...] = ()
    shares_burn_in: bool = True


@dataclass(frozen=True)
class Study:
    """What all arms have in common.

    Attributes:
        config_file: of all arms.
        test: the set to report on; nothing is chosen on it, the final weights are reported.
        output: a folder an arm and seed.
        options: overrides of every arm.
        jobs: runs side by side, one thread each.
    """

    config_file: str
    test: str
    output: Path
    options: tuple[str, ...] = ()
    jobs: int = 2

    def run_all(self, arms: Mapping[str, Arm], seeds: Sequence[int]) -> Results:
        """Run what is missing: arm -> seed -> {"teacher", "student", "half", "seconds"}."""
        jobs: dict[str, dict[int, Future]] = {name: {} for name in arms}
        control = arms.get(CONTROL, Arm(("SEMI.METHOD", "supervised")))
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(seeds) * len(arms), unit="run") as bar:
            controls: dict[int, Future] = {}
            if CONTROL in arms or any(arm.shares_burn_in for arm in arms.values()):
                controls = {seed: pool.submit(self.run, CONTROL, control, seed) for seed in seeds}
            for name, arm in arms.items():
                for seed in seeds:
                    if arm.shares_burn_in:
                        controls[seed].result()  # its checkpoint at the end of burn-in starts the others
                    job = controls[seed] if name == CONTROL else pool.submit(self.run, name, arm, seed)
                    jobs[name][seed] = job
                    job.add_done_callback(lambda _: bar.update())
            return {name: {seed: job.result() for seed, job in rows.items()} for name, rows in jobs.items()}

    def run(self, name: str, arm: Arm, seed: int) -> dict:
        """One arm and seed: train, evaluate the final weights; a finished one is not run again."""
        folder = self.output / f"{slug(name)}-{seed}"
        done = folder / "benchmark.json"
        if done.exists():
            return json.loads(done.read_text())
        options = ["SEED", str(seed), "OUTPUT_DIR", str(folder), *arm.options, *self.options]
        cfg = load_config(self.config_file, options)
        burn_in = ["SOLVER.CHECKPOINT_PERIOD", str(cfg.SEMI.BURN_IN), "SOLVER.CHECKPOINTS_KEPT", "1000"]
        if name != CONTROL and arm.shares_burn_in and not folder.exists():
            folder.mkdir(parents=True)
            burnt_in = checkpoint_path(self.output / f"{slug(CONTROL)}-{seed}", cfg.SEMI.BURN_IN)
            shutil.copy(burnt_in, folder / burnt_in.name)
        log, start = folder.with_suffix(".log"), time.monotonic()
        call(TRAIN, ["--config-file", self.config_file, "--resume", *options, *burn_in], log)
        results: dict = {"seconds": round(time.monotonic() - start)}
        half = [str(cfg.INPUT.MIN_SIZE_TEST // 2), str(cfg.INPUT.MAX_SIZE_TEST // 2)]
        for key, which, more in (
            ("student", "student", []),
            ("teacher", "teacher", []),
            ("half", "teacher", ["INPUT.MIN_SIZE_TEST", half[0], "INPUT.MAX_SIZE_TEST", half[1]]),
        ):
            test = ["DATASETS.TEST", self.test, *more]
            flags = ["--config-file", self.config_file, "--eval-only", "--eval-model", which]
            call(TRAIN, [*flags, *options, *test], log)
            results[key] = json.loads((folder / f"evaluation_{which}.json").read_text())
        done.write_text(json.dumps(results))
        return results
