"""Checks the data of a config before training: reports all faults at once, each with its file, item and remedy.

    report = check_data({LABELLED: ["train.json"], UNLABELLED: ["photos"], TEST: ["val.json"]}, setup)
    report.found.has(ERROR)

All checks are listed in `sed.checks.findings.KINDS`. At the end each set without an error is read by the code that
training reads it with, so that a set that passes also loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from sed.checks.advice import Advice, Setup, advise
from sed.checks.boxes import check_balance, check_boxes
from sed.checks.duplicates import Entry, check_duplicates
from sed.checks.findings import Finding, Findings
from sed.checks.images import Facts, check_images, examine_files
from sed.checks.json_files import KEYS, LABELLED, TEST, UNLABELLED, Reader, Source, image_item, read_source
from sed.data.catalog import load_dataset
from sed.data.errors import DataError
from sed.data.records import Dataset, join
from sed.data.splits import split

ORDER = (LABELLED, TEST, UNLABELLED)  # of two equal images the one in the later set is reported
Progress = Callable[[Iterable[Facts], int], Iterable[Facts]]


@dataclass
class Report:
    """The result of a check.

    Attributes:
        found: all findings.
        sets: one row a data set: role, name, file, images, boxes, classes.
        balance: role -> class name -> usable boxes.
        labelled: number of labelled images.
        unlabelled: number of unlabelled images.
        boxes: [B, 2] width and height of the usable labelled boxes, pixels of the file.
        frames: [B, 2] width and height of the images of these boxes.
        images: [N, 2] width and height of all training images.
        crowding: [labelled images] usable boxes of each.
        advice: suggested settings; none without usable boxes.
    """

    found: Findings = field(default_factory=Findings)
    sets: list[dict[str, object]] = field(default_factory=list)
    balance: dict[str, dict[str, int]] = field(default_factory=dict)
    labelled: int = 0
    unlabelled: int = 0
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    images: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    crowding: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    advice: list[Advice] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Everything but the arrays, for a json file."""
        findings = [
            {
                "code": code,
                **asdict(kind),
                "count": number,
                "items": [_row(finding) for finding in kept],
            }
            for kind, code, number, kept in self.found.groups()
        ]
        return {
            "sets": self.sets,
            "labelled_images": self.labelled,
            "unlabelled_images": self.unlabelled,
            "boxes_of_classes": self.balance,
            "findings": findings,
            "advice": [asdict(row) for row in self.advice],
        }


def _row(finding: Finding) -> dict[str, object]:
    row = {"file": finding.file, "item": finding.item, "text": finding.text}
    return row | ({"image": finding.image} if finding.image else {})


def check_data(
    names: Mapping[str, Sequence[str]],
    setup: Setup,
    image_root: str = "",
    read: Reader = load_dataset,
    workers: int = 1,
    progress: Progress = lambda results, total: results,
) -> Report:
    """Check all data sets of a config.

    Args:
        names: role -> value of DATASETS.TRAIN, UNLABELED or TEST.
        setup: the other settings of the config.
        image_root: DATASETS.IMAGE_ROOT.
        read: reads sets by name; on the Detectron2 engine from its catalog.
        workers: threads that decode images.
        progress: wraps the iterator over results, given the number of files.

    Raises:
        DataError: only where the check itself cannot go on.
    """
    report = Report()
    found = report.found
    _check_keys(names, setup, found)
    sources = [read_source(name, role, image_root, read, found) for role in ORDER for name in names[role]]
    files = {record["file_name"]: None for source in sources for record in source.images if record["file_name"]}
    facts = examine_files(list(files), workers, progress)
    for source in sources:
        check_images(source, facts, found)
    labelled = _labelled(sources, setup, found)
    usable = [_boxes(source, setup, found) for source in sources]
    _check_classes(sources, setup, found)
    for role in (LABELLED, TEST):
        of = [i for i, s in enumerate(sources) if s.role == role and s.structured and not _rewritten(s, found)]
        if of:
            arguments = ([things[i] for i in of] for things in (sources, usable, labelled))
            report.balance[role] = check_balance(*arguments, found)
    check_duplicates(list(_entries(sources, labelled)), facts, found)
    _check_loads(sources, image_root, read, found)
    _summarise(report, sources, usable, labelled, setup)
    return report


def _check_keys(names: Mapping[str, Sequence[str]], setup: Setup, found: Findings) -> None:
    splits = setup.percent > 0 or setup.count > 0
    if not names[LABELLED]:
        found.add("train-empty", KEYS[LABELLED], KEYS[LABELLED], "it is empty")
    if not names[TEST]:
        found.add("test-empty", KEYS[TEST], KEYS[TEST], "it is empty")
    if names[UNLABELLED] and splits:
        text = f"it is {list(names[UNLABELLED])}, and SEMI.LABELED_PERCENT or SEMI.LABELED_COUNT is set"
        found.add("split-and-unlabelled", KEYS[UNLABELLED], KEYS[UNLABELLED], text)
    if not names[UNLABELLED] and not splits and setup.method != "supervised":
        text = f"it is empty, nothing splits DATASETS.TRAIN, and SEMI.METHOD is {setup.method}"
        found.add("no-unlabelled", KEYS[UNLABELLED], KEYS[UNLABELLED], text)


def _rewritten(source: Source, found: Findings) -> bool:
    """Whether its boxes are in another format, so that they cannot be counted."""
    return any(found.counts[code, source.file] for code in ("boxes-corners", "boxes-normalised"))


def _boxes(source: Source, setup: Setup, found: Findings) -> np.ndarray:
    if source.role == UNLABELLED:
        return np.zeros(0, bool)
    return check_boxes(source, max(setup.min_size), setup.max_size, found)


def _labelled(sources: Sequence[Source], setup: Setup, found: Findings) -> list[np.ndarray]:
    """For each set [images] bool: the images whose annotations are used; of a labelled set that is split, not all."""
    masks = [np.full(len(source.images), source.role != UNLABELLED) for source in sources]
    train = [i for i, source in enumerate(sources) if source.role == LABELLED and source.images]
    if not train or not (setup.percent > 0 or setup.count > 0):
        return masks
    parts = [Dataset(sources[i].name, sources[i].images) for i in train]
    records = join(parts, labeled=False).records
    try:
        kept, _ = split(records, setup.percent, setup.count, setup.fold)
    except DataError as error:
        found.add("refused", sources[train[0]].file, "SEMI.LABELED_PERCENT or _COUNT", str(error))
        return masks
    ids = {record["image_id"] for record in kept}
    chosen = np.array([record["image_id"] in ids for record in records])
    for i, part in zip(train, np.split(chosen, np.cumsum([len(part) for part in parts])[:-1]), strict=True):
        masks[i] = part
    return masks


def _check_classes(sources: Sequence[Source], setup: Setup, found: Findings) -> None:
    named = [source for source in sources if source.role != UNLABELLED and source.structured]
    if not named:
        return
    first = named[0]
    if len(first.classes) != setup.num_classes:
        names = ", ".join(first.classes[:10]) + (", ..." if len(first.classes) > 10 else "")
        text = f"it is {setup.num_classes}, the set has {len(first.classes)} categories ({names})"
        found.add("num-classes", first.file, setup.classes_key, text)
    for source in named:
        here, there = set(source.classes), set(first.classes)
        if here != there:  # the order does not matter: they are matched by name
            less = source.role == TEST and here < there
            text = f"only in {first.file}: {sorted(there - here) or 'none'}"
            text = text if less else f"only here: {sorted(here - there) or 'none'}; {text}"
            found.add("classes-missing" if less else "classes-differ", source.file, "categories", text)


def _entries(sources: Sequence[Source], labelled: Sequence[np.ndarray]) -> Iterable[Entry]:
    for source, mask in zip(sources, labelled, strict=True):
        for record, seen in zip(source.images, mask.tolist(), strict=True):
            role = source.role if seen or source.role == TEST else UNLABELLED
            yield Entry(role, source.file, image_item(record), record["file_name"])


def _check_loads(sources: Sequence[Source], image_root: str, read: Reader, found: Findings) -> None:
    """Read each set as training does, and note what fails."""
    for source in sources:
        if source.structured and not found.has("error", source.file):
            try:
                read(source.name, image_root, source.role != UNLABELLED)
            except DataError as error:
                images = {record["file_name"] for record in source.images}
                if not any(found.has("error", path) for path in images):
                    found.add("refused", source.file, KEYS[source.role], str(error))


def _summarise(
    report: Report,
    sources: Sequence[Source],
    usable: Sequence[np.ndarray],
    labelled: Sequence[np.ndarray],
    setup: Setup,
) -> None:
    sizes, boxes, frames, crowding = [np.zeros((0, 2))], [np.zeros((0, 2))], [np.zeros((0, 2))], []
    classes: tuple[str, ...] = ()
    for source, good, mask in zip(sources, usable, labelled, strict=True):
        row = {"role": source.role, "name": source.name, "file": source.file, "images": len(source.images)}
        report.sets.append({**row, "boxes": len(source.numbers), "usable_boxes": int(good.sum()),
                            "classes": list(source.classes)})  # fmt: skip
        if source.role == TEST:
            continue
        report.labelled += int(mask.sum())
        report.unlabelled += int((~mask).sum())
        table = np.array([(r["width"], r["height"]) for r in source.images], np.float64).reshape(-1, 2)
        sizes.append(table[(table > 0).all(1)])
        if source.role == LABELLED:
            classes = classes or source.classes
            real = good & ~source.crowd & mask[source.image]
            boxes.append(source.boxes[real, 2:])
            frames.append(source.sizes()[real])
            crowding.append(np.bincount(source.image[real], minlength=len(source.images))[mask])
    report.images, report.boxes, report.frames = np.concatenate(sizes), np.concatenate(boxes), np.concatenate(frames)
    report.crowding = np.concatenate(crowding) if crowding else report.crowding
    if len(report.boxes) and len(report.images):
        report.advice = advise(
            setup, len(classes), report.boxes, report.frames, report.images, report.labelled, report.unlabelled
        )
