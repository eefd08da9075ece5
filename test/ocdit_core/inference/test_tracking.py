"""Videos followed by the embedded model, and the numbers of instances."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.data.synthetic.sprites import render_sprites
from ocdit_core.data.synthetic.videos import VideoSettings, compose_video
from ocdit_core.errors import ConfigError, ImageError, OcditError
from ocdit_core.inference.results import Instance
from ocdit_core.inference.settings import TileSettings, TrackSettings
from ocdit_core.inference.tracking import Identities, match
from ocdit_core.inference.weights import recommended_settings
from ocdit_core.masks import mask_iou, tight_box
from ocdit_core.models.denoiser import NoiseLevel
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.opengl_renderer import Renderer

MESHES = Path(__file__).parents[3] / "examples" / "meshes"
NAMES = ("melon", "striped_mug", "yellow_mug")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    add_objects(folder, [MESHES / f"{name}.glb" for name in NAMES], unit="m")
    return ObjectLibrary(folder)


@pytest.fixture(scope="module")
def sprites():
    drawn = []
    with Renderer() as renderer:
        for name in NAMES:
            handle = renderer.upload(trimesh.load(MESHES / f"{name}.glb", force="mesh"))
            drawn.append(render_sprites(renderer, handle, np.random.default_rng(1), 1, 160)[0])
            handle.release()
    return drawn


def make_segmenter(sigma=2.0, **track):
    settings = recommended_settings("ocdit-tiny")
    # Evaluations are counted here, and tiles take one more of each frame.
    track_settings = TrackSettings(sigma=sigma, **track)
    settings = replace(settings, image_size=(192, 256), views=6, tiles=TileSettings(), track=track_settings)
    return Segmenter.from_pretrained("ocdit-tiny", device="cpu", settings=settings, refine=None)


def video(sprites, frames, gone=(range(0), range(0)), seed=7):
    settings = VideoSettings(frames=frames, image_size=(192, 256), object_size=(0.4, 0.5), effects=0.3)
    return list(compose_video(np.random.default_rng(seed), sprites[: len(gone)], settings, gone))


class Levels:
    """The noise level of each evaluation of the coarse network."""

    def __init__(self, segmenter, monkeypatch):
        self.seen = []
        denoiser = segmenter._model.denoiser
        plain = denoiser.forward

        def forward(latents, level, conditioning):
            sigma = level.sigma if isinstance(level, NoiseLevel) else level
            self.seen.append(round(float(sigma.flatten()[0]), 3))
            return plain(latents, level, conditioning)

        monkeypatch.setattr(denoiser, "forward", forward)


def test_a_video_takes_one_evaluation_a_frame_and_keeps_its_numbers(library, sprites, monkeypatch):
    segmenter = make_segmenter(redetect_every=4)
    segmenter.set_objects(library, NAMES[:2])
    levels = Levels(segmenter, monkeypatch)
    frames = video(sprites, 6)
    results = [segmenter.track(frame.image) for frame in frames]
    assert levels.seen == [80.0, 2.0, 2.0, 2.0, 80.0, 2.0]
    numbers = [{one.object_id: one.track_id for one in result.instances} for result in results]
    assert numbers[0].keys() == set(NAMES[:2])
    assert all(row == numbers[0] for row in numbers)
    assert sorted(numbers[0].values()) == [1, 2]
    overlaps = [
        mask_iou(one.mask, frame.masks[NAMES.index(one.object_id)])
        for frame, result in zip(frames, results, strict=True)
        for one in result.instances
    ]
    assert np.mean(overlaps) > 0.5
    assert np.array_equal(results[0].label_map(), segmenter.segment(frames[0].image).label_map())
    assert segmenter.segment(frames[0].image).instances[0].track_id is None


@pytest.mark.parametrize(("keep", "same"), [(6, True), (1, False)])
def test_an_object_that_is_hidden_for_a_while(library, sprites, monkeypatch, keep, same):
    segmenter = make_segmenter(redetect_every=3, keep=keep)
    segmenter.set_objects(library, NAMES[:2])
    levels = Levels(segmenter, monkeypatch)
    results = [segmenter.track(frame.image) for frame in video(sprites, 9, (range(2, 5), range(0)))]
    numbers = [{one.object_id: one.track_id for one in result.instances} for result in results]
    first, other = numbers[0]["melon"], numbers[0]["striped_mug"]
    assert all("melon" not in row for row in numbers[2:5])
    assert all(row["striped_mug"] == other for row in numbers)
    # One evaluation a frame; the frame after the loss starts anew.
    assert len(levels.seen) == 9
    assert levels.seen[3] == 80.0
    assert "melon" in numbers[-1]
    assert (numbers[-1]["melon"] == first) is same
    assert same or numbers[-1]["melon"] > max(first, other)


def test_other_targets_and_another_size_start_anew(library, sprites, monkeypatch):
    segmenter = make_segmenter(redetect_every=100)
    segmenter.set_objects(library, NAMES[:2])
    levels = Levels(segmenter, monkeypatch)
    image = video(sprites, 1, (range(0),) * 3)[0].image
    before = {one.object_id: one.track_id for one in segmenter.track(image).instances}
    segmenter.track(image)
    segmenter.set_objects(library, NAMES)
    after = segmenter.track(image)
    assert after.target_ids == NAMES
    # Who is looked for still is who they were.
    assert before.items() <= {one.object_id: one.track_id for one in after.instances}.items()
    smaller = segmenter.track(np.ascontiguousarray(image[:160]))
    assert smaller.image_size == (160, 256)
    assert levels.seen == [80.0, 2.0, 80.0, 80.0]
    assert min(one.track_id for one in smaller.instances) > max(one.track_id for one in after.instances)


def test_several_cameras_share_a_model(library, sprites):
    segmenter = make_segmenter()
    segmenter.set_objects(library, NAMES[:2])
    videos = [[frame.image for frame in video(sprites, 3, seed=seed)] for seed in (7, 8)]
    trackers = [segmenter.tracker(), segmenter.tracker()]
    mixed = [
        [t.segment(image) for t, image in zip(trackers, images, strict=True)] for images in zip(*videos, strict=True)
    ]
    for camera, images in enumerate(videos):
        alone = segmenter.tracker()
        for step, image in enumerate(images):
            assert np.array_equal(alone.segment(image).label_map(), mixed[step][camera].label_map())
    numbers = [{one.track_id for step in mixed for one in step[camera].instances} for camera in (0, 1)]
    assert numbers[0]
    assert numbers[1]
    assert not numbers[0] & numbers[1]


def test_a_reset_and_a_bad_image(library, sprites):
    segmenter = make_segmenter()
    image = video(sprites, 1)[0].image
    with pytest.raises(OcditError, match="set_objects"):
        segmenter.track(image)
    segmenter.set_objects(library, NAMES[:2])
    first = segmenter.track(image)
    with pytest.raises(ImageError):
        segmenter.track(image.astype(float) / 2)
    follows = segmenter.track(image)
    assert {one.track_id for one in follows.instances} == {one.track_id for one in first.instances}
    segmenter.reset_track()
    again = segmenter.track(image)
    assert np.array_equal(again.label_map(), first.label_map())
    assert not {one.track_id for one in again.instances} & {one.track_id for one in first.instances}


def instance(name, x, y, width=10, height=10):
    mask = np.zeros((100, 100), bool)
    mask[y : y + height, x : x + width] = True
    return Instance(object_id=name, score=0.9, box=tight_box(mask), mask=mask)


def test_overlap_comes_before_nearness_and_objects_are_not_mixed():
    before = [instance("a", 0, 10, 60, 10), instance("a", 70, 10), instance("b", 30, 50)]
    now = [instance("b", 70, 10), instance("a", 50, 10, 16, 10), instance("a", 30, 50)]
    # The second of these lies on the first of those, though the centre of the second is nearer.
    assert sorted(match(before, now)) == [(0, 1), (1, 2), (2, 0)]
    # Nothing overlaps: the nearest two first, the others are left for each other.
    pairs = match([instance("a", 0, 0), instance("a", 60, 60)], [instance("a", 40, 40), instance("a", 80, 80)])
    assert sorted(pairs) == [(0, 1), (1, 0)]
    assert match(before, []) == []


def test_numbers_are_kept_for_a_while_and_never_used_again():
    identities = Identities(itertools.count(1), keep=1)
    assert identities.assign([instance("a", 0, 0), instance("a", 60, 60)])[1] is False
    (moved,), lost = identities.assign([instance("a", 62, 62)])
    assert (moved.track_id, lost) == (2, True)
    (), lost = identities.assign([])
    assert lost
    named, lost = identities.assign([instance("a", 0, 50), instance("b", 0, 0)])
    # 1 has not been seen for two frames, 2 for one.
    assert ([one.track_id for one in named], lost) == ([2, 3], False)
    named, _ = identities.assign([instance("a", 0, 50), instance("b", 0, 0), instance("a", 0, 0)])
    assert [one.track_id for one in named] == [2, 3, 4]


@pytest.mark.parametrize("changes", [{"sigma": 0.0}, {"sigma": 100.0}, {"redetect_every": 0}, {"keep": -1}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrackSettings(**changes)
