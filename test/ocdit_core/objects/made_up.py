"""Templates without a renderer, for tests of what is done with them."""

import numpy as np

from ocdit_core.objects.archive import ObjectTemplates


def made_up(name="mug", views=12, seed=0, **changes):
    """Templates of nothing in particular, seen from V directions at 1 m."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((views, 128, 128), bool)
    mask[:, 30:90, 20:100] = True
    pose = np.tile(np.eye(4), (views, 1, 1))
    for view in pose:
        view[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        view[:3, :3] *= np.linalg.det(view[:3, :3])
        view[2, 3] = 1
    fields = {
        "name": name,
        "rgb": rng.integers(0, 255, (views, 128, 128, 3), np.uint8) * mask[..., None],
        "mask": mask,
        "box": np.tile(np.array([10, 20, 80, 60], np.float32), (views, 1)),
        "K": np.tile(np.array([[500, 0, 64], [0, 500, 64], [0, 0, 1.0]]), (views, 1, 1)),
        "pose": pose,
        "points": rng.uniform(-0.05, 0.05, (100, 3)).astype(np.float32),
        "diameter": 0.12,
        "source_sha256": "ab" * 32,
        "unit": "mm",
    }
    return ObjectTemplates(**{**fields, **changes})


def cross(name="cross", views=12, **changes):
    """Consistent templates of a flat, lopsided L of points in front of V cameras turned about the optical axis."""
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.uniform((-1, -1), (0, 1), (300, 2)), rng.uniform((0, 0.3), (1, 1), (200, 2))]) * 0.05
    points = np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
    K = np.array([[1100, 0, 64], [0, 1100, 64], [0, 0, 1.0]])
    pose = np.tile(np.eye(4), (views, 1, 1))
    mask = np.zeros((views, 128, 128), bool)
    for index in range(views):
        turn = np.pi / 2 * (index % 4)
        pose[index, :2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        pose[index, 2, 3] = 1
        pixel = (points @ pose[index, :3, :3].T + pose[index, :3, 3]) @ K.T
        column, row = np.floor(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        mask[index, row, column] = True
        # The points' neighbourhood is the object.
        mask[index] = sum(np.roll(mask[index], step, axis) for step in (-2, -1, 0, 1, 2) for axis in (0, 1)) > 0
    rgb = np.where(mask[..., None], np.array([180, 90, 60]), 0).astype(np.uint8)
    K = np.tile(K, (views, 1, 1))
    return made_up(name, views, **{"rgb": rgb, "mask": mask, "pose": pose, "K": K, "points": points, **changes})
