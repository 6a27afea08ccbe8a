"""Is it the same picture? A hash that stays when an image is resized or compressed again."""

from __future__ import annotations

import cv2
import numpy as np


def difference_hash(grey: np.ndarray) -> int:
    """64-bit dHash of a grey image [H, W]: is each of 8 x 8 fields darker than its right neighbour?

    Stays the same, or nearly so, when an image is resized, compressed again or made brighter.
    """
    fields = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return int.from_bytes(np.packbits(fields[:, :-1] < fields[:, 1:]).tobytes(), "big")
