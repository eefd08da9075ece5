import itertools
import math

import numpy as np
import pytest
import toolkit_case
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import toBbox
from small_sets import block, frame, truth

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.writers import write_scene
from ocdit_core.evaluation.average_precision import Matches, by_area, by_visibility
from ocdit_core.evaluation.bop_results import ResultRow
from ocdit_core.evaluation.metrics import AREAS, reliability, summarise
from ocdit_core.evaluation.records import ImageRecord, TargetRecord, read_records, record_image, write_records
from ocdit_core.masks import encode_mask


def target(number, scores, overlaps, *, visibility=None, asked=True, truth_areas=None, areas=None):
    """Overlaps are a row for each result."""
    overlaps = np.array(overlaps, float)
    count = overlaps.shape[1] if truth_areas is None else len(truth_areas)
    return TargetRecord(
        object_id=number,
        asked=asked,
        scores=np.array(scores, float),
        areas=np.full(len(scores), 100.0) if areas is None else np.array(areas, float),
        truth_areas=np.full(count, 100.0) if truth_areas is None else np.array(truth_areas, float),
        visibility=np.ones(count) if visibility is None else np.array(visibility, float),
        overlaps=overlaps.reshape(len(scores), count),
    )


def images(*targets, time=0.5):
    """One object in each."""
    return [
        ImageRecord(scene_id=0, image_id=number, size=(100, 100), time=time, targets=(one,))
        for number, one in enumerate(targets)
    ]


def ap_of(*targets, chosen=None):
    return Matches(images(*targets)).average_precision(chosen)[0]


def missed(number=1, count=1):
    return target(number, [], [], truth_areas=[100.0] * count)


def test_perfect_results_have_an_average_precision_of_one():
    value = ap_of(target(1, [0.9], [[1.0]]), target(1, [0.2, 0.1], [[1, 0], [0, 1]]))
    assert (value.ap, value.ap50, value.ap75, value.ar, value.instances) == pytest.approx((1, 1, 1, 1, 3))


def test_by_hand_right_results_before_wrong_ones():
    # Two instances; right, wrong: recall 1/2 is reached at precision 1, so 51 of the 101 recalls.
    value = ap_of(target(1, [0.9], [[1.0]]), target(1, [0.8], [[0.1]]))
    assert value.ap == pytest.approx(51 / 101)
    assert value.ar == pytest.approx(0.5)
    # The other way round the precision is 1/2 there.
    value = ap_of(target(1, [0.8], [[1.0]]), target(1, [0.9], [[0.1]]))
    assert value.ap == pytest.approx(51 / 101 / 2)


def test_by_hand_precision_is_the_best_at_this_recall_or_more():
    # Right, wrong, right, right of four instances: precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 2/4, 3/4.
    value = ap_of(
        target(1, [0.9], [[1.0]]), target(1, [0.8], [[0.0]]), target(1, [0.7], [[1.0]]), target(1, [0.6], [[1.0]])
    )
    assert value.ap == pytest.approx((26 * 1 + 50 * 3 / 4) / 101)


def test_by_hand_thresholds_of_the_overlap():
    value = ap_of(target(1, [0.9], [[0.62]]))
    # 0.5, 0.55 and 0.6 of ten thresholds.
    assert (value.ap, value.ap50, value.ap75, value.ar) == pytest.approx((0.3, 1, 0, 0.3))


def test_a_second_result_for_one_instance_is_wrong():
    assert ap_of(target(1, [0.9, 0.8], [[1.0], [0.95]])).ap == pytest.approx(1), "at recall 1 already"
    assert ap_of(target(1, [0.9, 0.8], [[0.9], [1.0]]), missed()).ap50 == pytest.approx(51 / 101)
    value = ap_of(target(1, [0.9, 0.8], [[1.0], [1.0]]), target(1, [0.7], [[1.0]]))
    assert value.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_objects_count_the_same_and_only_those_with_instances():
    records = images(
        target(1, [0.9], [[1.0]]), target(1, [0.9], [[1.0]]), missed(2), target(3, [0.9], [[]], truth_areas=[])
    )
    value, each = Matches(records).average_precision()
    assert value.ap == pytest.approx(0.5), "object 3 is nowhere: its false mask counts for no precision"
    assert {number: one.ap for number, one in each.items()} == pytest.approx({1: 1, 2: 0})
    assert value.instances == 3


def test_instances_that_are_hardly_seen_are_ignored_and_so_is_who_finds_them():
    hidden = target(1, [0.9], [[1.0]], visibility=[0.09])
    assert ap_of(hidden, target(1, [0.5], [[1.0]])).ap == pytest.approx(1)
    assert ap_of(target(1, [0.9], [[0.4]], visibility=[0.1]), target(1, [0.5], [[1.0]])).ap < 1
    # A result prefers an instance that counts, though it overlaps less.
    both = target(1, [0.9], [[0.95, 0.6]], visibility=[0.05, 1])
    assert ap_of(both).ap50 == pytest.approx(1)
    # One that finds nothing is wrong all the same.
    value = ap_of(target(1, [0.9], [[0.2]], visibility=[0.05]), target(1, [0.5], [[1.0]]))
    assert value.ap == pytest.approx(0.5)
    assert math.isnan(ap_of(hidden).ap), "nothing was to be found"


def test_instances_that_nobody_asked_for_are_ignored():
    assert ap_of(target(1, [0.9], [[0.1]], asked=False), target(1, [0.5], [[1.0]])).ap == pytest.approx(0.5)
    assert ap_of(target(1, [0.9], [[1.0]], asked=False), target(1, [0.5], [[1.0]])).ap == pytest.approx(1)


def test_sizes_of_instances_and_of_results_without_one():
    records = (
        target(1, [0.9], [[1.0]], truth_areas=[900], areas=[2000]),
        target(1, [0.8], [[0.0]], truth_areas=[2000], areas=[900]),
    )
    small, medium, large = (ap_of(*records, chosen=by_area(*bounds)) for bounds in AREAS.values())
    assert (small.ap, small.instances) == (pytest.approx(1), 1), "the wrong one comes after recall 1"
    assert (medium.ap, medium.instances) == (0, 1)
    assert math.isnan(large.ap)
    # Of 10,000 pixels.
    assert ap_of(*records, chosen=by_area(0, 0.1, relative=True)).instances == 1


def test_visibility_of_instances():
    records = (target(1, [0.9], [[1.0]], visibility=[0.2]), target(1, [0.8], [[0.0]], visibility=[0.95]))
    assert ap_of(*records, chosen=by_visibility(0.1, 0.3)).ap == pytest.approx(1)
    assert ap_of(*records, chosen=by_visibility(0.9, 2)).ap == 0
    unknown = target(1, [0.9], [[1.0]], visibility=[math.nan])
    assert ap_of(unknown).ap == pytest.approx(1)
    assert math.isnan(ap_of(unknown, chosen=by_visibility(0.9, 2)).ap)


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_those_of_pycocotools(tmp_path, seed):
    """Against its own evaluation from masks to figures, where no instance is ignored."""
    rng = np.random.default_rng(seed)

    def some():
        return block(*rng.integers(0, 50, 2), *rng.integers(4, 40, 2))

    frames, rows, truths = [], [], []
    for image in range(8):
        objects = [truth(int(rng.integers(1, 4)), some()) for _ in range(rng.integers(1, 5))]
        objects = [one for one in objects if one.visible.any()]
        frames.append(frame(*objects))
        for one in objects:
            mask = np.roll(one.visible, rng.integers(-1, 2, 2), axis=(0, 1))
            truths.append((image, one.object_id, one.visible))
            score = float(np.round(rng.random(), 1))
            for _ in range(rng.integers(0, 3)):
                rows.append((image, one.object_id if rng.random() < 0.8 else 1, mask, score))
        rows.append((image, int(rng.integers(1, 4)), block(3, 3, 9, 9), float(rng.random())))
    write_scene(tmp_path, "test", 0, frames)
    given = [
        ResultRow(
            scene_id=0,
            image_id=image,
            category_id=number,
            score=score,
            box=None,
            segmentation=encode_mask(mask),
            time=1,
        )
        for image, number, mask, score in rows
    ]
    records = [
        record_image(one, {1, 2, 3}, [row for row in given if row.image_id == one.image_id])
        for one in BopFolder(tmp_path, "test")
    ]

    expected = COCO()
    expected.dataset = {
        "images": [{"id": image, "height": 60, "width": 80} for image in range(8)],
        "categories": [{"id": number} for number in (1, 2, 3)],
        "annotations": [
            {
                "id": at, "image_id": image, "category_id": number, "segmentation": encode_mask(mask),
                "area": int(mask.sum()), "iscrowd": 0,
            }
            for at, (image, number, mask) in enumerate(truths, start=1)
        ],
    }  # fmt: skip
    expected.createIndex()
    found = [
        {"image_id": row.image_id, "category_id": row.category_id, "segmentation": row.segmentation, "score": row.score}
        for row in given
    ]
    theirs = COCOeval(expected, expected.loadRes(found), "segm")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()

    matches = Matches(records)
    value = matches.average_precision()[0]
    ours = [value.ap, value.ap50, value.ap75, *(matches.average_precision(by_area(*a))[0].ap for a in AREAS.values())]
    assert 0.05 < value.ap < 0.95, "a case that tells something"
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), theirs.stats[:6], atol=1e-12)
    assert value.ar == pytest.approx(theirs.stats[8], abs=1e-12)

    # The same for boxes: those of whole silhouettes, as BOP's task of 2D detection has it.
    whole = [
        (frame.image_id, annotation)
        for frame in BopFolder(tmp_path, "test")
        for index, annotation in enumerate(frame.annotations)
        if frame.mask(index).any()
    ]
    for entry, (image, annotation) in zip(expected.dataset["annotations"], whole, strict=True):
        entry |= {"image_id": image, "category_id": annotation.object_id, "bbox": list(annotation.box_object)}
    expected.createIndex()
    found = [
        {key: entry[key] for key in ("image_id", "category_id", "score")}
        | {"bbox": toBbox(entry["segmentation"]).tolist()}
        for entry in found
    ]
    theirs = COCOeval(expected, expected.loadRes(found), "bbox")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    boxes = Matches(records, boxes=True).average_precision()[0]
    assert boxes.ap != pytest.approx(value.ap)
    assert [boxes.ap, boxes.ap50, boxes.ap75, boxes.ar] == pytest.approx(theirs.stats[[0, 1, 2, 8]].tolist(), abs=1e-12)


# What scripts/calc_gt_coco.py and scripts/eval_bop22_coco.py of the BOP toolkit (June 2026, with its fork of
# pycocotools) say of the cases of toolkit_case.py, written as scene 2 of a dataset "lmo":
# AP, AP50, AP75, AR100, then AP and AR of small, medium and large objects.
TOOLKIT = [
    [0.12308093649054246, 0.4011333780893617, 0.039484643445039484, 0.25800366300366295, 0.14266556566370922,
     0.13826757675767576, 0.21027227722772276, 0.29794823232323236, 0.22416666666666668, 0.2125],
    [0.2246144698442529, 0.3879792886604014, 0.23656184788030463, 0.4683058608058609, 0.2717096843612933,
     0.32624705327675624, 0.14164705404966724, 0.4555239898989899, 0.4983333333333334, 0.35],
    [0.33959706647132887, 0.5384265038707456, 0.38727699693046225, 0.558113553113553, 0.3308790473827602,
     0.5001463539211064, 0.5148514851485149, 0.5541193181818181, 0.6133333333333333, 0.5125],
    [0.36459649399005833, 0.44243096012898003, 0.4376776688657877, 0.5400732600732601, 0.3257533922429088,
     0.470491513437058, 0.3569306930693069, 0.5012152777777777, 0.5475, 0.3625],
]  # fmt: skip


@pytest.fixture(scope="module")
def toolkit_frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("lmo")
    toolkit_case.write_truth(path)
    return list(BopFolder(path, "test"))


@pytest.mark.parametrize("case", range(4))
def test_figures_are_those_of_the_bop_toolkit(toolkit_frames, tmp_path, case):
    rows = toolkit_case.result_rows(case)
    records = [
        record_image(one, toolkit_case.OBJECTS, [row for row in rows if row.image_id == one.image_id])
        for one in toolkit_frames
    ]
    ignored = [one.ignored for record in records for one in record.targets]
    assert np.count_nonzero(np.concatenate(ignored)) > 5, "the rule about hidden instances is put to the test"
    # Records keep all that counts.
    write_records(tmp_path / "records.jsonl", records)
    for kept in (records, read_records(tmp_path / "records.jsonl")):
        matches = Matches(kept)
        parts = [matches.average_precision(by_area(*bounds))[0] for bounds in AREAS.values()]
        value = matches.average_precision()[0]
        ours = [value.ap, value.ap50, value.ap75, value.ar, *(one.ap for one in parts), *(one.ar for one in parts)]
        np.testing.assert_allclose(ours, TOOLKIT[case], atol=1e-9)


def test_truth_as_results_is_perfect_and_shuffled_labels_are_worth_nothing(toolkit_frames):
    numbers = dict(zip(toolkit_case.OBJECTS, itertools.cycle(toolkit_case.OBJECTS[1:] + toolkit_case.OBJECTS[:1])))
    for relabel, low, high in ((lambda number: number, 1, 1), (numbers.get, 0, 0.02)):
        records = []
        for one in toolkit_frames:
            rows = [
                ResultRow(
                    scene_id=2, image_id=one.image_id, category_id=relabel(annotation.object_id), score=0.5, box=None,
                    segmentation=encode_mask(one.mask(index)), time=0.1,
                )
                for index, annotation in enumerate(one.annotations)
                if one.mask(index).any()
            ]  # fmt: skip
            records.append(record_image(one, toolkit_case.OBJECTS, rows, time=0.1))
        metrics = summarise(records, threshold=0.5)
        for name in ("ap", "ap50", "ap75", "ar"):
            assert low - 1e-9 <= metrics[name] <= high + 1e-9
        at = metrics["at_threshold"]
        assert low - 1e-9 <= at["f1"] <= high + 1e-9
        assert low - 1e-9 <= at["mean_iou"] <= high + 0.02
        assert low <= at["points_in_masks"] <= high + 0.02


def test_at_a_threshold_by_hand():
    records = images(
        target(1, [0.9, 0.4], [[0.8], [0.9]]),  # right; the second is not reported
        target(1, [0.7], [[0.3]]),  # wrong, with an overlap
        missed(2),
        target(2, [0.6], [[]], truth_areas=[]),  # a false mask
        target(2, [0.3], [[]], truth_areas=[]),  # none at this threshold
        target(1, [0.9], [[0.9]], visibility=[0.05]),  # ignored, and so is its result
        time=0.2,
    )
    metrics = summarise(records, threshold=0.5)
    at = metrics["at_threshold"]
    assert at["mean_iou"] == pytest.approx((0.8 + 0.3 + 0) / 3)
    assert (at["instances"], at["right"], at["wrong"], at["absent"], at["false_masks"]) == (3, 1, 2, 2, 1)
    assert (at["precision"], at["recall"], at["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert at["false_mask_rate"] == pytest.approx(0.5)
    assert metrics["by_object"]["1"]["mean_iou"] == pytest.approx(0.55)
    assert metrics["by_object"]["2"]["images"] == 3
    assert metrics["time"]["images_per_second"] == pytest.approx(5)


def test_what_cannot_be_told_is_none():
    metrics = summarise(images(target(1, [], [], truth_areas=[]), time=-1.0), threshold=0.5)
    assert metrics["ap"] is None
    assert metrics["at_threshold"]["mean_iou"] is None
    assert metrics["at_threshold"]["false_mask_rate"] == 0
    assert metrics["time"]["median"] is None
    assert metrics["by_object"]["1"]["ap"] is None


def test_reliability_is_the_fraction_of_right_results_by_score():
    records = images(
        target(1, [0.95, 0.35], [[1.0], [0.9]]),  # the second is a duplicate
        target(1, [0.92], [[0.2]]),
        target(1, [0.31], [[0.8]], visibility=[0.01]),  # ignored
        target(2, [1.0], [[]], truth_areas=[]),
        target(2, [0.0], [[0.6]]),
    )
    found = reliability(records)
    bins = {one["low"]: one for one in found["bins"] if one["results"]}
    assert set(bins) == {0.0, 0.3, 0.9}
    assert (bins[0.9]["results"], bins[0.9]["high"]) == (3, 1.0)
    assert bins[0.9]["mean_score"] == pytest.approx((0.95 + 0.92 + 1) / 3)
    assert [bins[low]["precision"] for low in (0.0, 0.3, 0.9)] == pytest.approx([1, 0, 1 / 3])
    assert found["expected_calibration_error"] == pytest.approx((1 * 1 + 0.35 + abs(2.87 - 1)) / 5)
    assert reliability(images(target(1, [7.0], [[1.0]]))) is None, "no probability"
    assert reliability(images(missed())) is None


def test_precision_counts_what_is_reported_at_the_threshold():
    records = images(target(1, [0.9, 0.8, 0.2], [[1.0, 0], [0.3, 0], [0, 0.9]]), target(2, [0.7], [[]], truth_areas=[]))
    metrics = summarise(records, threshold=0.5)
    at = metrics["at_threshold"]
    assert (at["right"], at["wrong"], at["precision"], at["recall"]) == (1, 2, pytest.approx(1 / 3), 0.5)
    assert (at["absent"], at["false_mask_rate"]) == (1, 1)
    assert metrics["reliability"]["bins"][9]["precision"] == 1
