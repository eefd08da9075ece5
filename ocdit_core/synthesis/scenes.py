"""Scenes by number: settle objects in a room, photograph it from many sides, and describe what each image shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.viewpoints import TUDL_K, TUDL_SIZE, look_at_poses, project
from ocdit_core.synthesis.composed import photograph
from ocdit_core.synthesis.path_tracer import PathTracer, developed
from ocdit_core.synthesis.renderer import Placed, SceneRenderer
from ocdit_core.synthesis.room import Material, Room, random_room
from ocdit_core.synthesis.settling import SettleSettings, collision_hulls, settle
from ocdit_core.synthesis.sources import ObjectSource, TexturePool

if TYPE_CHECKING:
    import trimesh

Array = NDArray[np.float64]
_PREVIEW = 4  # the preview has a quarter of the picture's width and height
_CAMERA_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What cameras there are, and when they are good enough."""

    size: tuple[int, int] = (480, 640)
    """Height and width of the pictures in pixels."""
    focal: tuple[float, float] = (0.8, 1.5)
    """Focal length, against that of TUD-L's camera."""
    elevation: tuple[float, float] = (15.0, 80.0)
    """Degrees over the table."""
    distance: tuple[float, float] = (0.3, 2.0)
    """Metres to what is looked at; the nearer limit gives way to the farther one in small rooms."""
    fill: tuple[float, float] = (0.5, 1.4)
    """How much of the picture's shorter side what is looked at takes."""
    min_pixels: int = 250
    """An object counts as seen from so many pixels of its own on, in a picture of 640 x 480."""
    min_seen: float = 0.5
    """Share of the labelled objects that has to be seen."""

    def __post_init__(self) -> None:
        if min(self.size) < 64:
            raise ConfigError(f"size: {self.size} has to be at least 64 pixels a side")
        for name in ("focal", "elevation", "distance", "fill"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"{name}: {(low, high)} has to be two rising numbers above 0")
        if self.elevation[1] > 90:
            raise ConfigError(f"elevation: {self.elevation} goes over 90 degrees")
        if not 0 <= self.min_seen <= 1:
            raise ConfigError(f"min_seen: {self.min_seen} has to be in 0..1")


@dataclass(frozen=True, kw_only=True)
class SceneCamera:
    """One camera."""

    pose: Array
    """(4, 4) camera-from-world, OpenCV axes, metres."""
    K: Array
    """(3, 3) intrinsics in pixels."""
    exposure: float
    """What linear light is multiplied by before the tone curve."""


def random_camera(
    rng: np.random.Generator, room: Room, objects: Sequence[Array], settings: CameraSettings
) -> tuple[Array, Array] | None:
    """Aims a camera at a few neighbouring objects.

    Args:
        rng: source of randomness.
        room: the camera stays inside it.
        objects: points (n, 3) of each object in the world, metres; at least one object.
        settings: ranges to draw from.

    Returns:
        The pose (4, 4) camera-from-world and K (3, 3); None when the place drawn is in a wall or among the objects.
    """
    height, width = settings.size
    K = TUDL_K.copy()
    K[0] *= width / TUDL_SIZE[1]
    K[1] *= width / TUDL_SIZE[1]
    K[:2, :2] *= np.exp(rng.uniform(*np.log(settings.focal)))
    K[:2, 2] = np.array([width, height]) * (0.5 + rng.uniform(-0.04, 0.04, 2))

    centres = np.array([(points.min(axis=0) + points.max(axis=0)) / 2 for points in objects])
    first = centres[rng.integers(len(objects))]
    near = np.argsort(np.linalg.norm(centres - first, axis=1))[: int(rng.integers(1, len(objects) + 1))]
    group = np.concatenate([objects[i] for i in near])
    middle = (group.min(axis=0) + group.max(axis=0)) / 2
    reach = max(float(np.linalg.norm(group - middle, axis=1).max()), 0.06)
    wanted = 2 * K[0, 0] * reach / (min(height, width) * rng.uniform(*settings.fill))
    distance = float(np.clip(wanted, *settings.distance))
    aim = middle + rng.normal(0, 0.25, 3) * reach * (1, 1, 0.3)

    turn, up = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*settings.elevation))
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
    rng: np.random.Generator,
    room: Room,
    objects: Sequence[Array],
    labels: Sequence[int],
    count: int,
    settings: CameraSettings,
) -> list[SceneCamera]:
    """Draws cameras for the scene that is staged, and keeps those that see enough.

    Args:
        renderer: with the scene.
        rng: source of randomness.
        room: of the scene.
        objects: points (n, 3) of each object that may be looked at, metres.
        labels: of the objects that count.
        count: how many cameras are wanted.
        settings: what to draw, and what is enough.

    Returns:
        At most `count` cameras: a few tries are made for each.
    """
    height, width = settings.size
    small = (height // _PREVIEW, width // _PREVIEW)
    scale = np.diag([small[1] / width, small[0] / height, 1.0])
    needed = settings.min_pixels * height * width / (480 * 640) / _PREVIEW**2
    cameras = []
    for _ in range(count):
        for _ in range(_CAMERA_TRIES):
            drawn = random_camera(rng, room, objects, settings)
            if drawn is None:
                continue
            pose, K = drawn
            light, seen = renderer.preview(pose, scale @ K, small)
            if _sees_enough(seen, labels, needed, settings.min_seen):
                cameras.append(SceneCamera(pose=pose, K=K, exposure=automatic_exposure(light, rng)))
                break
    return cameras


def _sees_enough(seen: NDArray[np.uint8], labels: Sequence[int], needed: float, share: float) -> bool:
    pixels = np.bincount(seen.reshape(-1), minlength=256)[list(labels)]
    # One object that fills the picture shows nothing but its paint.
    return bool((pixels >= needed).mean() >= share and pixels.max() < 0.5 * seen.size)


def automatic_exposure(light: NDArray[np.float32], rng: np.random.Generator) -> float:
    """Returns an exposure as a camera would choose it: middle tones in the middle, without white patches.

    Args:
        light: (h, w, 3) linear, of a preview.
        rng: how bright this camera likes its pictures.
    """
    luma = light @ np.array([0.2126, 0.7152, 0.0722], np.float32)
    middle = float(np.exp(np.log(np.maximum(luma, 1e-4)).mean()))
    brightest = max(float(np.percentile(luma, 97)), 1e-4)
    return float(min(rng.uniform(0.13, 0.24) / middle, 0.8 / brightest))


_LAYOUT_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """What scenes hold, and how they are photographed."""

    targets: tuple[int, int] = (2, 16)
    """Least and greatest number of labelled objects."""
    repeats: float = 0.0
    """Chance for each of them, after the first, to be one more instance of one before it."""
    distractors: tuple[int, int] = (0, 4)
    """Least and greatest number of objects without a label."""
    cameras: tuple[int, int] = (5, 20)
    """Least and greatest number of pictures of a scene."""
    lights: tuple[int, int] = (1, 3)
    """Least and greatest number of lamps."""
    table_share: float = 0.75
    """Chance that there is a table; else the objects lie on the floor."""
    metal_share: float = 0.08
    """Chance that an object is of metal, whatever its file says."""
    effects: tuple[float, float] = (0.2, 1.0)
    """Strength of exposure, white balance, blur, noise and JPEG; see `photograph`."""
    samples: int = 1
    """Samples of a pixel's colour along each side of it."""
    path_traced: float = 0.0
    """Chance that Mitsuba draws a picture's colours."""
    camera: CameraSettings = field(default_factory=CameraSettings)
    """Where cameras stand."""
    settle: SettleSettings = field(default_factory=SettleSettings)
    """How objects come to rest."""

    def __post_init__(self) -> None:
        for name, least in (("targets", 1), ("distractors", 0), ("cameras", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ConfigError(f"{name}: {(low, high)} has to be two rising numbers from {least} on")
        if not 1 <= self.samples <= 4:
            raise ConfigError(f"samples: {self.samples} has to be in 1..4")
        if self.targets[1] > 64:
            raise ConfigError(f"targets: {self.targets[1]} are more than 64")
        if not 0 <= self.effects[0] <= self.effects[1]:
            raise ConfigError(f"effects: {self.effects} has to be two rising numbers from 0 on")
        for name in ("repeats", "table_share", "metal_share", "path_traced"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} has to be in 0..1")


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object at rest."""

    name: str
    """In its source."""
    pose: Array
    """(4, 4) world-from-object, metres."""
    material: Material
    label: int
    """1, 2, ... for targets, 0 for distractors."""


@dataclass(frozen=True, kw_only=True)
class SceneLayout:
    """A scene before the first picture."""

    room: Room
    objects: tuple[SceneObject, ...]
    depth: float
    """Deepest overlap of two objects, or of one with the table, metres."""


Bodies = Callable[[ObjectSource, str], Sequence[Array]]
Meshes = Callable[[ObjectSource, str], "trimesh.Trimesh"]


def make_layout(
    rng: np.random.Generator,
    settings: SceneSettings,
    targets: ObjectSource,
    distractors: ObjectSource,
    *,
    textures: int,
    meshes: Meshes,
    bodies: Bodies,
) -> SceneLayout:
    """Furnishes a room and lets objects settle in it.

    Args:
        rng: source of randomness.
        settings: how many objects, and the rest.
        targets: the labelled objects are from here, no two of them alike unless the settings ask for repeats.
        distractors: the others are from here; an object is never both.
        textures: pictures in the pool.
        meshes: the mesh of an object.
        bodies: its convex bodies, as from `collision_hulls`.

    Raises:
        DataError: the sources have too few objects, or too few come to rest.
    """
    for _ in range(_LAYOUT_TRIES):
        wanted = int(rng.integers(settings.targets[0], settings.targets[1] + 1))
        chosen = _draw(rng, targets, wanted, ())
        if settings.repeats:
            for place in range(1, wanted):
                if rng.random() < settings.repeats:
                    chosen[place] = chosen[int(rng.integers(place))]
        others = int(rng.integers(settings.distractors[0], settings.distractors[1] + 1))
        extra = _draw(rng, distractors, others, chosen) if others else []
        sources = [targets] * len(chosen) + [distractors] * len(extra)
        named = list(zip(sources, [*chosen, *extra], strict=True))
        hulls = [bodies(*item) for item in named]
        radii = np.array([max(float(np.linalg.norm(hull, axis=1).max()) for hull in body) for body in hulls])
        reach = float(np.clip(1.3 * np.sqrt((radii**2).sum()), radii.max() + 0.05, 0.9))
        room = random_room(
            rng, textures=textures, objects_reach=reach, lights=settings.lights, table_share=settings.table_share
        )
        settled = settle(hulls, room.half_size, rng, settings.settle)
        materials = [_material(rng, meshes(*item), settings.metal_share) for item in named]
        if settled.kept[: len(chosen)].sum() < settings.targets[0]:
            continue
        objects: list[SceneObject] = []
        for index in np.flatnonzero(settled.kept):
            label = 1 + sum(item.label > 0 for item in objects) if index < len(chosen) else 0
            name, pose = named[index][1], settled.poses[index]
            objects.append(SceneObject(name=name, pose=pose, material=materials[index], label=label))
        return SceneLayout(room=room, objects=tuple(objects), depth=settled.depth)
    raise DataError(
        f"fewer than {settings.targets[0]} objects came to rest in {_LAYOUT_TRIES} tries; ask for fewer at once"
    )


def _draw(rng: np.random.Generator, source: ObjectSource, count: int, taken: Sequence[str]) -> list[str]:
    names = [name for name in source.names if name not in set(taken)]
    if len(names) < count:
        raise DataError(f"a scene needs {count} objects, and there are {len(names)}; give more or ask for fewer")
    return [names[i] for i in rng.choice(len(names), count, replace=False)]


def _material(rng: np.random.Generator, mesh: trimesh.Trimesh, metal_share: float) -> Material:
    """What the file states, roughly; else anything from glossy plastic to chalk, now and then a metal."""
    stated = mesh.metadata.get("roughness"), mesh.metadata.get("metallic")
    roughness, metallic = rng.uniform(0.2, 0.95), 0.0
    if stated[0] is not None:
        roughness = float(np.clip(stated[0] + rng.normal(0, 0.12), 0.12, 1.0))
    if stated[1] is not None and stated[1] > 0.5:
        metallic = float(stated[1])
    if rng.random() < metal_share:
        roughness, metallic = rng.uniform(0.2, 0.55), 1.0
    return Material(roughness=float(roughness), specular=float(rng.uniform(0.2, 0.8)), metallic=metallic)


T = TypeVar("T")
_LAYOUT, _CAMERAS, _EFFECTS, _TRACED = 1, 2, 3, 4  # each has random numbers of its own
MAX_BLUR = 1.4  # pixels
MAX_WHITE, MAX_BLACK = 0.06, 0.2  # share of a picture that its camera may lose in white, and in black
KEPT_OBJECTS, KEPT_TEXTURES = 128, 64  # on the graphics card, from scene to scene


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneInstance:
    """One labelled object in one picture, in BOP's terms."""

    name: str
    """Of the object, in its source."""
    cam_R_m2c: Array  # noqa: N815
    """(3, 3) camera-from-model rotation, OpenCV axes."""
    cam_t_m2c: Array
    """(3,) millimetres."""
    px_count_all: int
    """Pixels of the whole silhouette, those beyond the picture's edges included."""
    bbox_obj: tuple[int, int, int, int]
    """x, y, width, height of that silhouette in pixels; it may reach beyond the picture. -1s when it is empty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneImage:
    """One picture with all that is known of it."""

    rgb: NDArray[np.uint8]
    """(h, w, 3) sRGB, as from a camera."""
    depth: NDArray[np.float32]
    """(h, w) millimetres along the optical axis."""
    masks_visible: NDArray[np.bool_]
    """(n, h, w) what is seen of each labelled object."""
    masks: NDArray[np.bool_]
    """(n, h, w) what would be seen of it alone (amodal)."""
    K: Array
    """(3, 3) intrinsics in pixels; (0, 0) is the outer corner of the first pixel."""
    cam_R_w2c: Array  # noqa: N815
    """(3, 3) camera-from-world rotation."""
    cam_t_w2c: Array
    """(3,) millimetres."""
    instances: tuple[SceneInstance, ...]
    """The labelled objects, in the order of the masks; those out of sight too."""


class SceneMaker:
    """Makes scenes by number: the same seed, settings and sources give the same pictures on one machine.

    Args:
        targets: labelled objects are from here.
        settings: what scenes hold.
        seed: another one gives other scenes.
        textures: pictures for rooms; default: painted ones.
        distractors: objects without a label are from here; default: from the targets, but never the same one twice.
        renderer: default: one of its own, which `close` ends.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """

    def __init__(
        self,
        targets: ObjectSource,
        settings: SceneSettings | None = None,
        *,
        seed: int = 0,
        textures: TexturePool | None = None,
        distractors: ObjectSource | None = None,
        renderer: SceneRenderer | None = None,
    ) -> None:
        self.settings = settings or SceneSettings()
        self._targets, self._distractors = targets, distractors or targets
        self._seed, self._pool = seed, textures or TexturePool(seed)
        self._tracer: PathTracer | None = None
        self._own = renderer is None
        self._renderer = renderer or SceneRenderer()
        self._objects: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._textures: OrderedDict[int, Any] = OrderedDict()

    def __enter__(self) -> SceneMaker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the objects and textures on the card, and the renderer if it is its own."""
        self._renderer.release(*(handle for _, _, handle in self._objects.values()), *self._textures.values())
        self._objects.clear()
        self._textures.clear()
        if self._own:
            self._renderer.close()

    def layout(self, index: int) -> SceneLayout:
        """Returns scene `index` before the first picture.

        Raises:
            DataError: too few objects, or too few come to rest.
            MeshError: an object's file is missing or damaged.
        """
        return make_layout(
            self._rng(index, _LAYOUT),
            self.settings,
            self._targets,
            self._distractors,
            textures=len(self._pool),
            meshes=lambda source, name: self._object(source, name)[0],
            bodies=lambda source, name: self._object(source, name)[1],
        )

    def images(
        self, index: int, layout: SceneLayout | None = None, *, count: int | None = None
    ) -> Iterator[SceneImage]:
        """Yields the pictures of scene `index`.

        Args:
            index: of the scene, from 0 on.
            layout: from `layout(index)`, if it is at hand.
            count: how many pictures, exactly; default: drawn from the settings, and fewer when good places for the
                camera are rare.

        Raises:
            DataError: too few objects, or too few come to rest, or there are fewer good places than `count`.
            MeshError: an object's file is missing or damaged.
            ImageError: a picture of the texture folder is damaged.
        """
        layout = layout or self.layout(index)
        names = [part.texture for part in layout.room.surfaces if part.texture is not None]
        used = {number: self._texture(number) for number in names}
        placed = []
        for item in layout.objects:
            source = self._targets if item.label else self._distractors
            handle = self._object(source, item.name)[2]
            placed.append(Placed(mesh=handle, pose=item.pose, material=item.material, label=item.label))
        self._renderer.stage(layout.room, used, placed)
        rng = self._rng(index, _CAMERAS)
        low, high = self.settings.cameras
        wanted = int(rng.integers(low, high + 1)) if count is None else count
        points = [item.points for item in placed]
        labelled = [item for item in placed if item.label]
        cameras = choose_cameras(
            self._renderer, rng, layout.room, points, [p.label for p in labelled], wanted, self.settings.camera
        )
        if count is not None and len(cameras) < count:
            raise DataError(f"scene {index}: only {len(cameras)} of {count} cameras see enough")
        targets = [item.name for item in layout.objects if item.label]
        staged = False
        for number, camera in enumerate(cameras):
            effects = self._rng(index, _EFFECTS, number)
            colours: NDArray[np.uint8] | None = None
            if self._rng(index, _TRACED, number).random() < self.settings.path_traced:
                if self._tracer is None:
                    self._tracer = PathTracer()
                if not staged:
                    self._tracer.stage(layout.room, {number: self._pool[number] for number in names}, placed)
                    staged = True
                light = self._tracer.draw(camera.pose, camera.K, self.settings.camera.size, seed=number)
                colours = developed(light, automatic_exposure(light, effects))
            yield self._image(camera.pose, camera.K, camera.exposure, colours, targets, labelled, effects)
        # What was kept too long is let go only now: the scene needed it.
        _trim(self._objects, KEPT_OBJECTS, lambda entry: self._renderer.release(entry[2]))
        _trim(self._textures, KEPT_TEXTURES, self._renderer.release)

    def _image(
        self,
        pose: Array,
        K: Array,
        exposure: float,
        colours: NDArray[np.uint8] | None,
        names: Sequence[str],
        placed: Sequence[Placed],
        rng: np.random.Generator,
    ) -> SceneImage:
        size = self.settings.camera.size
        view = self._renderer.draw(pose, K, size, exposure=exposure)
        masks = self._renderer.silhouettes(pose, K, size, placed)
        visible = view.labels[None] == np.array([item.label for item in placed], np.uint8)[:, None, None]
        # Where the sheet's rounding lost a pixel of an edge.
        masks |= visible
        if colours is None:
            colours = self._smooth(pose, K, exposure) if self.settings.samples > 1 else view.rgb
        instances = []
        for name, item, mask in zip(names, placed, masks, strict=True):
            model = pose @ item.pose
            count, box = self._whole(pose, K, item, mask)
            instances.append(
                SceneInstance(
                    name=name,
                    cam_R_m2c=model[:3, :3],
                    cam_t_m2c=1000 * model[:3, 3],
                    px_count_all=count,
                    bbox_obj=box,
                )
            )
        return SceneImage(
            rgb=self._photograph(rng, colours),
            depth=1000 * view.depth,
            masks_visible=visible,
            masks=masks,
            K=K,
            cam_R_w2c=pose[:3, :3],
            cam_t_w2c=1000 * pose[:3, 3],
            instances=tuple(instances),
        )

    def _smooth(self, pose: Array, K: Array, exposure: float) -> NDArray[np.uint8]:
        """The picture from several samples a pixel; what a pixel's label is stays with its middle."""
        samples = self.settings.samples
        height, width = self.settings.camera.size
        finer = np.diag([samples, samples, 1.0]) @ K
        view = self._renderer.draw(pose, finer, (samples * height, samples * width), exposure=exposure)
        return np.asarray(cv2.resize(view.rgb, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)

    def _photograph(self, rng: np.random.Generator, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        strength = rng.uniform(*self.settings.effects)
        while True:
            picture = photograph(rng, rgb.astype(np.float32), strength=strength, blur=MAX_BLUR)
            some = picture[::4, ::4]
            if strength < 0.05 or (
                (some.min(axis=2) > 250).mean() <= MAX_WHITE and (some.max(axis=2) < 10).mean() <= MAX_BLACK
            ):
                return picture
            # Nobody keeps such a picture: the camera is set anew.
            strength *= 0.6

    def _whole(
        self, pose: Array, K: Array, item: Placed, mask: NDArray[np.bool_]
    ) -> tuple[int, tuple[int, int, int, int]]:
        """Pixels and box of the whole silhouette: as BOP's tools do, on a canvas three times as wide and high."""
        height, width = mask.shape
        uv = project(item.points, pose, K)
        low = np.floor(np.clip(uv.min(axis=0) - 2, (-width, -height), (2 * width, 2 * height))).astype(int)
        high = np.ceil(np.clip(uv.max(axis=0) + 2, (-width, -height), (2 * width, 2 * height))).astype(int)
        if (low >= 0).all() and high[0] <= width and high[1] <= height:
            low = np.zeros(2, int)
        elif (high <= low).any():
            return 0, (-1, -1, -1, -1)
        else:
            shifted = K.copy()
            shifted[:2, 2] -= low
            # In steps of 128 pixels, so that few framebuffers serve all.
            across, down = (-(-(high - low) // 128) * 128).tolist()
            mask = self._renderer.silhouettes(pose, shifted, (down, across), [item])[0]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return 0, (-1, -1, -1, -1)
        box = (
            int(low[0] + columns[0]),
            int(low[1] + rows[0]),
            int(columns[-1] - columns[0] + 1),
            int(rows[-1] - rows[0] + 1),
        )
        return int(np.count_nonzero(mask)), box

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *key, 0x5CE4E])

    def _object(self, source: ObjectSource, name: str) -> tuple[trimesh.Trimesh, list[Array], Any]:
        """Mesh, convex bodies and handle of an object."""
        key = f"{'target' if source is self._targets else 'distractor'} {name}"
        if key not in self._objects:
            mesh = source.mesh(name)
            self._objects[key] = mesh, collision_hulls(mesh), self._renderer.upload(mesh)
        self._objects.move_to_end(key)
        mesh, hulls, handle = self._objects[key]
        return mesh, hulls, handle

    def _texture(self, number: int) -> Any:
        if number not in self._textures:
            self._textures[number] = self._renderer.upload_texture(self._pool[number])
        self._textures.move_to_end(number)
        return self._textures[number]


def _trim(kept: OrderedDict[Any, T], limit: int, release: Callable[[T], None]) -> None:
    while len(kept) > limit:
        release(kept.popitem(last=False)[1])
