import json

import cv2
import numpy as np
import pytest
import torch
from painted import colour_of, looks_like, paint, write_library

from ocdit_core.data import augment, sampling
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.sampling import SampleSettings, make_sample
from ocdit_core.data.shards import iterate_shard
from ocdit_core.data.templates import TemplateCache
from ocdit_core.data.writers import write_scene, write_shard
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.library import ObjectLibrary

FRAMES = 12


def make(frame, templates, rng, *, mode="coarse", size=(120, 160), augment=False, **settings):
    """A sample with three templates of each object, not augmented."""
    objects = {"objects": 1} if mode == "refine" else {}
    settings = SampleSettings(views=3, **objects, **settings)
    return make_sample(frame, templates, settings, rng, mode=mode, size=size, augment=augment)


@pytest.fixture
def random_crops(monkeypatch):
    """Return a function that sets the probability of random crops."""
    return lambda probability: monkeypatch.setattr(sampling, "RANDOM_CROP_PROBABILITY", probability)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return ObjectLibrary(write_library(tmp_path_factory.mktemp("samples") / "objects"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("bop")
    write_scene(path, "train", 0, [paint(seed) for seed in range(FRAMES)])
    return BopFolder(path, "train")


@pytest.fixture
def templates(library):
    return TemplateCache(library, size=64)


def one_frame(path, truth):
    write_scene(path, "train", 0, [truth])
    return BopFolder(path, "train")[0]


def shrunk(mask, side=3):
    return cv2.erode(mask.astype(np.uint8), np.ones((side, side))) > 0


def grown(mask, side=5):
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side))) > 0


def photo(sample, crop=0):
    return sample["images"][crop].numpy().transpose(1, 2, 0)


def test_a_coarse_sample_has_the_tensors_that_training_takes(frames, templates):
    sample = make(frames[0], templates, rng(), objects=4, crops=2)
    assert {name: (tuple(t.shape), t.dtype) for name, t in sample.items()} == {
        "images": ((2, 3, 120, 160), torch.uint8),
        "templates": ((4, 3, 3, 64, 64), torch.uint8),
        "template_masks": ((4, 3, 64, 64), torch.uint8),
        "masks": ((2, 4, 120, 160), torch.uint8),
        "present": ((2, 4), torch.bool),
        "object_ids": ((4,), torch.int64),
    }
    assert set(sample["template_masks"].unique().tolist()) == {0, 255}
    assert set(sample["masks"].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("random_probability", [0.0, 1.0])
def test_masks_templates_and_numbers_of_a_coarse_sample_belong_together(
    frames, templates, random_crops, random_probability
):
    """Colours tell: under a mask the image has the object's, nowhere else, and so have its templates."""
    random_crops(random_probability)
    seen = 0
    for seed in range(60):
        sample = make(frames[seed % FRAMES], templates, rng(seed), objects=4, absent_probability=0.2)
        ids = sample["object_ids"].tolist()
        assert len(set(ids)) == 4
        for number, object_id in enumerate(ids):
            mask = sample["masks"][0, number].numpy() > 0
            present = bool(sample["present"][0, number])
            assert present == mask.any()
            like = looks_like(photo(sample), object_id)
            inside, outside = shrunk(mask), ~grown(mask)
            if present:
                seen += 1
                assert like[inside].mean() > 0.97 or inside.sum() < 20
                # Edges between two other objects may blend into this one's colour: they are thin.
                assert shrunk(like & outside).mean() < 0.001
            shown = sample["template_masks"][number, 0].numpy() > 0
            colour = sample["templates"][number, 0].numpy().transpose(1, 2, 0)[shown].mean(axis=0)
            np.testing.assert_allclose(colour, colour_of(object_id), atol=12)
    assert seen > 120


def test_objects_that_are_there_are_preferred_and_others_are_really_absent(frames, templates, random_crops):
    random_crops(0.0)
    for seed in range(FRAMES):
        frame = frames[seed]
        sample = make(frame, templates, rng(seed), objects=4, absent_probability=0.0)
        assert set(sample["object_ids"].tolist()) <= {a.object_id for a in frame.annotations}
        assert sample["present"].all()
    sample = make(frames[0], templates, rng(), objects=8, absent_probability=0.0)
    there = {a.object_id for a in frames[0].annotations}
    known = [i in there for i in sample["object_ids"].tolist()]
    assert sum(known) == 5
    assert sample["present"][0].tolist() == known


def test_the_chosen_fraction_of_objects_is_absent(frames, templates, random_crops):
    random_crops(0.0)
    options = {"objects": 3, "absent_probability": 0.3}
    present = [make(frames[s % FRAMES], templates, rng(s), **options)["present"] for s in range(200)]
    # One object at least is kept: the mean of max(binomial, 1) / 3.
    assert torch.stack(present).float().mean().item() == pytest.approx(0.709, abs=0.04)


def test_tight_crops_show_more_of_the_objects_than_the_whole_frame(frames, templates, random_crops, monkeypatch):
    def fraction(random_probability):
        random_crops(random_probability)
        options = {"objects": 2, "absent_probability": 0.0, "crop_scale": (1.0, 1.0)}
        samples = [make(frames[s % FRAMES], templates, rng(s), **options) for s in range(30)]
        return float(np.mean([s["masks"].float().mean().item() for s in samples]))

    monkeypatch.setitem(sampling.MARGIN, "coarse", (0.05, 0.1))
    assert fraction(0.0) > 1.5 * fraction(1.0)


def test_refine_samples_show_one_object_or_none(frames, templates):
    """The share of negatives is as asked for; in these the image has nothing of the object."""
    negatives = strangers = 0
    for seed in range(400):
        frame = frames[seed % FRAMES]
        sample = make(frame, templates, rng(seed), mode="refine", negative_probability=0.4)
        (object_id,) = sample["object_ids"].tolist()
        mask = sample["masks"][0, 0].numpy() > 0
        like = looks_like(photo(sample), object_id)
        if sample["present"].item():
            assert like[shrunk(mask)].mean() > 0.85
            assert mask.mean() > 0.02
        else:
            negatives += 1
            strangers += object_id not in {a.object_id for a in frame.annotations}
            assert not mask.any()
            assert shrunk(like, 7).mean() < 0.001
    assert negatives / 400 == pytest.approx(0.4, abs=0.06)
    assert 0.3 < strangers / negatives < 0.8


def test_hard_negatives_look_like_what_the_crop_shows(tmp_path, templates, monkeypatch):
    monkeypatch.setattr(sampling, "ELSEWHERE_PROBABILITY", 0.0)
    frame = one_frame(tmp_path, paint(3, [4]))
    others = [i for i in templates.object_ids if i != 4]
    likest = max(others, key=lambda i: templates.similarity(i, 4))

    def asked(hard_negatives: int) -> list[int]:
        options = {"mode": "refine", "negative_probability": 1.0, "hard_negatives": hard_negatives}
        return [make(frame, templates, rng(seed), **options)["object_ids"].item() for seed in range(30)]

    assert set(asked(len(others))) == {likest}
    assert len(set(asked(2))) > 1
    assert asked(2).count(likest) > asked(1).count(likest)


def test_of_two_instances_a_coarse_mask_holds_both_and_a_refine_mask_one(
    tmp_path, templates, random_crops, monkeypatch
):
    truth = paint(3, [4, 4, 7])
    frame = one_frame(tmp_path, truth)
    random_crops(1.0)
    whole = {"crop_scale": (1.0, 1.0), "size": (240, 320)}
    sample = make(frame, templates, rng(), objects=2, absent_probability=0, **whole)
    mask = sample["masks"][0, sample["object_ids"].tolist().index(4)].numpy() > 0
    np.testing.assert_array_equal(mask, truth.objects[0].visible | truth.objects[1].visible)

    monkeypatch.setitem(sampling.MARGIN, "refine", (3, 3))
    areas = {4: set(), 7: set()}
    for seed in range(40):
        sample = make(frame, templates, rng(seed), mode="refine", negative_probability=0.0)
        count, _, stats, _ = cv2.connectedComponentsWithStats(sample["masks"][0, 0].numpy())
        assert count == 2  # the background and one instance
        areas[sample["object_ids"].item()].add(stats[1, cv2.CC_STAT_AREA] > 0)
    assert areas == {4: {True}, 7: {True}}


def test_large_frames_are_decoded_small_where_that_is_enough(tmp_path, templates, random_crops, monkeypatch):
    random_crops(1.0)
    frame = one_frame(tmp_path, paint(1, size=(480, 640)))
    asked = []
    decode = type(frame).image
    monkeypatch.setattr(
        type(frame), "image", lambda self, *, reduction=1: asked.append(reduction) or decode(self, reduction=reduction)
    )
    sample = make(frame, templates, rng(), objects=4, absent_probability=0, crop_scale=(1.0, 1.0))
    assert asked == [4]
    for number, object_id in enumerate(sample["object_ids"].tolist()):
        mask = shrunk(sample["masks"][0, number].numpy())
        assert looks_like(photo(sample), object_id)[mask].mean() > 0.97
    make(frame, templates, rng(), mode="refine", size=(224, 224))
    assert asked == [4, 1]


def test_only_what_a_sample_needs_is_read(frames, library, monkeypatch):
    """One archive and one mask for a refine sample without a replaced background."""
    templates = TemplateCache(library, size=64)
    frame = frames[2]
    read = []
    mask = type(frame).mask
    monkeypatch.setattr(type(frame), "mask", lambda self, index, **k: read.append(index) or mask(self, index, **k))
    make(frame, templates, rng(1), mode="refine", negative_probability=0.0)
    assert len(read) == 1
    assert templates.misses == 1


def test_a_replaced_background_changes_all_but_the_objects(frames, templates, monkeypatch):
    """All annotated objects stay, those that are not asked for as well."""
    monkeypatch.setattr(augment, "IMAGE_PROBABILITY", 0.0)
    monkeypatch.setattr(sampling, "BACKGROUND_PROBABILITY", 1.0)
    plain, sample = (
        make(frames[0], templates, rng(4), objects=2, absent_probability=0, augment=changed)
        for changed in (False, True)
    )
    torch.testing.assert_close(sample["masks"], plain["masks"], rtol=0, atol=0)
    before, after = photo(plain).astype(int), photo(sample).astype(int)
    coloured = np.ptp(before, axis=2) > 60
    kept, far = shrunk(coloured, 5), ~grown(coloured, 7)
    assert np.mean(np.abs(after - before)[kept] > 2) < 0.003
    assert np.mean(np.abs(after - before)[far].max(axis=1) > 8) > 0.5


@pytest.mark.parametrize("mode", ["coarse", "refine"])
def test_a_mirrored_sample_is_mirrored_throughout(frames, templates, mode):
    plain, mirrored = (make(frames[0], templates, rng(1), mode=mode, flip_probability=p) for p in (0.0, 1.0))
    for name, value in plain.items():
        axes = {"images": [3], "masks": [3], "templates": [4], "template_masks": [3]}.get(name, [])
        assert torch.equal(mirrored[name], value.flip(axes)), name
    flipped = [make(frames[0], templates, rng(s), flip_probability=0.3) for s in range(100)]
    straight = [make(frames[0], templates, rng(s)) for s in range(100)]
    count = sum(not torch.equal(a["images"], b["images"]) for a, b in zip(flipped, straight, strict=True))
    assert 18 <= count <= 42


def test_the_same_randomness_gives_the_same_sample_from_a_folder_and_from_a_shard(tmp_path, frames, templates):
    write_shard(tmp_path / "shard-000000.tar", [(f"000000_{i:06d}", paint(i)) for i in range(3)])
    for index, frame in enumerate(iterate_shard(tmp_path / "shard-000000.tar")):
        a = make(frames[index], templates, rng(index), objects=3, augment=True)
        b = make(frame, templates, rng(index), objects=3, augment=True)
        assert all(torch.equal(a[name], b[name]) for name in a)
        other = make(frame, templates, rng(index + 100), objects=3, augment=True)
        assert not torch.equal(other["images"], a["images"])


def test_without_gt_info_the_masks_say_what_is_seen(tmp_path, templates):
    frame = one_frame(tmp_path, paint(5))
    expected = make(frame, templates, rng(1), objects=3)
    (tmp_path / "train" / "000000" / "scene_gt_info.json").unlink()
    sample = make(BopFolder(tmp_path, "train")[0], templates, rng(1), objects=3)
    assert all(torch.equal(sample[name], expected[name]) for name in sample)


def test_hidden_and_tiny_objects_are_not_looked_for(tmp_path, templates):
    frame = one_frame(tmp_path, paint(5, [1, 2, 3]))
    path = tmp_path / "train" / "000000" / "scene_gt_info.json"
    info = json.loads(path.read_text())
    info["0"][0]["visib_fract"] = 0.05
    info["0"][1]["bbox_visib"][2] = 3
    path.write_text(json.dumps(info))
    frame = BopFolder(tmp_path, "train")[0]
    options = {"mode": "refine", "negative_probability": 0}
    assert {make(frame, templates, rng(s), **options)["object_ids"].item() for s in range(20)} == {3}
    for entry in info["0"]:
        entry["visib_fract"] = 0.05
    path.write_text(json.dumps(info))
    assert make(BopFolder(tmp_path, "train")[0], templates, rng(), **options) is None


def test_an_object_without_templates_is_never_asked_for(tmp_path, templates, caplog):
    frame = one_frame(tmp_path, paint(5, [1, 77, 3]))
    for seed in range(20):
        sample = make(frame, templates, rng(seed), objects=4)
        assert 77 not in sample["object_ids"].tolist()
    assert [r.getMessage() for r in caplog.records] == [
        f"{frame.where}: object 77 has no templates in {templates.library.path}: it is never asked for"
    ]


def test_a_frame_without_any_templates_is_an_error_with_its_name(tmp_path, templates):
    frame = one_frame(tmp_path, paint(5, [76, 77]))
    with pytest.raises(DataError, match=r"000000: 0: none of its objects \(76, 77\) has templates") as caught:
        make(frame, templates, rng())
    assert caught.value.kind == "no templates"


def test_a_frame_with_all_objects_of_the_library_has_negatives_only_elsewhere(tmp_path, library):
    write_library(tmp_path / "objects", [1, 2])
    templates = TemplateCache(ObjectLibrary(tmp_path / "objects"), size=64)
    frame = one_frame(tmp_path, paint(8, [1, 2]))
    options = {"mode": "refine", "negative_probability": 1.0}
    samples = [make(frame, templates, rng(seed), **options) for seed in range(20)]
    absent = [s for s in samples if not s["present"].item()]
    assert absent
    assert all(not s["masks"].any() for s in absent)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"views": 0}, "views"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale"),
        ({"negative_probability": 1.1}, "negative_probability: 1.1"),
    ],
)
def test_impossible_settings_are_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        SampleSettings(**values)
