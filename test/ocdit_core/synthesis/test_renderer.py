import dataclasses

import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.errors import RenderingError
from ocdit_core.objects.renderer import Renderer
from ocdit_core.objects.viewpoints import look_at_poses, project
from ocdit_core.synthesis.renderer import Placed, SceneRenderer
from ocdit_core.synthesis.room import Material, RoomLight, random_room

SIZE = (240, 320)
K = np.array([[260.0, 0, 163.4], [0, 255.0, 117.3], [0, 0, 1]])
MATT = Material(roughness=1.0, specular=0.0)


def room_with(lamp=(0.6, 0.0, 1.2), radius=0.02):
    room = random_room(np.random.default_rng(0), textures=0, objects_reach=0.4)
    light = RoomLight(position=np.array(lamp), radius=radius, colour=np.full(3, 3.0))
    grey = tuple(dataclasses.replace(part, corners=painted(part.corners, 0.6), material=MATT) for part in room.surfaces)
    sky = {"zenith": np.full(3, 0.3), "horizon": np.full(3, 0.3), "ground": np.full(3, 0.1)}
    return dataclasses.replace(room, surfaces=grey, lights=(light,), windows=np.zeros((0, 6)), **sky)


def painted(corners, grey):
    changed = corners.copy()
    changed[:, 8:11] = grey
    return changed


def camera(direction=(0.3, -1.0, 1.0), distance=0.9, centre=(0, 0, 0)):
    towards = np.array(direction) / np.linalg.norm(direction)
    return look_at_poses(towards, distance, 0.2, centre=centre)[0]


def at(x, y, z):
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


@pytest.fixture(scope="module")
def knot():
    """A shape without symmetry, with a texture."""
    parts = [
        trimesh.creation.box((0.12, 0.05, 0.04)),
        trimesh.creation.cylinder(0.02, 0.12).apply_translation((0.04, 0, 0.06)),
        trimesh.creation.icosphere(subdivisions=2, radius=0.03).apply_translation((-0.05, 0.02, 0.03)),
    ]
    return trimesh.util.concatenate(parts)


@pytest.fixture
def staged(renderer, knot):
    handle = renderer.upload(knot)
    block = renderer.upload(trimesh.creation.box((0.2, 0.02, 0.3)))
    objects = [
        Placed(mesh=handle, pose=at(0, 0, 0.02), material=MATT, label=1),
        Placed(mesh=block, pose=at(0, -0.2, 0.15), material=MATT, label=9),
        Placed(mesh=handle, pose=at(-0.3, 0.1, 0.02), material=MATT, label=0),
    ]
    renderer.stage(room_with(), {}, objects)
    return objects


def test_masks_agree_with_the_renderer_of_templates(renderer, staged, knot):
    pose = camera((1.0, 0.6, 1.0))
    view = renderer.draw(pose, K, SIZE, exposure=1.0)
    alone = renderer.silhouettes(pose, K, SIZE)[0]
    with Renderer() as other:
        expected = other.render(knot, pose @ staged[0].pose, K, SIZE, supersample=1).alpha[0] > 127
    assert expected.sum() > 500
    assert (alone & expected).sum() / (alone | expected).sum() > 0.99
    # Both contexts are alive: what one draws does not change what the other does.
    assert (renderer.draw(pose, K, SIZE, exposure=1.0).rgb == view.rgb).all()


def test_depth_is_where_things_are(renderer, staged):
    pose = camera()
    view = renderer.draw(pose, K, SIZE, exposure=1.0)
    v, u = np.mgrid[:240, :320] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K).T
    world = (rays * view.depth[..., None] - pose[:3, 3]) @ pose[:3, :3]
    on_block = world[view.labels == 9]
    assert len(on_block) > 1000
    assert (np.abs(on_block - (0, -0.2, 0.15)).max(axis=0) < (0.101, 0.011, 0.151)).all()
    inside = (np.abs(world[..., :2]) < 0.35).all(axis=-1) & (view.labels == 0) & (world[..., 0] > -0.1)
    assert np.abs(world[inside][:, 2]).max() < 1e-3  # the table
    assert (view.depth > 0).all()


def test_a_hidden_object_has_a_silhouette_but_no_label(renderer, staged):
    pose = camera((0, -1, 0.25), 1.2)
    view = renderer.draw(pose, K, SIZE, exposure=1.0)
    behind, before = renderer.silhouettes(pose, K, SIZE)
    seen = np.count_nonzero(view.labels == 1)
    assert seen < 0.3 * behind.sum()
    assert behind.sum() > 300
    assert np.count_nonzero(view.labels == 9) == before.sum()
    assert set(np.unique(view.labels)) <= {0, 1, 9}  # the third has none


def test_silhouettes_hold_what_is_seen_and_can_be_drawn_on_a_larger_canvas(renderer, staged):
    pose = camera((1, -1, 1), 0.5)
    view = renderer.draw(pose, K, SIZE, exposure=1.0)
    masks = renderer.silhouettes(pose, K, SIZE)
    for item, mask in zip(staged, masks, strict=False):
        assert not ((view.labels == item.label) & ~mask).any()
    wide = K + np.array([[0, 0, 320.0], [0, 0, 240.0], [0, 0, 0]])
    canvas = renderer.silhouettes(pose, wide, (720, 960))
    assert (canvas[:, 240:480, 320:640] != masks).sum() <= 20  # rounding along edges
    assert canvas[1].sum() > masks[1].sum()  # the block reaches beyond the image


def luma(view):
    return view.rgb.astype(float).mean(axis=2)


def test_an_object_throws_a_shadow_that_starts_at_its_foot(renderer):
    cube = renderer.upload(trimesh.creation.box((0.1, 0.1, 0.1)))
    pose = camera((0, -0.7, 1))
    # The lamp stands at +x: the shadow of the top edge ends at -x.
    lamp = np.array([0.8, 0, 0.9])
    renderer.stage(room_with(lamp), {}, [Placed(mesh=cube, pose=at(0, 0, 0.05), material=MATT, label=1)])
    with_cube = luma(renderer.draw(pose, K, SIZE, exposure=0.8))
    renderer.stage(room_with(lamp), {}, [])
    without = luma(renderer.draw(pose, K, SIZE, exposure=0.8))
    reach = 0.05 + 0.1 * (0.8 + 0.05) / (0.9 - 0.1)

    def share(x, y):
        u, v = np.floor(project([[x, y, 0.0]], pose, K)[0]).astype(int)
        return with_cube[v, u] / without[v, u]

    assert share(-0.057, 0.0) < 0.7  # close to the foot
    assert share(-0.9 * reach, 0.0) < 0.8
    assert share(-reach - 0.03, 0.0) > 0.93
    assert share(0.1, 0.0) > 0.85  # towards the lamp: only the sky is hidden
    # Beside the cube it is darker near the foot than away from it: contact shadow of the light from everywhere.
    assert share(0.055, 0.0) < share(0.15, 0.0)
    renderer.release(cube)


def test_a_large_lamp_has_a_soft_shadow(renderer):
    plate = renderer.upload(trimesh.creation.box((0.2, 0.2, 0.01)))
    pose = camera((1, 0, 0.5), 0.9, (0.1, 0, 0))
    # Across the edge of its shadow, which is at x = 0.115 m.
    line = np.stack([np.linspace(0.05, 0.25, 60), np.zeros(60), np.zeros(60)], axis=1)
    u, v = np.floor(project(line, pose, K)).astype(int).T
    widths = []
    for radius in (0.01, 0.3):
        objects = [Placed(mesh=plate, pose=at(0, 0, 0.2), material=MATT, label=1)]
        renderer.stage(room_with((0.0, 0.0, 1.5), radius), {}, objects)
        view = renderer.draw(pose, K, SIZE, exposure=0.8)
        assert (view.labels[v, u] == 0).all()
        across = luma(view)[v, u]
        dark, bright = across[:5].mean(), across[-5:].mean()
        assert dark < 0.75 * bright
        share = (across - dark) / (bright - dark)
        widths.append(np.count_nonzero((share > 0.1) & (share < 0.9)))
    hard, soft = widths
    assert soft > 2 * hard
    renderer.release(plate)


def test_holes_of_a_texture_are_holes(renderer):
    rgba = np.full((64, 64, 4), 200, np.uint8)
    rgba[:, 32:, 3] = 0
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(rgba), alphaMode="MASK")
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float), material=material)
    corners = np.array([[-0.1, -0.1, 0], [0.1, -0.1, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0]])
    leaf = renderer.upload(trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False))
    placed = Placed(mesh=leaf, pose=at(0, 0, 0.1), material=MATT, label=4)
    renderer.stage(room_with(), {}, [placed])
    pose = camera((0, -0.01, 1))
    seen = renderer.draw(pose, K, SIZE, exposure=1.0).labels == 4
    alone = renderer.silhouettes(pose, K, SIZE)[0]
    whole = (0.2 * 260 / 0.8) * (0.2 * 255 / 0.8)
    assert seen.sum() == pytest.approx(whole / 2, rel=0.1)
    assert (seen != alone).sum() == 0
    renderer.release(leaf)


def test_the_same_scene_is_drawn_the_same(renderer, staged):
    pose = camera()
    first = renderer.draw(pose, K, SIZE, exposure=1.0)
    renderer.stage(room_with((0, 0, 2)), {}, [])
    renderer.draw(camera((1, 0, 1)), K, SIZE, exposure=2.0)
    renderer.stage(room_with(), {}, staged)
    again = renderer.draw(pose, K, SIZE, exposure=1.0)
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.depth.tobytes() == again.depth.tobytes()


def test_the_preview_shows_what_the_image_shows(renderer, staged):
    pose = camera()
    light, labels = renderer.preview(pose, K, SIZE)
    view = renderer.draw(pose, K, SIZE, exposure=1.0)
    assert (labels != view.labels).mean() < 1e-3
    assert light.shape == (*SIZE, 3)
    assert np.isfinite(light).all()
    brighter = luma(renderer.draw(pose, K, SIZE, exposure=2.0))
    assert brighter.mean() > luma(view).mean() + 10


def test_a_scene_must_be_staged_and_the_renderer_open():
    other = SceneRenderer()
    with pytest.raises(RenderingError, match="no scene is staged"):
        other.draw(camera(), K, SIZE, exposure=1.0)
    other.close()
    other.close()
    with pytest.raises(RenderingError, match="closed"):
        other.silhouettes(camera(), K, SIZE, [])
