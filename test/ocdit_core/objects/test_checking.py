from dataclasses import replace

import numpy as np
import pytest
from made_up import cross

from ocdit_core.objects.templates import check_views, inside_fractions


def test_sound_views_have_no_problem():
    assert check_views(cross()) == []
    assert inside_fractions(cross()).min() == 1


def moved(templates, views, shift):
    """The same with the images of some views, masks included, shifted by pixels and wrapped around."""
    rgb, mask = templates.rgb.copy(), templates.mask.copy()
    rgb[views] = np.roll(rgb[views], shift, axis=(1, 2))
    mask[views] = np.roll(mask[views], shift, axis=(1, 2))
    return replace(templates, rgb=rgb, mask=mask)


def small():
    """An object in a corner of a square that is far too large for it, seen by cameras that agree."""
    templates = cross()
    K = templates.K.copy()
    K[:, :2, :2] *= 0.2
    mask = np.zeros_like(templates.mask)
    mask[:, 50:78, 50:78] = True
    return replace(templates, K=K, mask=mask, rgb=np.repeat(mask[..., None] * np.uint8(200), 3, axis=3))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: replace(t, rgb=(t.rgb * 0.05).astype(np.uint8)), "view 1, 2"),
        (lambda t: moved(t, [3], (60, 0)), "view 4 of 12: cropped"),
        (lambda t: moved(t, [0], (0, 60)), "view 1 of 12: cropped"),
        (lambda t: moved(t, [2, 5], (4, -3)), "views 3, 6 of 12: points outside the mask"),
        (lambda t: replace(t, mask=t.mask[:, :, ::-1].copy(), rgb=t.rgb[:, :, ::-1].copy()), "points outside the mask"),
        (lambda t: replace(t, mask=t.mask[:, ::-1].copy(), rgb=t.rgb[:, ::-1].copy()), "points outside the mask"),
        (lambda t: replace(t, pose=np.roll(t.pose, 1, axis=0)), "points outside the mask"),
        (lambda t: replace(t, mask=t.mask & (np.arange(12) != 6)[:, None, None]), "view 7 of 12: empty"),
        (lambda t: small(), "under 50% of the view wide"),
    ],
    ids=[
        "dark",
        "cropped below",
        "cropped beside",
        "shifted",
        "mirrored",
        "upside down",
        "wrong pose",
        "empty",
        "tiny",
    ],
)
def test_bad_views_are_found(change, expected):
    problems = check_views(change(cross()))
    if expected.startswith("view 1, 2"):
        assert problems == ["views 1, 2, 3, 4, 5, 6, 7, 8 and 4 more of 12: black (brightness below 20)"]
    else:
        assert any(expected in problem for problem in problems), problems


def test_an_object_beside_the_centre_is_found():
    mask = np.zeros((12, 128, 128), bool)
    mask[:, 2:80, 30:98] = True
    templates = cross(mask=mask, rgb=np.repeat(mask[..., None] * np.uint8(200), 3, axis=3))
    assert any("off-centre" in problem for problem in check_views(templates))


def test_few_scattered_pixels_are_too_small_an_object():
    mask = np.zeros((12, 128, 128), bool)
    mask[:, 20:110:40, 20:110:40] = True
    templates = cross(mask=mask, rgb=np.repeat(mask[..., None] * np.uint8(200), 3, axis=3))
    assert any("covers under 0.4%" in problem for problem in check_views(templates))


def test_photographs_are_not_held_to_cameras_they_do_not_have():
    nowhere = np.full((12, 4, 4), np.nan)
    templates = cross(origin="photos", pose=nowhere, K=nowhere[:, :3, :3], points=np.zeros((0, 3), np.float32))
    assert check_views(templates) == []
    dark = replace(templates, rgb=np.zeros_like(templates.rgb))
    assert "black" in check_views(dark)[0]


def test_points_behind_the_camera_are_outside():
    templates = cross()
    pose = templates.pose.copy()
    pose[0, 2, 3] = -1
    inside = inside_fractions(replace(templates, pose=pose))
    assert inside[0] == 0
    assert inside[1] == 1
