"""Identity over a video, on hand-made results."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from ocdit_core.errors import ConfigError, OcditError
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.settings import InferenceSettings, TrackSettings
from ocdit_core.inference.tracker import Track, Tracker, colour_histogram, match, similarity
from ocdit_core.masks import tight_box

SIZE = (100, 100)
RED, BLUE, TEAL = (200, 40, 40), (40, 40, 200), (40, 150, 150)


def instance(name, x, y, width=10, height=10):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return Instance(object_id=name, score=0.9, box=tight_box(mask), mask=mask)


def frame(*instances, colours=None, size=SIZE, light=1.0):
    """A result and its image, in which each instance has one colour."""
    image = np.full((*size, 3), 90, np.uint8)
    for one, colour in zip(instances, colours or [RED] * len(instances), strict=True):
        image[: SIZE[0], : SIZE[1]][one.mask] = np.array(colour) * light
    return Segmentation(instances=instances, image_size=size, target_ids=("a", "b")), image


def make_tracker(numbers=None, **track):
    settings = InferenceSettings(track=TrackSettings(**track))
    return Tracker(SimpleNamespace(settings=settings), numbers)


def ids(result):
    return [one.track_id for one in result.instances]


def pairs(before, now, max_distance):
    alike = np.ones(1)
    tracks = [[Track(0, one, alike) for one in instances] for instances in (before, now)]
    return match(*tracks, TrackSettings(max_distance=max_distance))


def test_overlap_comes_before_nearness_and_objects_are_not_mixed():
    before = [instance("a", 0, 10, 60, 10), instance("a", 70, 10), instance("b", 30, 50)]
    now = [instance("b", 70, 10), instance("a", 50, 10, 16, 10), instance("a", 30, 50)]
    # The second of these lies on the first of those, though the centre of the second is nearer.
    assert sorted(pairs(before, now, 5.0)) == [(0, 1), (1, 2), (2, 0)]
    # Nothing overlaps: both are as near as they can be together, though the second of those is nearest to the first.
    found = pairs([instance("a", 0, 0), instance("a", 60, 60)], [instance("a", 45, 45), instance("a", 85, 85)], 9.0)
    assert sorted(found) == [(0, 0), (1, 1)]
    assert pairs(before, [], 5.0) == []


def test_ids_are_kept_for_a_while_and_never_used_again():
    tracker = make_tracker(keep=1)
    assert ids(tracker.update(*frame(instance("a", 0, 0), instance("a", 60, 60)))) == [1, 2]
    assert ids(tracker.update(*frame(instance("a", 62, 62)))) == [2]
    assert ids(tracker.update(*frame())) == []
    # 1 has not been seen for two frames, 2 for one.
    assert ids(tracker.update(*frame(instance("a", 55, 55), instance("b", 0, 0)))) == [2, 3]
    more = frame(instance("a", 55, 55), instance("b", 0, 0), instance("a", 0, 0))
    assert ids(tracker.update(*more)) == [2, 3, 4]


def test_an_id_does_not_jump_to_an_instance_far_away():
    tracker = make_tracker()
    assert ids(tracker.update(*frame(instance("a", 0, 0)))) == [1]
    # One diagonal, 14 pixels, is the farthest; then the first one is found again.
    assert ids(tracker.update(*frame(instance("a", 10, 9)))) == [1]
    assert ids(tracker.update(*frame(instance("a", 70, 70)))) == [2]
    assert ids(tracker.update(*frame(instance("a", 72, 70), instance("a", 12, 9)))) == [2, 1]
    assert ids(make_tracker(max_distance=9.0).update(*frame(instance("a", 0, 0)))) == [1]


def test_an_id_does_not_pass_to_an_instance_that_looks_different():
    tracker = make_tracker()
    assert ids(tracker.update(*frame(instance("a", 10, 10, 20, 20), colours=[RED]))) == [1]
    # The mask jumps to another physical object that it overlaps, and back.
    assert ids(tracker.update(*frame(instance("a", 20, 20, 20, 20), colours=[BLUE]))) == [2]
    both = frame(instance("a", 10, 10, 9, 20), instance("a", 20, 20, 20, 20), colours=[RED, BLUE])
    assert ids(tracker.update(*both)) == [1, 2]
    # Nearness alone would exchange these two.
    crossed = frame(instance("a", 18, 18, 20, 20), instance("a", 10, 40, 20, 20), colours=[RED, BLUE])
    assert ids(tracker.update(*crossed)) == [1, 2]
    ignoring = make_tracker(min_similarity=0)
    assert ids(ignoring.update(*frame(instance("a", 10, 10), colours=[RED]))) == [1]
    assert ids(ignoring.update(*frame(instance("a", 12, 10), colours=[BLUE]))) == [1]


def test_equal_objects_that_change_places_exchange_their_ids():
    """What an id does not promise."""
    tracker = make_tracker()
    assert ids(tracker.update(*frame(instance("a", 10, 10), instance("a", 50, 10)))) == [1, 2]
    assert ids(tracker.update(*frame(instance("a", 50, 10), instance("a", 10, 10)))) == [2, 1]
    # Without corners, those that turn back behind a common mask look like those that cross.
    tracker = Tracker(TrackSettings())
    assert [ids(tracker.update(result, image)) for result, image in crossing(back=True)][-1] == [2, 1]


def crossing(texture=None, *, back=False, swallowed=True):
    """Yield results and images of two equal squares that pass each other, or turn back where they meet.

    In the middle there is one mask for both, or the front one alone.
    """
    for step in range(13):
        way = 6 * (min(step, 12 - step) if back else step)
        one, other = instance("a", 8 + way, 42, 16, 16), instance("a", 80 - way, 36, 16, 16)
        image = np.full((*SIZE, 3), 90, np.uint8)
        for item in (other, one):
            x, y, width, height = item.box
            image[y : y + height, x : x + width] = RED if texture is None else texture
        near = abs(one.box[0] - other.box[0]) < 20
        both = dataclasses.replace(one, mask=one.mask | other.mask, box=tight_box(one.mask | other.mask))
        found = ((both,) if swallowed else (one,)) if near else (one, other)
        yield Segmentation(instances=found, image_size=SIZE, target_ids=("a",)), image


def test_equal_objects_that_cross_keep_their_ids():
    tracker = Tracker(TrackSettings())
    found = [ids(tracker.update(result, image)) for result, image in crossing(swallowed=False)]
    assert found[0] == found[-1] == [1, 2]
    assert sum(one == [1] for one in found) >= 3


def test_a_mask_of_two_instances_is_divided_between_them():
    tracker = Tracker(TrackSettings())
    for step, (result, image) in enumerate(crossing()):
        found = tracker.update(result, image)
        assert sorted(ids(found)) == [1, 2]
        assert np.array_equal(*(np.sum([one.mask for one in each.instances], axis=0) for each in (found, result)))
        for one in found.instances:
            left = {1: 8 + 6 * step, 2: 80 - 6 * step}[one.track_id]
            assert one.box == tight_box(one.mask)
            assert np.abs(np.array([one.box[0], one.box[0] + one.box[2]]) - [left, left + 16]).max() <= 2


def after(*instances, frames=2, result):
    """Return the ids of a result after some frames with these instances."""
    tracker = make_tracker()
    for _ in range(frames):
        tracker.update(*frame(*instances))
    return ids(tracker.update(*frame(result)))


def test_a_mask_is_not_divided_for_what_it_does_not_show():
    left, right, both = instance("a", 10, 10, 20, 20), instance("a", 30, 10, 20, 20), instance("a", 10, 10, 40, 20)
    assert after(left, right, result=both) == [1, 2]
    # They may have been pieces of one instance.
    assert after(left, right, frames=1, result=both) == [1]
    assert after(left, instance("b", 30, 10, 20, 20), result=both) == [1]
    # The mask is no larger than the first one is alone.
    assert after(both, instance("a", 40, 30), result=both) == [1]
    assert after(both, instance("a", 40, 30), result=instance("a", 10, 14, 40, 20)) == [1]


@pytest.mark.parametrize("edge", [0, 30])
def test_an_id_stays_with_what_comes_into_the_image_or_from_behind_something(edge):
    tracker = make_tracker()
    for x in range(edge - 17, 80, 4):
        left = max(x, edge)
        assert ids(tracker.update(*frame(instance("a", left, 40, x + 20 - left, 20)))) == [1]


@pytest.mark.parametrize(("frames", "width"), [(3, 40), (8, 20)])
def test_an_instance_is_as_large_as_a_mask_that_grows_in_its_first_frames_only(frames, width):
    tracker = make_tracker()
    for _ in range(frames):
        tracker.update(*frame(instance("a", 10, 10, 20, 20)))
    for _ in range(2):
        assert ids(tracker.update(*frame(instance("a", 10, 10, 40, 20)))) == [1]
    (track,) = tracker._tracks
    assert track.instance.box == (10, 10, width, 20)


def test_a_mask_is_not_divided_for_a_weak_piece_of_it():
    whole, rest = instance("a", 10, 10, 25, 20), instance("a", 10, 10, 20, 20)
    piece = dataclasses.replace(instance("a", 30, 10, 5, 20), score=0.1)
    tracker = Tracker(SimpleNamespace(settings=InferenceSettings(score_threshold=0.5)))
    for _ in range(3):
        assert ids(tracker.update(*frame(rest, piece))) == [1, 2]
    assert ids(tracker.update(*frame(whole))) == [1]


def test_a_mask_is_divided_for_as_long_as_an_id_is_kept():
    tracker = make_tracker(keep=2)
    left, right, both = instance("a", 10, 10, 20, 20), instance("a", 30, 10, 20, 20), instance("a", 10, 10, 40, 20)
    found = [ids(tracker.update(*frame(*one))) for one in [(left, right)] * 3 + [(both,)] * 3]
    assert found == [[1, 2]] * 5 + [[1]]


def test_points_that_something_else_drags_along_are_dropped():
    track = Track(1, instance("a", 10, 10, 40, 40), np.ones(1), velocity=np.array([-8.0, 0.0]))
    ways = np.array([[-8.0, 0.5]] * 6 + [[6.0, 0.0]] * 14)
    track.move(np.zeros((20, 2), np.float32), ways)
    assert len(track.points) == 6
    assert track.way == pytest.approx([-8, 0.5])
    # All move in another way: the instance does.
    track.move(np.zeros((20, 2), np.float32), np.tile([6.0, 0.0], (20, 1)))
    assert len(track.points) == 20
    assert track.way == pytest.approx([-2, 0.5])


def test_points_tell_equal_objects_that_turn_back_from_ones_that_cross():
    texture = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    tracker = Tracker(TrackSettings())
    found = [ids(tracker.update(result, image)) for result, image in crossing(texture, back=True)]
    assert found[0] == found[-1] == [1, 2]
    assert [len(one) for one in found].count(1) >= 1


class MovingSquare:
    """A segmenter of a textured square that moves 6 pixels to the right in each frame; it notes what it is asked."""

    object_ids = ("a",)

    def __init__(self, interval):
        self.settings = InferenceSettings(track=TrackSettings(interval=interval), score_threshold=0.5)
        self.calls = []

    def segment(self, image, objects=None):
        self.calls.append("whole")
        return self._found(image, ("a",), objects)

    def follow(self, image, expected, objects=None):
        self.calls.append(expected)
        return self._found(image, [name for name, _ in expected], objects)

    def _found(self, image, names, objects):
        x = int(image[0, 0, 0])
        found = tuple(instance(name, x, 40, 20, 20) for name in names)
        return Segmentation(instances=found, image_size=image.shape[:2], target_ids=(objects or self).object_ids)


def moving_square(step, size=SIZE):
    image = np.full((*size, 3), 90, np.uint8)
    x = image[0, 0, 0] = 10 + 6 * step
    image[40:60, x : x + 20] = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    return image


def test_between_whole_frames_instances_are_segmented_where_they_are_expected():
    segmenter = MovingSquare(interval=3)
    tracker = Tracker(segmenter)
    assert [ids(tracker.segment(moving_square(step))) for step in range(5)] == [[1]] * 5
    assert [call == "whole" for call in segmenter.calls] == [True, False, False, True, False]
    for step in (1, 2, 4):
        ((name, box),) = segmenter.calls[step]
        assert name == "a"
        assert np.allclose(box, (10 + 6 * step, 40, 20, 20), atol=1)
    # Another video, and other targets.
    tracker.segment(moving_square(5, size=(100, 120)))
    assert segmenter.calls[-1] == "whole"
    objects = SimpleNamespace(object_ids=("a", "b"))
    for call in ("whole", [("a", (58, 40, 20, 20))]):
        tracker.segment(moving_square(8, size=(100, 120)), objects)
        assert segmenter.calls[-1] == call


def test_masks_that_a_lower_threshold_let_pass_are_not_followed():
    segmenter = MovingSquare(interval=2)
    tracker = Tracker(segmenter)
    weak = dataclasses.replace(instance("a", 10, 40, 20, 20), score=0.4)
    tracker.update(Segmentation(instances=(weak,), image_size=SIZE, target_ids=("a",)), moving_square(0))
    tracker.segment(moving_square(1))
    assert segmenter.calls == [[]]


def test_the_frame_after_an_error_is_whole(monkeypatch):
    segmenter = MovingSquare(interval=9)
    tracker = Tracker(segmenter)
    tracker.segment(moving_square(0))
    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "_found", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tracker.segment(moving_square(1))
    assert [ids(tracker.segment(moving_square(step))) for step in (2, 3)] == [[1], [1]]
    assert [call == "whole" for call in segmenter.calls] == [True, False, True, False]


def test_each_frame_is_whole_unless_an_interval_is_set():
    segmenter = MovingSquare(interval=1)
    tracker = Tracker(segmenter)
    for step in range(3):
        tracker.segment(moving_square(step))
    assert segmenter.calls == ["whole"] * 3


def test_a_tracker_of_settings_alone_has_no_segmenter():
    with pytest.raises(OcditError, match="has settings alone"):
        Tracker(TrackSettings()).segment(np.zeros((*SIZE, 3), np.uint8))


@pytest.mark.parametrize("light", [0.8, 1.25])
def test_an_id_survives_another_light_and_a_mask_with_some_background(light):
    tracker = make_tracker()
    assert ids(tracker.update(*frame(instance("a", 10, 10, 20, 20), colours=[TEAL]))) == [1]
    result, image = frame(instance("a", 12, 10, 20, 20), colours=[TEAL], light=light)
    image[:, 28:] = 90  # the mask has 4 of 20 columns too many
    assert ids(tracker.update(result, image)) == [1]


def test_histograms_are_those_of_the_pixels_inside_the_outline():
    inside = instance("a", 10, 10, 20, 20)
    _, image = frame(inside, colours=[RED])
    plain = colour_histogram(image, inside)
    assert plain.sum() == pytest.approx(1, abs=1e-5)
    assert similarity(plain, plain) == pytest.approx(1, abs=1e-5)
    image[10], image[29], image[:, 10], image[:, 29] = BLUE, BLUE, BLUE, BLUE
    assert np.array_equal(colour_histogram(image, inside), plain)
    other = frame(inside, colours=[BLUE])[1]
    assert similarity(plain, colour_histogram(other, inside)) < 0.1
    # A speck, and one at the border of the image.
    assert colour_histogram(image, instance("a", 0, 99, 1, 1)).sum() == pytest.approx(1, abs=1e-5)


def test_a_reset_and_another_size_start_another_video():
    tracker = make_tracker()
    assert ids(tracker.update(*frame(instance("a", 0, 0)))) == [1]
    tracker.reset()
    assert ids(tracker.update(*frame(instance("a", 0, 0)))) == [2]
    assert ids(tracker.update(*frame(instance("a", 0, 0), size=(100, 120)))) == [3]


def test_trackers_that_share_numbers_never_use_one_twice():
    numbers = itertools.count(1)
    left, right = make_tracker(numbers), make_tracker(numbers)
    assert ids(left.update(*frame(instance("a", 0, 0)))) == [1]
    assert ids(right.update(*frame(instance("a", 0, 0)))) == [2]
    assert ids(left.update(*frame(instance("a", 1, 0)))) == [1]


def test_segment_numbers_what_the_segmenter_finds():
    asked = []

    def segment(image, objects):
        asked.append((image, objects))
        return frame(instance("a", 5, 5))[0]

    tracker = Tracker(SimpleNamespace(settings=InferenceSettings(), segment=segment))
    image = np.zeros((*SIZE, 3), np.uint8)
    assert ids(tracker.segment(image, "targets")) == ids(tracker.segment(image)) == [1]
    assert [objects for _, objects in asked] == ["targets", None]


def test_a_negative_memory_is_refused():
    with pytest.raises(ConfigError, match="keep: -1"):
        TrackSettings(keep=-1)
    with pytest.raises(ConfigError, match=r"min_similarity: 2 is not in \[0, 1\]"):
        TrackSettings(min_similarity=2)
