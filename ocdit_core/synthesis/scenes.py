"""Make scenes: let objects settle in a room, render it from several cameras, and label each image."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.painting import photograph
from ocdit_core.data.writers import LabelledFrame, LabelledObject
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.masks import Box, tight_box
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE, look_at_poses, project
from ocdit_core.synthesis.clips import Crossing, equal_pair, is_inside, orbit
from ocdit_core.synthesis.path_tracer import PathTracer, developed
from ocdit_core.synthesis.renderer import Placed, SceneRenderer
from ocdit_core.synthesis.room import Material, Room, random_room
from ocdit_core.synthesis.settling import collision_hulls, settle
from ocdit_core.synthesis.sources import Objects, TexturePool

if TYPE_CHECKING:
    import trimesh

Array = NDArray[np.float64]
Rng = np.random.Generator
T = TypeVar("T")
Quality = Literal["fast", "good"]

MAX_TARGETS = 64
METAL_PROBABILITY = 0.08
"""Probability that an object is of metal, whatever its file says."""

FOCAL = (0.8, 1.5)
"""Focal length of cameras, relative to TUD-L's."""
ELEVATION = (15.0, 80.0)
"""Degrees above the table."""
DISTANCE = (0.3, 2.0)
"""Metres to what a camera is aimed at; in small rooms the lower limit gives way to the upper one."""
FILL = (0.5, 1.4)
"""Extent of what a camera is aimed at, relative to the shorter side of the image."""
MIN_PIXELS, MIN_SEEN = 250, 0.5
"""A camera has to see this fraction of the targets, each with so many pixels in an image of 640 x 480."""

EFFECTS = (0.2, 1.0)
"""Strength of exposure, white balance, blur, noise and JPEG; see `photograph`."""
MAX_WHITE, MAX_BLACK = 0.06, 0.2  # fraction of an image that its camera may lose in white, and in black
KEPT_OBJECTS, KEPT_TEXTURES = 128, 64  # on the graphics card, from scene to scene

_PREVIEW = 4  # the preview has a quarter of the image's width and height
_LAYOUT_ATTEMPTS, _CAMERA_ATTEMPTS = 5, 8
_CLIP_CAMERAS = 16  # of which the one in whose image a crossing object hides most of the other is taken
_LAYOUT, _CAMERAS, _EFFECTS, _TRACED, _MOTION = 1, 2, 3, 4, 5  # each has random numbers of its own


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """Contents of scenes, and how they are rendered.

    Attributes:
        size: height and width of the images in pixels.
        targets: smallest and largest number of labelled objects in a scene.
        repeats: probability for each target, after the first, to be one more instance of one before it.
        distractors: smallest and largest number of objects without a label in a scene.
        quality: "fast", or "good": four samples per pixel.
        path_traced: probability that Mitsuba draws an image's colours.
        depth: write depth maps.
        video: make clips: the camera moves, and two equal objects, where a scene has them, cross each other.
    """

    size: tuple[int, int] = (480, 640)
    targets: tuple[int, int] = (2, 16)
    repeats: float = 0.0
    distractors: tuple[int, int] = (0, 4)
    quality: Quality = "fast"
    path_traced: float = 0.0
    depth: bool = True
    video: bool = False

    def __post_init__(self) -> None:
        if self.video and self.path_traced:
            raise ConfigError("path_traced: clips are not path-traced; leave it at 0 with video")
        if not 64 <= min(self.size) <= max(self.size) <= 4096:
            raise ConfigError(f"size: {self.size} must be 64 to 4096 pixels a side")
        for name, least in (("targets", 1), ("distractors", 0)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name}: {low} {high} must be two ascending numbers from {least} on")
        if self.targets[1] > MAX_TARGETS:
            raise ConfigError(f"targets: {self.targets[1]} are more than {MAX_TARGETS}")
        if self.quality not in get_args(Quality):
            raise ConfigError(f"quality: {self.quality!r} is unknown; use {', '.join(get_args(Quality))}")
        for name in ("path_traced", "repeats"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not within 0 to 1")


class SceneMaker:
    """Maker of scenes by number: the same seed, settings and objects give the same images on one machine.

    Use it as a context manager, from one thread.

    Args:
        source: objects, targets and distractors alike.
        settings: settings of the scenes.
        seed: random seed.
        textures: textures for rooms; default: painted ones.
        object_ids: BOP's obj_id of each name; default: its place in the source, from 1 on.
        renderer: default: one of its own, which is closed with it.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """

    def __init__(
        self,
        source: Objects,
        settings: SceneSettings,
        *,
        seed: int = 0,
        textures: TexturePool | None = None,
        object_ids: Mapping[str, int] | None = None,
        renderer: SceneRenderer | None = None,
    ) -> None:
        self.settings = settings
        self._source, self._seed, self._pool = source, seed, textures or TexturePool(seed)
        self._ids = object_ids or {name: number for number, name in enumerate(source, start=1)}
        self._tracer: PathTracer | None = None
        self._own = renderer is None
        self._renderer = renderer or SceneRenderer()
        self._objects: OrderedDict[str, tuple[trimesh.Trimesh, list[Array], Any]] = OrderedDict()
        self._textures: OrderedDict[int, Any] = OrderedDict()

    def __enter__(self) -> SceneMaker:
        return self

    def __exit__(self, *error: object) -> None:
        self._renderer.release(*(handle for _, _, handle in self._objects.values()), *self._textures.values())
        self._objects.clear()
        self._textures.clear()
        if self._own:
            self._renderer.close()

    def layout(self, index: int) -> tuple[Room, list[Placed]]:
        """Furnish the room of scene `index` and let objects settle in it.

        Raises:
            DataError: too few objects, or too few come to rest.
            MeshError: an object's file is missing or damaged.
        """
        settings, rng = self.settings, self._rng(index, _LAYOUT)
        for _ in range(_LAYOUT_ATTEMPTS):
            wanted = int(rng.integers(settings.targets[0], settings.targets[1] + 1))
            chosen = self._choose(rng, wanted, ())
            if settings.repeats:
                for place in range(1, wanted):
                    if rng.random() < settings.repeats:
                        chosen[place] = chosen[int(rng.integers(place))]
            others = int(rng.integers(settings.distractors[0], settings.distractors[1] + 1))
            names = chosen + (self._choose(rng, others, chosen) if others else [])
            hulls = [self._object(name)[1] for name in names]
            radii = np.array([max(float(np.linalg.norm(hull, axis=1).max()) for hull in body) for body in hulls])
            reach = float(np.clip(1.3 * np.sqrt((radii**2).sum()), radii.max() + 0.05, 0.9))
            room = random_room(rng, textures=len(self._pool), objects_reach=reach)
            settled = settle(hulls, room.half_size, rng)
            materials = [_random_material(rng, self._object(name)[0]) for name in names]
            if settled.kept[:wanted].sum() < settings.targets[0]:
                continue
            objects: list[Placed] = []
            for i in np.flatnonzero(settled.kept):
                # The targets come first.
                label, mesh = len(objects) + 1 if i < wanted else 0, self._object(names[i])[2]
                placed = Placed(name=names[i], mesh=mesh, pose=settled.poses[i], material=materials[i], label=label)
                objects.append(placed)
            return room, objects
        raise DataError(
            f"fewer than {settings.targets[0]} objects came to rest in {_LAYOUT_ATTEMPTS} attempts; ask for fewer"
        )

    def frames(self, index: int, count: int) -> Iterator[LabelledFrame]:
        """Yield `count` labelled images of scene `index`; objects that are not visible are among the labels.

        Raises:
            DataError: too few objects, too few come to rest, or fewer than `count` cameras see enough.
            MeshError: an object's file is missing or damaged.
            ImageError: a texture is damaged.
        """
        if self.settings.video:
            yield from self._clip(index, count)
            return
        settings = self.settings
        room, objects = self.layout(index)
        textures = [part.texture for part in room.surfaces if part.texture is not None]
        self._renderer.stage(room, {number: self._texture(number) for number in textures}, objects)
        targets = [(self._ids[item.name], item) for item in objects if item.label]
        cameras = choose_cameras(self._renderer, self._rng(index, _CAMERAS), room, objects, count, settings.size)
        if len(cameras) < count:
            raise DataError(f"scene {index}: only {len(cameras)} of {count} cameras see enough")
        staged = False
        for number, (pose, K, exposure) in enumerate(cameras):
            effects = self._rng(index, _EFFECTS, number)
            colours: NDArray[np.uint8] | None = None
            if self._rng(index, _TRACED, number).random() < settings.path_traced:
                if self._tracer is None:
                    self._tracer = PathTracer()
                if not staged:
                    self._tracer.stage(room, {number: self._pool[number] for number in textures}, objects)
                    staged = True
                light = self._tracer.draw(pose, K, settings.size, seed=number)
                colours = developed(light, automatic_exposure(light, effects))
            yield self._frame(pose, K, exposure, colours, targets, effects)
        self._release_some()

    def _clip(self, index: int, count: int) -> Iterator[LabelledFrame]:
        """Yield the frames of a clip; the exposure and the effects of the camera stay."""
        room, objects = self.layout(index)
        textures = {part.texture: self._texture(part.texture) for part in room.surfaces if part.texture is not None}
        rng, pair = self._rng(index, _MOTION), equal_pair(objects)
        crossing: Crossing | None = None
        if pair is None:
            aims = [item.points for item in objects]
        else:
            settled = settle([self._object(objects[pair[0]].name)[1]], room.half_size, rng)
            if not settled.kept[0]:
                raise DataError(f"scene {index}: {objects[pair[0]].name} does not come to rest")
            crossing = Crossing.draw(rng, room, objects, pair, settled.poses[0])
            objects = crossing.at(crossing.passing)
            aims = [np.concatenate([crossing.at(time)[i].points for time in (-1.0, 1.0) for i in crossing.pair])]
        self._renderer.stage(room, textures, objects)
        cameras = choose_cameras(
            self._renderer, self._rng(index, _CAMERAS), room, objects, _CLIP_CAMERAS, self.settings.size, aims
        )
        if not cameras:
            raise DataError(f"scene {index}: no camera sees enough")
        pose, K, exposure = cameras[0]
        if crossing is not None:
            both = [objects[i] for i in crossing.pair]
            sides = [(crossing.from_the_side(rng, pose), K, exposure) for pose, K, exposure in cameras]
            sides = [camera for camera in sides if is_inside(room, camera[0])]
            if not sides:
                raise DataError(f"scene {index}: a wall is in the way of all cameras")
            pose, K, exposure = max(sides, key=lambda camera: self._hidden(camera[0], camera[1], both))
        middle = np.concatenate(aims).mean(axis=0)
        for time, view in zip(np.linspace(-1, 1, count), orbit(rng, room, pose, middle, count), strict=True):
            if crossing is not None:
                objects = crossing.at(float(time))
                self._renderer.stage(room, textures, objects)
            targets = [(self._ids[item.name], item) for item in objects if item.label]
            yield self._frame(view, K, exposure, None, targets, self._rng(index, _EFFECTS, 0))
        self._release_some()

    def _hidden(self, pose: Array, K: Array, items: Sequence[Placed]) -> float:
        """Return the fraction of an object that others hide; of several, the largest."""
        size = (self.settings.size[0] // _PREVIEW, self.settings.size[1] // _PREVIEW)
        small = np.diag([1 / _PREVIEW, 1 / _PREVIEW, 1.0]) @ K
        labels = self._renderer.preview(pose, small, size)[1]
        silhouettes = self._renderer.silhouettes(pose, small, size, items)
        return max(
            float(np.mean(labels[silhouette] != item.label)) if silhouette.any() else 0.0
            for item, silhouette in zip(items, silhouettes, strict=True)
        )

    def _release_some(self) -> None:
        """Release old objects and textures; after a scene, which needs its own."""
        _trim(self._objects, KEPT_OBJECTS, lambda entry: self._renderer.release(entry[2]))
        _trim(self._textures, KEPT_TEXTURES, self._renderer.release)

    def _frame(
        self,
        pose: Array,
        K: Array,
        exposure: float,
        colours: NDArray[np.uint8] | None,
        targets: Sequence[tuple[int, Placed]],
        rng: Rng,
    ) -> LabelledFrame:
        size = self.settings.size
        view = self._renderer.draw(pose, K, size, exposure=exposure)
        if colours is None:
            colours = self._supersampled(pose, K, exposure) if self.settings.quality == "good" else view.rgb
        silhouettes = self._renderer.silhouettes(pose, K, size, [item for _, item in targets])
        labelled = []
        for (object_id, item), silhouette in zip(targets, silhouettes, strict=True):
            model = pose @ item.pose
            visible = view.labels == item.label
            # Rounding loses a pixel of an edge now and then.
            silhouette = silhouette | visible
            place: dict[str, Any] = {"object_id": object_id, "rotation": model[:3, :3], "translation": model[:3, 3]}
            whole = self._whole(pose, K, item, silhouette)
            labelled.append(LabelledObject(**place, visible=visible, silhouette=silhouette, whole=whole))
        return LabelledFrame(
            image=_photographed(rng, colours),
            K=K,
            depth=view.depth if self.settings.depth else None,
            objects=tuple(labelled),
            rotation=pose[:3, :3],
            translation=pose[:3, 3],
        )

    def _supersampled(self, pose: Array, K: Array, exposure: float) -> NDArray[np.uint8]:
        """Return the image from four samples per pixel; labels stay those of the centres of pixels."""
        height, width = self.settings.size
        view = self._renderer.draw(pose, np.diag([2, 2, 1.0]) @ K, (2 * height, 2 * width), exposure=exposure)
        return np.asarray(cv2.resize(view.rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _whole(self, pose: Array, K: Array, item: Placed, mask: NDArray[np.bool_]) -> tuple[int, Box]:
        """Return pixels and box of the whole silhouette, within three times the image's size as BOP's tools do."""
        height, width = mask.shape
        uv = project(item.points, pose, K)
        low = np.floor(np.clip(uv.min(axis=0) - 2, (-width, -height), (2 * width, 2 * height))).astype(int)
        high = np.ceil(np.clip(uv.max(axis=0) + 2, (-width, -height), (2 * width, 2 * height))).astype(int)
        if (low >= 0).all() and high[0] <= width and high[1] <= height:
            low = np.zeros(2, int)
        elif (high <= low).any():
            return 0, (-1, -1, 0, 0)
        else:
            shifted = K.copy()
            shifted[:2, 2] -= low
            # In steps of 128 pixels, so that few framebuffers serve all.
            across, down = (-(-(high - low) // 128) * 128).tolist()
            mask = self._renderer.silhouettes(pose, shifted, (down, across), [item])[0]
        if not mask.any():
            return 0, (-1, -1, 0, 0)
        x, y, wide, high_ = tight_box(mask)
        return int(np.count_nonzero(mask)), (int(low[0]) + x, int(low[1]) + y, wide, high_)

    def _rng(self, *key: int) -> Rng:
        return np.random.default_rng([self._seed, *key, 0x5CE4E])

    def _choose(self, rng: Rng, count: int, taken: Sequence[str]) -> list[str]:
        names = [name for name in self._source if name not in set(taken)]
        if len(names) < count:
            raise DataError(f"a scene needs {count} objects, and there are {len(names)}; give more or ask for fewer")
        return [names[i] for i in rng.choice(len(names), count, replace=False)]

    def _object(self, name: str) -> tuple[trimesh.Trimesh, list[Array], Any]:
        """Return mesh, convex bodies and handle of an object."""
        if name not in self._objects:
            mesh = self._source[name]()
            self._objects[name] = mesh, collision_hulls(mesh), self._renderer.upload(mesh)
        self._objects.move_to_end(name)
        return self._objects[name]

    def _texture(self, number: int) -> Any:
        if number not in self._textures:
            self._textures[number] = self._renderer.upload_texture(self._pool[number])
        self._textures.move_to_end(number)
        return self._textures[number]


def random_camera(rng: Rng, room: Room, objects: Sequence[Array], size: tuple[int, int]) -> tuple[Array, Array] | None:
    """Aim a camera at a few neighbouring objects.

    Args:
        rng: source of randomness.
        room: the camera stays inside it.
        objects: points (n, 3) of each object in the world, metres; at least one object.
        size: height and width of the image in pixels.

    Returns:
        The pose (4, 4) camera-from-world and K (3, 3); None if the position drawn is in a wall or among the objects.
    """
    height, width = size
    K = TUDL_K.copy()
    K[0] *= width / TUDL_SIZE[1]
    K[1] *= width / TUDL_SIZE[1]
    K[:2, :2] *= np.exp(rng.uniform(*np.log(FOCAL)))
    K[:2, 2] = np.array([width, height]) * (0.5 + rng.uniform(-0.04, 0.04, 2))

    centres = np.array([(points.min(axis=0) + points.max(axis=0)) / 2 for points in objects])
    first = centres[rng.integers(len(objects))]
    near = np.argsort(np.linalg.norm(centres - first, axis=1))[: int(rng.integers(1, len(objects) + 1))]
    group = np.concatenate([objects[i] for i in near])
    middle = (group.min(axis=0) + group.max(axis=0)) / 2
    reach = max(float(np.linalg.norm(group - middle, axis=1).max()), 0.06)
    wanted = 2 * K[0, 0] * reach / (min(height, width) * rng.uniform(*FILL))
    distance = float(np.clip(wanted, *DISTANCE))
    aim = middle + rng.normal(0, 0.25, 3) * reach * (1, 1, 0.3)

    turn, up = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*ELEVATION))
    towards = np.array([np.cos(turn) * np.cos(up), np.sin(turn) * np.cos(up), np.sin(up)])
    roll = rng.uniform(-np.pi, np.pi) if rng.random() < 0.1 else rng.normal(0, 0.1)
    place = aim + distance * towards
    if (place < room.low + 0.1).any() or (place > room.high - 0.1).any() or place[2] < 0.05:
        return None
    if min(float(np.linalg.norm(points - place, axis=1).min()) for points in objects) < 0.15:
        return None
    return look_at_poses(towards, distance, roll, centre=aim)[0], K


def choose_cameras(
    renderer: SceneRenderer,
    rng: Rng,
    room: Room,
    objects: Sequence[Placed],
    count: int,
    size: tuple[int, int],
    aims: Sequence[Array] | None = None,
) -> list[tuple[Array, Array, float]]:
    """Draw cameras for the staged scene, and keep those that see enough of the targets.

    They are aimed at a few neighbours of `aims`, points (n, 3) of each; default: the objects.

    Returns:
        At most `count` cameras, after a few attempts for each: the pose (4, 4) camera-from-world, K (3, 3), and the
        exposure, by which linear light is multiplied before the tone curve.
    """
    height, width = size
    small = (height // _PREVIEW, width // _PREVIEW)
    scale = np.diag([small[1] / width, small[0] / height, 1.0])
    needed = MIN_PIXELS * height * width / (480 * 640) / _PREVIEW**2
    points = [item.points for item in objects] if aims is None else aims
    labels = [item.label for item in objects if item.label]
    cameras = []
    for _ in range(count):
        for _ in range(_CAMERA_ATTEMPTS):
            drawn = random_camera(rng, room, points, size)
            if drawn is None:
                continue
            pose, K = drawn
            light, seen = renderer.preview(pose, scale @ K, small)
            pixels = np.bincount(seen.reshape(-1), minlength=256)[labels]
            # An object that fills the image shows nothing but its texture.
            if (pixels >= needed).mean() >= MIN_SEEN and pixels.max() < 0.5 * seen.size:
                cameras.append((pose, K, automatic_exposure(light, rng)))
                break
    return cameras


def automatic_exposure(light: NDArray[np.float32], rng: Rng) -> float:
    """Return an automatic exposure: mid-tones in the middle of the range, without overexposed areas.

    Args:
        light: (h, w, 3) linear radiance of a preview.
        rng: draws the target brightness.
    """
    luma = light @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    middle = float(np.exp(np.log(np.maximum(luma, 1e-4)).mean()))
    brightest = max(float(np.percentile(luma, 97)), 1e-4)
    return float(min(rng.uniform(0.13, 0.24) / middle, 0.8 / brightest))


def _photographed(rng: Rng, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    strength = rng.uniform(*EFFECTS)
    while True:
        image = photograph(rng, rgb.astype(np.float32), strength=strength)
        some = image[::4, ::4]
        white, black = (some.min(axis=2) > 250).mean(), (some.max(axis=2) < 10).mean()
        if strength < 0.05 or (white <= MAX_WHITE and black <= MAX_BLACK):
            return image
        # Nobody would keep such an image: draw weaker effects.
        strength *= 0.6


def _random_material(rng: Rng, mesh: trimesh.Trimesh) -> Material:
    """Draw a material near that of the file; otherwise from glossy plastic to chalk, sometimes a metal."""
    stated = mesh.metadata.get("roughness"), mesh.metadata.get("metallic")
    roughness, metallic = rng.uniform(0.2, 0.95), 0.0
    if stated[0] is not None:
        roughness = float(np.clip(stated[0] + rng.normal(0, 0.12), 0.12, 1.0))
    if stated[1] is not None and stated[1] > 0.5:
        metallic = float(stated[1])
    if rng.random() < METAL_PROBABILITY:
        roughness, metallic = rng.uniform(0.2, 0.55), 1.0
    return Material(roughness=float(roughness), specular=float(rng.uniform(0.2, 0.8)), metallic=metallic)


def _trim(kept: OrderedDict[Any, T], limit: int, release: Callable[[T], None]) -> None:
    while len(kept) > limit:
        release(kept.popitem(last=False)[1])
