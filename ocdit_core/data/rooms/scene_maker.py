"""Scenes by number: settle objects in a room, photograph it from many sides, and say what each picture shows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.rooms.cameras import automatic_exposure, choose_cameras
from ocdit_core.data.rooms.layouts import SceneLayout, SceneSettings, make_layout
from ocdit_core.errors import DataError
from ocdit_core.objects.viewpoints import project
from ocdit_core.synthesis.composed import photograph
from ocdit_core.synthesis.path_tracer import PathTracer, developed
from ocdit_core.synthesis.renderer import Placed, SceneRenderer
from ocdit_core.synthesis.settling import collision_hulls
from ocdit_core.synthesis.sources import ObjectSource, TexturePool

if TYPE_CHECKING:
    import trimesh

Array = NDArray[np.float64]
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
