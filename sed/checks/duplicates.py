"""Finds images that occur twice, as equal files or as near duplicates, within a set and between sets.

Near duplicates are found by a 64-bit difference hash (Hamming distance up to 6) and confirmed by the correlation of two
thumbnails. Hashes at a distance of up to 6 agree in at least one of seven parts, so only images that share a part are
compared: no comparison of all with all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sed.checks.findings import Findings
from sed.checks.images import THUMB, Facts
from sed.checks.json_files import TEST, UNLABELLED

DISTANCE = 6  # bits of 64 in which the hashes of near duplicates may differ
ALIKE = 0.95  # correlation of their thumbnails at least
_PARTS = ((0, 9), (9, 9), (18, 9), (27, 9), (36, 9), (45, 9), (54, 10))  # (shift, bits) of DISTANCE + 1 parts of a hash
_BLOCK = 1 << 21  # comparisons at a time
_EXPANDED = 64  # images with one hash of which all pairs are compared
_PLAIN = 2.0  # standard deviation of grey values under which an image has no hash worth comparing
_COUNT = np.array([bin(value).count("1") for value in range(256)], np.uint8)


class Entry(NamedTuple):
    """One image of one set."""

    role: str
    file: str  # the json or folder of its set
    item: str
    path: str


def check_duplicates(entries: Sequence[Entry], facts: dict[str, Facts], found: Findings) -> None:
    """Note each image that equals, or nearly equals, an earlier one of `entries`."""
    entries = [entry for entry in entries if entry.path and facts[entry.path].digest]
    copies = _same(entries, facts, found)
    rest = [e for i, e in enumerate(entries) if i not in copies and not facts[e.path].fault]
    _near([e for e in rest if facts[e.path].spread >= _PLAIN], facts, found)


def _same(entries: Sequence[Entry], facts: dict[str, Facts], found: Findings) -> set[int]:
    """Note files that equal an earlier one; returns their positions."""
    groups: dict[bytes, list[int]] = {}
    for index, entry in enumerate(entries):
        groups.setdefault(facts[entry.path].digest, []).append(index)
    copies = set()
    for group in groups.values():
        for place, index in enumerate(group[1:], 1):
            mine, earlier = entries[index], [entries[i] for i in group[:place]]
            copies.add(index)
            across = [other for other in earlier if other.role != mine.role]
            if not across and any(other.path == mine.path and other.file == mine.file for other in earlier):
                continue  # one file under two ids: reported by the check of the json
            tested = [other for other in across if TEST in (other.role, mine.role)]
            other = (tested or across or earlier)[0]
            left_out = UNLABELLED in (other.role, mine.role) and os.path.realpath(other.path) == os.path.realpath(
                mine.path
            )
            code = "same-across" if tested and not left_out else "same-unlabelled" if across else "same-within"
            how = "the same file" if other.path == mine.path else "byte for byte the same"
            text = f"in the {mine.role} set; {how} as {other.item} of the {other.role} set ({other.path})"
            found.add(code, mine.path, mine.item, text, mine.path, other=other.path)
    return copies


def _near(entries: Sequence[Entry], facts: dict[str, Facts], found: Findings) -> None:
    hashes = np.array([facts[e.path].dhash for e in entries], np.uint64)
    first, second = near_pairs(hashes)
    thumbs = np.frombuffer(b"".join(facts[e.path].thumb for e in entries), np.uint8).reshape(-1, THUMB**2)
    alike = np.array([_correlation(thumbs[a], thumbs[b]) for a, b in zip(first, second, strict=True)])
    best: dict[int, tuple[bool, float, int]] = {}  # each image once: tested on before others, then the most alike
    for a, b, value in zip(first.tolist(), second.tolist(), alike.tolist(), strict=True):
        if value >= ALIKE:
            leak = (entries[a].role == TEST) != (entries[b].role == TEST)
            best[b] = max(best.get(b, (False, 0.0, 0)), (leak, value, a))
    for b, (leak, value, a) in sorted(best.items()):
        mine, other = entries[b], entries[a]
        text = f"in the {mine.role} set; nearly the same as {other.item} of the {other.role} set ({other.path}; "
        text += f"correlation {value:.3f})"
        found.add("near-test" if leak else "near", mine.path, mine.item, text, mine.path, other=other.path)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0


def near_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of hashes at a Hamming distance of at most DISTANCE.

    Args:
        hashes: [N] uint64.

    Returns:
        Two int arrays of positions, the first of each pair before the second. Where more than `_EXPANDED` images share
        one hash, only their first ones are paired with the others.
    """
    values, inverse = np.unique(hashes, return_inverse=True)
    found = [np.zeros((0, 2), np.int64)]
    for shift, bits in _PARTS:
        part = (values >> np.uint64(shift)) & np.uint64((1 << bits) - 1)
        order = np.argsort(part, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
            step = max(1, _BLOCK // max(1, len(group)))
            for start in range(0, len(group) if len(group) > 1 else 0, step):
                rows = group[start : start + step]
                close = _distances(values[rows], values[group]) <= DISTANCE
                a, b = np.nonzero(close)
                found.append(np.stack([rows[a], group[b]], 1))
    pairs = np.concatenate(found)
    pairs = np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse, minlength=len(values)))[:-1])
    expanded = [np.zeros((0, 2), np.int64)]
    for group in members:
        if len(group) > 1:
            expanded.append(_cross(group[:_EXPANDED], group))
    for u, v in pairs:
        expanded.append(_cross(members[u][:_EXPANDED], members[v]))
        expanded.append(_cross(members[u], members[v][:_EXPANDED]))
    both = np.sort(np.concatenate(expanded), axis=1)
    both = np.unique(both[both[:, 0] < both[:, 1]], axis=0)
    return both[:, 0], both[:, 1]


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(a, b, indexing="ij"), 2).reshape(-1, 2)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[A, B] Hamming distances of uint64."""
    differing = a[:, None] ^ b[None]
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(differing)
    return _COUNT[differing.view(np.uint8).reshape(len(a), len(b), 8)].sum(2, dtype=np.uint8)
