"""Where the camera stands when an object is drawn: icosphere directions, look-at poses, a distance that always fits.

Everything here is plain NumPy. Poses are camera-from-object transforms with OpenCV axes (x right, y down, z forward);
image coordinates are continuous, with (0, 0) at the outer corner of the first pixel.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.errors import ConfigError

FloatArray = NDArray[np.float64]

# The camera of BOP's TUD-L, which the paper's templates follow (A.1).
TUDL_SIZE = (480, 640)  # height, width in pixels
TUDL_K: FloatArray = np.array([[515.0, 0.0, 321.566], [0.0, 515.0, 214.08], [0.0, 0.0, 1.0]])

_SUBDIVISIONS = {12: 0, 42: 1, 162: 2}


def icosphere_directions(count: int) -> FloatArray:
    """Return the vertices (count, 3) of a subdivided icosahedron, unit vectors; the first 12 are always the same.

    Raises:
        ConfigError: the count is not 12, 42 or 162.
    """
    if count not in _SUBDIVISIONS:
        raise ConfigError(f"views: {count} is not a number of icosphere directions; use 12, 42 or 162")
    golden = (1 + 5**0.5) / 2
    signs = [(a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    corners = np.array([p for a, b in signs for p in ((0, a, b), (a, b, 0), (b, 0, a))])
    vertices = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    for _ in range(_SUBDIVISIONS[count]):
        # Neighbours are the pairs at the smallest angle (up to 20% more: the subdivided edges are not all alike).
        angles = np.arccos(np.clip(vertices @ vertices.T, -1, 1)) + 10 * np.eye(len(vertices))
        first, second = np.nonzero(np.triu(angles < 1.3 * angles.min()))
        middles = vertices[first] + vertices[second]
        vertices = np.concatenate([vertices, middles / np.linalg.norm(middles, axis=1, keepdims=True)])
    return vertices


def spread_indices(directions: FloatArray, count: int, first: int = 0) -> NDArray[np.int64]:
    """Return the indices (count,) of unit vectors (n, 3) that cover the sphere well, by farthest point sampling.

    It starts at index `first`; a direction that is taken already comes last, in the order given.

    Raises:
        ConfigError: more were asked for than there are.
    """
    if not 1 <= count <= len(directions):
        raise ConfigError(f"views: {count} of {len(directions)} directions cannot be picked")
    chosen = [first]
    closeness = np.full(len(directions), -np.inf)
    for _ in range(count - 1):
        closeness = np.maximum(closeness, directions @ directions[chosen[-1]])
        closeness[chosen[-1]] = np.inf
        # Rounded, so that noise does not choose between equals: then it is the first that is taken.
        chosen.append(int(np.argmin(np.round(closeness, 9))))
    return np.array(chosen)


def look_at_poses(
    directions: ArrayLike, distance: ArrayLike, roll: ArrayLike = 0.0, *, centre: ArrayLike = (0.0, 0.0, 0.0)
) -> FloatArray:
    """Return poses (n, 4, 4) of cameras at `centre + distance * direction` that look at `centre`, z up.

    Args:
        directions: (n, 3) unit vectors from the object to the camera.
        distance: metres, one number or (n,).
        roll: turn about the optical axis in radians, one number or (n,); positive turns the image clockwise.
        centre: (3,) the point looked at, in object coordinates, metres.
    """
    forward = -np.atleast_2d(np.asarray(directions, dtype=np.float64))
    n = len(forward)
    # Seen from straight above or below, z is no "up": take y.
    up = np.where(np.abs(forward[:, 2:]) > 0.999, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    axes = np.stack([right, down, forward], axis=1)
    angle = np.broadcast_to(np.asarray(roll, dtype=np.float64), (n,))
    turn = np.zeros((n, 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1], turn[:, 1, 0] = -np.sin(angle), np.sin(angle)
    turn[:, 2, 2] = 1
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3] = turn @ axes
    poses[:, :3, 3] = -poses[:, :3, :3] @ np.asarray(centre, dtype=np.float64)
    poses[:, 2, 3] += np.broadcast_to(np.asarray(distance, dtype=np.float64), (n,))
    return poses


def fitting_distance(radius: float, K: FloatArray = TUDL_K, size: tuple[int, int] = TUDL_SIZE) -> float:
    """Return the smallest distance in metres at which a sphere on the optical axis is wholly in the view.

    The radius is in metres, K (3, 3) and the size (height, width) in pixels.
    """
    height, width = size
    half_x = min(K[0, 2], width - K[0, 2]) / K[0, 0]
    half_y = min(K[1, 2], height - K[1, 2]) / K[1, 1]
    # The sphere touches the nearest side plane of the view, which leans away from the axis by atan(half).
    return float(radius / np.sin(np.arctan(min(half_x, half_y))))


def project(points: ArrayLike, pose: FloatArray, K: FloatArray) -> FloatArray:
    """Project object points (n, 3) in metres by one pose (4, 4) and K (3, 3) to (n, 2) image coordinates in pixels."""
    camera = np.asarray(points, dtype=np.float64) @ pose[:3, :3].T + pose[:3, 3]
    return (camera @ K.T)[:, :2] / camera[:, 2:]
