"""Hostile checkpoints: every field with strange values, and flipped bits, end in one line or change nothing.

`SED_FUZZ=all` (`make fuzz`) runs all of them, else a seeded fifth runs.
"""

from __future__ import annotations

import os
import random

import pytest
import torch

from sed.runtime.checkpoint_files import CheckpointError, checkpoints, read
from tests.reference.small import NEEDS_DETECTRON2
from tests.reference.training import make_trainer, same

MISSING = object()
STRANGE = (
    *(MISSING, None, True, "", "seven", [], {}, {"a": 1}, [1, 2], -1, 10**18, 2.5, float("nan"), float("inf")),
    *(torch.tensor([]), torch.full((2, 3), float("nan")), torch.ones(7, dtype=torch.uint8), torch.tensor(-1.0)),
    *(torch.ones(2, 2).to_sparse(), torch.ones(3, device="meta")),
)
ALL = os.environ.get("SED_FUZZ") == "all"
NUMBERS = (int, float, bool)
COUNT = {"torchvision": 300, "detectron2": 100}  # cases


def places(node, path=()):
    """Every place of a nest of dictionaries and lists; of long lists the first items."""
    yield path
    rows = node.items() if isinstance(node, dict) else enumerate(node[:3]) if isinstance(node, (list, tuple)) else ()
    for key, value in rows:
        yield from places(value, (*path, key))


def changed(node, path, value):
    """A copy of a nest with another value at a place."""
    if not path:
        return value
    result = dict(node) if isinstance(node, dict) else list(node)
    if value is MISSING and len(path) == 1:
        del result[path[0]]
    else:
        result[path[0]] = changed(node[path[0]], path[1:], value)
    return tuple(result) if isinstance(node, tuple) else result


def at(node, path):
    for key in path:
        node = node[key]
    return node


def drawn(content, engine):
    """(place, strange value) of the cases."""
    generator, count = random.Random(1), COUNT[engine]
    found = [path for path in places(content) if path]
    tensors = [p for p in found if isinstance(at(content, p), torch.Tensor) and p[0] in ("method", "model")]
    kept = [p for p in found if p not in tensors] + generator.sample(tensors, 8)
    cases = [(path, i) for path in kept for i in range(len(STRANGE))]
    cases = generator.sample(cases, min(count, len(cases)))
    return cases if ALL else cases[: count // 5]


def harmless(path, old, new):
    """Whether a strange value is one that a file may hold there."""
    numbers = type(old) in NUMBERS and type(new) in NUMBERS
    scores = "best" in path or "last" in path
    names = [str(key) for key in path]
    return (
        (new is MISSING and any(n in ("counters", "streams", "fingerprint") for n in names))  # old files had fewer
        or (new is MISSING and type(old) is bool)
        or ((new is MISSING or new == {}) and names[-2:-1] == ["state"])  # a parameter without a gradient yet has none
        or (names[-1] in ("warned", "owed") and type(new) is bool)
        or (new is MISSING and old is None)
        or (new is MISSING and "fingerprint" in names)
        or names[0] in ("fingerprint", "classes", "trained_for")  # for messages, or not known
        or ("python" in names and names[-1] == "2" and type(new) in NUMBERS)  # a number drawn ahead
        or (scores and (new is MISSING or isinstance(new, (dict, float, int)) or numbers))
        or (isinstance(old, (list, dict)) and isinstance(new, (list, dict)) and not new and not old)
        or names[-1] in ("rng", "processes")  # of another number of processes: told in the log
        or (isinstance(old, torch.Tensor) and "sums" in names and isinstance(new, torch.Tensor))
        or (numbers and "param_groups" in names)
        or (names[-1] in ("fused", "foreach") and type(new) is bool)
        or (type(old) is type(new) and old == new)
    )


def look(load, content, path, place, value):
    """Write the tampered file and load it; the message, or "" where it was loaded."""
    torch.save(changed(content, place, value), path)
    told = ""
    try:
        load()
    except CheckpointError as error:
        told = str(error)
    torch.save(content, path)
    if told:
        assert told.startswith(str(path))
        assert len(told) < 700
        assert "\n" not in told
        assert "delete" not in told
        assert any(str(key) in told for key in (*place, "not a checkpoint")), told
    return told


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    make_trainer(folder, evaluate=lambda detector: {"AP": 1.0}, eval_period=2, max_iter=5).train()
    path = checkpoints(folder)[0]
    return folder, path, read(path)


def test_every_field_on_the_native_engine(native):
    folder, path, content = native
    accepted = []
    for place, index in drawn(content, "torchvision"):
        value = STRANGE[index]
        trainer = make_trainer(folder, max_iter=5)
        told = look(lambda trainer=trainer: trainer.resume(path), content, path, place, value)
        if not told:
            accepted += [] if harmless(place, at(content, place), value) else [(place, value)]
            trainer.train()
            torch.save(content, path)
            for name, tensor in trainer.method.state_dict().items():
                assert torch.isfinite(tensor).all(), (place, value, name)
    assert not accepted


def test_flipped_bits(native):
    """A checkpoint with a flipped bit is refused, or the bit was none of its content."""
    _, path, content = native
    whole = path.read_bytes()
    generator = random.Random(2)
    refused = 0
    for _ in range(300 if ALL else 60):
        where = generator.randrange(len(whole))
        path.write_bytes(whole[:where] + bytes([whole[where] ^ (1 << generator.randrange(8))]) + whole[where + 1 :])
        try:
            same(read(path), content)
        except CheckpointError:
            refused += 1
    path.write_bytes(whole)
    assert refused > 20


@pytest.fixture(scope="module")
def detectron2_run(tmp_path_factory):
    from tests.reference.detectron2_run import make_trainer as make
    from tests.reference.detectron2_run import tiny_config
    from tests.reference.squares import write_set

    folder = tmp_path_factory.mktemp("d2")
    data = {"DATASETS.TRAIN": f"['{write_set(folder / 'set', 'train', 10, 0)}']"}
    trainer = make(tiny_config(data, folder, DATASETS__TEST="()", SOLVER__MAX_ITER=4))
    trainer.resume_or_load()
    trainer.train()
    path = checkpoints(folder)[-1]
    return trainer, path, read(path)


@NEEDS_DETECTRON2
@pytest.mark.slow
def test_every_field_on_detectron2(detectron2_run):
    trainer, path, content = detectron2_run
    accepted = []
    for place, index in drawn(content, "detectron2"):
        value = STRANGE[index]
        trainer.checkpointer._parsed_url_during_load = None  # Detectron2 leaves it behind where loading failed
        told = look(lambda: trainer.resume_or_load(resume=True), content, path, place, value)
        accepted += [] if told or harmless(place, at(content, place), value) else [(place, value)]
    assert not accepted
    trainer.checkpointer._parsed_url_during_load = None
    trainer.resume_or_load(resume=True)
