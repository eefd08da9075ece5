"""The part of a report that needs the dataset: pictures, failures by kind, confusions between objects."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.data.shards import ShardDataset
from ocdit_core.errors import DataError
from ocdit_core.evaluation.bop_results import ImageKey
from ocdit_core.evaluation.findings import KINDS, Failure, Findings, Kind, find_failures
from ocdit_core.evaluation.report_pictures import close_up, ranked_images, side_by_side
from ocdit_core.evaluation.runs import Run
from ocdit_core.evaluation.targets import frames_of, image_key
from ocdit_core.web_page import picture, table

MOST_PAIRS = 20


def failures_section(run: Run, dataset: BopFolder | ShardDataset, names: Mapping[int, str], pictures: int) -> str:
    """Return the HTML of a run's pictures, failures and confusions.

    Args:
        run: whose masks are looked at, those from its score threshold on.
        dataset: with the truth.
        names: of the objects, by obj_id.
        pictures: of the best images, of the worst, and of each kind of failure.

    Raises:
        DataError: the dataset is another one, the run has no masks, or something cannot be read.
    """
    if dataset.name != run.plan["dataset"]:
        raise DataError(f"{run.path}: is an evaluation of {run.plan['dataset']}, not of {dataset.name}")
    threshold = float(run.metrics["score_threshold"])
    rows, asked = run.rows(), run.asked
    findings = find_failures(frames_of(dataset, asked), asked, rows, threshold)
    ranked = ranked_images(run.records, threshold)
    count = min(pictures, len(ranked) // 2)
    chosen = [("Best pictures", ranked[:count]), ("Worst pictures", ranked[::-1][:count])]
    gallery = {kind: findings.of(kind)[:pictures] for kind in KINDS}
    wanted = {image for _, some in chosen for image, _ in some}
    wanted |= {failure.image for some in gallery.values() for failure in some}
    frames = {image_key(frame): frame for frame in frames_of(dataset, wanted)}
    note = f"Masks with a score of {threshold:g} or more. Left: the truth, with the visible share; right: found."
    parts = [f"<p>{note}</p>\n"]
    for title, some in chosen:
        drawn = (
            picture(
                side_by_side(frames[image], asked[image], rows[image], names, threshold),
                f"scene {image[0]}, image {image[1]}: mean IoU {100 * overlap:.1f}",
            )
            for image, overlap in some
        )
        parts.append(f'<h3>{title}</h3>\n<div class="pictures">\n{"".join(drawn)}</div>\n')
    parts.append(_failures(findings, gallery, frames, names))
    parts.append(_confusion(findings.confusion, names))
    return "".join(parts)


def _failures(
    findings: Findings,
    gallery: Mapping[Kind, Sequence[Failure]],
    frames: Mapping[ImageKey, Frame],
    names: Mapping[int, str],
) -> str:
    counts = Counter(failure.kind for failure in findings.failures)
    parts = [table(["failure", "count", "what it is"], [[k, str(counts[k]), text] for k, text in KINDS.items()])]
    for kind, some in gallery.items():
        if not some:
            continue
        drawn = (picture(close_up(frames[one.image].image(), one), _caption(one, names)) for one in some)
        order = "the largest" if kind == "missed" else "the surest"
        parts.append(
            f"<h3>{html.escape(kind.capitalize())} ({order} {len(some)} of {counts[kind]})</h3>\n"
            f'<div class="crops">\n{"".join(drawn)}</div>\n'
        )
    return (
        "<h3>Failures</h3>\n<p>Green: the truth; red: what was found.</p>\n" + "".join(parts)
        if findings.failures
        else "<p>No failures.</p>\n"
    )


def _caption(failure: Failure, names: Mapping[int, str]) -> str:
    words = [_name(names, failure.object_id)]
    if failure.score is not None:
        words.append(f"score {failure.score:.2f}")
    if failure.lies_on is not None:
        words.append(f"on {_name(names, failure.lies_on)}")
    if failure.overlap:
        words.append(f"IoU {failure.overlap:.2f}")
    return ", ".join([*words, f"image {failure.image[0]}/{failure.image[1]}"])


def _confusion(confusion: Counter[tuple[int | None, int]], names: Mapping[int, str]) -> str:
    """How many masks lie on the right object, on another, on none; and the pairs that are taken for each other."""
    right = sum(count for (true, found), count in confusion.items() if true == found)
    nothing = sum(count for (true, _), count in confusion.items() if true is None)
    wrong = Counter({pair: count for pair, count in confusion.items() if pair[0] is not None and pair[0] != pair[1]})
    parts = [
        "<h3>Confusions</h3>\n<p>A mask lies on an object from an IoU of 0.5 on.</p>\n",
        table(
            ["masks", "count"],
            [
                ["on the right object", str(right)],
                ["on another object", str(wrong.total())],
                ["on no object", str(nothing)],
            ],
        ),
    ]
    if wrong:
        rows = [
            [_name(names, true) if true is not None else "", _name(names, found), str(count)]
            for (true, found), count in wrong.most_common(MOST_PAIRS)
        ]
        parts.append("<br>\n" + table(["true object", "taken for", "count"], rows))
    return "".join(parts)


def _name(names: Mapping[int, str], number: int) -> str:
    return names.get(number, f"object {number}")
