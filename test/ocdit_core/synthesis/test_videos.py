import numpy as np
import pytest

from ocdit_core.errors import ConfigError
from ocdit_core.synthesis.videos import VideoSettings, compose_video


def discs(count: int) -> list[np.ndarray]:
    y, x = np.mgrid[-1:1:80j, -1:1:80j]
    alpha = np.where(x**2 + y**2 < 0.9, 255, 0).astype(np.uint8)
    return [np.dstack([alpha * (number == channel) for channel in range(3)] + [alpha]) for number in range(count)]


SETTINGS = VideoSettings(frames=12, image_size=(120, 160), speed=0.03, effects=0.0)


def test_masks_lie_where_the_sprites_are_and_glide():
    frames = list(compose_video(np.random.default_rng(3), discs(3), SETTINGS))
    assert len(frames) == 12
    centres = []
    for frame in frames:
        assert frame.image.shape == (120, 160, 3)
        assert frame.masks.sum(0).max() == 1
        for number, mask in enumerate(frame.masks):
            inside = frame.image[mask]
            # Pure red, green and blue discs, but for a rim that shows the background too.
            assert np.mean(inside[:, number] > 240) > 0.9
        centres.append([np.argwhere(mask).mean(0) for mask in frame.masks])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    # The last one is covered by nobody: its mean way is what the settings say, no jump among them.
    assert steps[:, -1].mean() == pytest.approx(0.03 * 120, rel=0.5)
    assert steps[:, -1].max() < 3 * 0.03 * 120


def test_gone_sprites_and_the_same_state_gives_the_same_video():
    gone = [range(4, 8), range(0), range(12)]
    videos = [list(compose_video(np.random.default_rng(3), discs(3), SETTINGS, gone)) for _ in range(2)]
    for frame, again in zip(*videos, strict=True):
        assert np.array_equal(frame.image, again.image)
        assert np.array_equal(frame.masks, again.masks)
    there = np.array([frame.masks.any((1, 2)) for frame in videos[0]])
    assert there[:, 0].tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert there[:, 1].all()
    assert not there[:, 2].any()


def test_a_share_of_the_objects_is_gone_for_a_fifth():
    settings = VideoSettings(frames=20, image_size=(60, 80), gone=1.0)
    there = np.array([f.masks.any((1, 2)) for f in compose_video(np.random.default_rng(0), discs(1), settings)])
    assert there.sum() == 16


@pytest.mark.parametrize("changes", [{"object_size": (0.5, 0.2)}, {"frames": 0}, {"image_size": (8, 64)}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        VideoSettings(**changes)
