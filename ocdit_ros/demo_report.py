"""The demo's judgement: what the node published for a picture against the truth beside it, as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocdit_core.errors import DataError
from ocdit_core.masks import decode_mask, mask_iou

STAGES = ("waiting", "reading", "backbone", "sampling", "decoding")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is to be seen on one picture.

    Attributes:
        targets: names to ask for; none when nothing is known of the picture.
        masks: name -> (H, W) bool, of the objects that are there; None when no truth is given.
    """

    targets: tuple[str, ...]
    masks: dict[str, np.ndarray] | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came back for one picture.

    Attributes:
        instances: (name, score in [0, 1], (H, W) bool mask), in the order of the detections.
        latency: seconds from the picture's stamp to the arrival of its detections.
        stages: milliseconds by stage, as /diagnostics tells them for this frame.
    """

    instances: tuple[tuple[str, float, np.ndarray], ...]
    latency: float
    stages: dict[str, float]


def read_truth(picture: Path) -> Truth:
    """Read `<stem>.json` beside a picture; without one, nothing is known and all objects are asked for.

    Raises:
        DataError: the file is damaged.
    """
    path = picture.with_suffix(".json")
    if not path.is_file():
        return Truth(targets=(), masks=None)
    try:
        content = json.loads(path.read_text())
        targets = tuple(str(name) for name in content["targets"])
        masks: dict[str, np.ndarray] = {}
        for entry in content["objects"]:
            mask = decode_mask(entry["segmentation"])
            known = masks.get(entry["object_id"])
            masks[entry["object_id"]] = mask if known is None else known | mask
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        raise DataError(f"{path}: not a truth file ({' '.join(str(error).split())})") from error
    return Truth(targets=targets, masks=masks)


def judge(truth: Truth, seen: Seen) -> list[tuple[str, float | None, float | None, str]]:
    """Return one row an object: name, score, IoU in [0, 1] with the truth, and a word on it."""
    rows: list[tuple[str, float | None, float | None, str]] = []
    best: dict[str, tuple[float, np.ndarray]] = {}
    for instance in seen.instances:
        if instance[0] not in best or instance[1] > best[instance[0]][0]:
            best[instance[0]] = instance[1:]
    for name in truth.targets or tuple(best):
        found = best.get(name)
        score, mask = found if found else (None, None)
        target = truth.masks.get(name) if truth.masks is not None else None
        if truth.masks is None:
            rows.append((name, score, None, "no truth given"))
        elif target is None:
            rows.append((name, score, None, "not in the picture" if mask is None else "FALSE ALARM"))
        elif mask is None:
            rows.append((name, None, 0.0, "MISSED"))
        elif mask.shape != target.shape:
            raise DataError(f"truth of {name!r} is {target.shape} pixels, its picture {mask.shape}")
        else:
            rows.append((name, score, float(mask_iou(mask, target)), ""))
    return rows


def format_tables(truths: dict[str, Truth], seen: dict[str, Seen]) -> str:
    """Return the two tables, objects and latencies, and the summary below them."""
    objects, overlaps, alarms = [], [], 0
    for picture, result in seen.items():
        for name, score, overlap, remark in judge(truths[picture], result):
            objects.append([picture, name, _number(score), _number(overlap), remark])
            if overlap is not None:
                overlaps.append(overlap)
            alarms += remark == "FALSE ALARM"
    times = [
        [picture, f"{1000 * result.latency:.0f}", *(_milliseconds(result.stages.get(stage)) for stage in STAGES)]
        for picture, result in seen.items()
    ]
    summary = f"{len(seen)} pictures"
    if overlaps:
        summary += f", mean IoU {np.mean(overlaps):.2f} over {len(overlaps)} objects, {alarms} false alarms"
    if seen:
        summary += f", median latency {1000 * float(np.median([r.latency for r in seen.values()])):.0f} ms"
    return "\n".join(
        [
            *_table(["picture", "object", "score", "IoU", ""], objects),
            "",
            *_table(["picture", "camera to result, ms", *STAGES], times),
            "",
            summary,
        ]
    )


def to_json(truths: dict[str, Truth], seen: dict[str, Seen]) -> dict[str, Any]:
    """Return the same as data."""
    return {
        picture: {
            "objects": [
                {"object_id": name, "score": score, "iou": overlap, "remark": remark}
                for name, score, overlap, remark in judge(truths[picture], result)
            ],
            "latency_ms": 1000 * result.latency,
            "stages_ms": result.stages,
        }
        for picture, result in seen.items()
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: list[str]) -> str:
        return "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]
