"""Metrics of identity over a video, against numbers by hand and of the public implementations."""

import json
import math

import numpy as np
import pytest
from small_sets import block, frame, truth

from ocdit_core.cli import main
from ocdit_core.data.dataset import open_dataset
from ocdit_core.data.writers import write_scene
from ocdit_core.evaluation.run import evaluate_file, read_run
from ocdit_core.evaluation.tracking import evaluate_tracking, frame_overlaps, tracking_metrics, video_counts
from ocdit_core.inference.settings import TrackSettings
from ocdit_core.masks import encode_mask

SIZE = (48, 64)


def counts(there, found):
    """Count the matches of label images (T, H, W), all of one object."""
    founds = range(1, int(found.max()) + 1)
    truths = range(1, int(there.max()) + 1)
    same = np.ones((len(truths), len(founds)), bool)
    return video_counts([frame_overlaps(a, b, truths, founds, same) for a, b in zip(there, found, strict=True)])


def squares(*places):
    """Return a label image with squares of 10 x 10 pixels; None: not there."""
    labels = np.zeros(SIZE, int)
    for number, place in enumerate(places, start=1):
        if place is not None:
            labels[10:20, place : place + 10] = number
    return labels


def test_two_exchanged_ids_by_hand():
    there = np.stack([squares(5, 40)] * 4)
    found = np.stack([squares(5, 40)] * 2 + [squares(40, 5)] * 2)
    metrics = tracking_metrics([counts(there, found)])
    # Detection is perfect; of the 4 frames of an instance and of its track, 2 are common: 2 / (4 + 4 - 2).
    assert metrics["hota"] == pytest.approx(math.sqrt(1 / 3))
    assert metrics["idf1"] == 0.5
    assert metrics["switches"] == 2
    assert metrics["video_mbo"] == pytest.approx(1 / 3)
    assert metrics["j_and_f"] == 0.5
    assert metrics["video_ari"] == pytest.approx(-1 / 798)
    right = tracking_metrics([counts(there, there)])
    assert [right[name] for name in ("hota", "idf1", "switches", "video_mbo", "j_and_f", "video_ari")] == [
        1,
        1,
        0,
        1,
        1,
        1,
    ]


def test_nothing_found_and_nothing_there():
    there, nothing = np.stack([squares(5)] * 2), np.zeros((2, *SIZE), int)
    missed = tracking_metrics([counts(there, nothing)])
    assert (missed["hota"], missed["idf1"], missed["switches"], missed["video_mbo"], missed["j"]) == (0, 0, 0, 0, 0)
    assert tracking_metrics([counts(nothing, nothing)])["hota"] is None
    invented = tracking_metrics([counts(nothing, there), counts(there, there)])
    assert invented["idf1"] == pytest.approx(2 / 3)
    assert invented["hota"] == pytest.approx(math.sqrt(0.5))


def random_case(seed):
    """Return labels of rectangles that move, leave and are found under ids that change now and then."""
    rng = np.random.default_rng(seed)
    there, found = np.zeros((8, *SIZE), int), np.zeros((8, *SIZE), int)
    at, speed, size = rng.integers(4, 34, (3, 2)), rng.integers(-2, 4, (3, 2)), rng.integers(6, 16, (3, 2))
    ids = rng.permutation(4)[:3]
    for step in range(8):
        if rng.random() < 0.3:
            ids = ids[[1, 0, 2]]
        for one in range(3):
            (y, x), (high, wide) = np.maximum(at[one] + step * speed[one], 0), size[one]
            gone, missed, (dy, dx) = rng.random() < 0.15, rng.random() < 0.15, rng.integers(0, 4, 2)
            if not gone:
                there[step, y : y + high, x : x + wide] = one + 1
            if not missed:
                found[step, y + dy : y + dy + high, x + dx : x + dx + wide - 2] = ids[one] + 1
    return there, found


# By TrackEval (HOTA, Identity, CLEAR), DAVIS 2017's db_eval_iou and db_eval_boundary, and the formula of
# multi_object_datasets: hota, idf1, switches, video_ari, j, f, and the best IoU over the whole video.
REFERENCE = {
    0: [0.293534843, 0.4, 1, 0.112687145, 0.304447577, 0.349454964, 0.310114854],
    1: [0.307287944, 0.43902439, 0, 0.251903206, 0.30503065, 0.324000163, 0.312422357],
    2: [0.386425919, 0.564102564, 1, 0.202761221, 0.483611523, 0.510706059, 0.411294942],
}


@pytest.mark.parametrize("seed", sorted(REFERENCE))
def test_random_cases_equal_the_public_implementations(seed):
    metrics = tracking_metrics([counts(*random_case(seed))])
    found = [metrics[name] for name in ("hota", "idf1", "switches", "video_ari", "j", "f", "video_mbo")]
    np.testing.assert_allclose(found, REFERENCE[seed], atol=1e-6)


def test_a_run_is_tracked_scene_by_scene(tmp_path):
    """Two scenes of three frames; the order of the equal results of object 1 changes from frame to frame."""
    frames = {}
    for scene in (3, 4):
        frames[scene] = [frame(truth(1, block(x, 5, 14, 20)), truth(1, block(x + 40, 5, 14, 20))) for x in (2, 4, 6)]
        write_scene(tmp_path / "set", "test", scene, frames[scene])
    rows = []
    for scene, images in frames.items():
        for number, one in enumerate(images):
            for item, score in zip(one.objects, (0.9, 0.8) if number != 1 else (0.8, 0.9), strict=True):
                key = {"scene_id": scene, "image_id": number, "category_id": 1, "score": score, "time": -1}
                rows.append({**key, "segmentation": encode_mask(item.visible)})
            rows.append({**key, "score": 0.3, "segmentation": encode_mask(block(0, 40, 30, 20))})  # below the threshold
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = ["evaluate", "--dataset", f"{tmp_path}/set", "--split", "test", "--results", f"{tmp_path}/rows.json"]
    assert main([*command, "--out", f"{tmp_path}/out", "--tracking"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    tracking = metrics["tracking"]
    assert (tracking["videos"], tracking["frames"], tracking["settings"]["keep"]) == (2, 3 * 2, 30)
    assert tracking["tracked"] == pytest.approx(
        dict.fromkeys(("hota", "idf1", "video_ari", "video_mbo", "j", "f", "j_and_f"), 1.0) | {"switches": 0}
    )
    # Both instances of both scenes change their rank twice.
    assert tracking["by_score"]["switches"] == 8
    assert tracking["by_score"]["idf1"] == pytest.approx(2 / 3)


def test_untracked_results_are_measured_as_they_are(tmp_path):
    """The last frame has one mask for both instances, which the tracker divides."""
    blocks = block(2, 5, 14, 20), block(20, 5, 14, 20)
    write_scene(tmp_path / "set", "test", 0, [frame(*(truth(1, one) for one in blocks))] * 3)
    found = [blocks, blocks, [blocks[0] | blocks[1]]]
    key = {"scene_id": 0, "category_id": 1, "score": 0.9, "time": -1}
    rows = [
        {**key, "image_id": number, "segmentation": encode_mask(one)}
        for number, masks in enumerate(found)
        for one in masks
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = open_dataset(tmp_path / "set", "test")
    evaluate_file(tmp_path / "out", tmp_path / "rows.json", dataset, {(0, n): (1,) for n in range(3)}, threshold=0.5)
    metrics = evaluate_tracking(dataset, read_run(tmp_path / "out"), TrackSettings())
    assert metrics["tracked"]["idf1"] == metrics["tracked"]["video_mbo"] == 1
    assert metrics["by_score"]["idf1"] == pytest.approx(2 * 5 / (6 + 5))
    assert metrics["by_score"]["video_mbo"] < 0.9


def test_what_is_not_asked_for_or_hardly_visible_does_not_count(tmp_path):
    """Object 2 is no target, and object 3 is hidden but for a corner; results for both are left out."""
    hidden = truth(3, block(40, 40, 2, 2), block(40, 40, 10, 10))
    write_scene(
        tmp_path / "set", "test", 0, [frame(truth(1, block(2, 5, 14, 20)), truth(2, block(40, 5, 9, 9)), hidden)] * 2
    )
    masks = {1: block(2, 5, 14, 20), 2: block(40, 5, 9, 10), 3: block(40, 40, 2, 3)}
    key = {"scene_id": 0, "score": 0.9, "time": -1}
    rows = [
        {**key, "image_id": number, "category_id": one, "segmentation": encode_mask(mask)}
        for number in (0, 1)
        for one, mask in masks.items()
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = open_dataset(tmp_path / "set", "test")
    evaluate_file(tmp_path / "out", tmp_path / "rows.json", dataset, {(0, 0): (1, 3), (0, 1): (1, 3)}, threshold=0.5)
    tracked = evaluate_tracking(dataset, read_run(tmp_path / "out"), TrackSettings())["tracked"]
    assert (tracked["hota"], tracked["idf1"], tracked["video_mbo"]) == pytest.approx((1, 1, 1))


def test_several_videos_are_one_with_other_ids():
    cases = [random_case(seed) for seed in (0, 1)]
    together = tracking_metrics([counts(*case) for case in cases])
    joined = [np.concatenate([cases[0][i], np.where(cases[1][i] > 0, cases[1][i] + 5, 0)]) for i in (0, 1)]
    one = tracking_metrics([counts(*joined)])
    assert [together[name] for name in ("hota", "idf1", "switches")] == pytest.approx(
        [one[name] for name in ("hota", "idf1", "switches")]
    )
