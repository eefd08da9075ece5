"""Masks as COCO run lengths, the form in which BOP and COCO exchange them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from ocdit_core.errors import DataError


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a (H, W) bool mask as COCO run lengths {"size": [H, W], "counts": str}, ready for JSON."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> np.ndarray:
    """Return the (H, W) bool mask of COCO run lengths, compressed (a string) or plain (a list of numbers).

    Raises:
        DataError: they are damaged or do not add up to their size.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise ValueError(f"runs of {sum(counts)} pixels in all")
            values = np.arange(len(counts)) % 2 == 1
            return np.repeat(values, counts).reshape(width, height).T.copy()
        data = counts.encode("ascii") if isinstance(counts, str) else counts
        decoded = coco.decode({"size": [height, width], "counts": data})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"run lengths of a mask are damaged: {' '.join(str(error).split())}") from error
    return np.asarray(decoded, dtype=bool)
