"""Render rooms with objects: colours with soft shadows, labels, depth and silhouettes (moderngl on EGL, no display).

Cameras are camera-from-world poses in OpenCV axes, metres; image coordinates are continuous, with (0, 0) at the outer
corner of the first pixel, and the label of a pixel is that of its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.objects.renderer import clip_matrix, make_texture, open_context
from ocdit_core.objects.surfaces import Surface, surface_of
from ocdit_core.synthesis import shaders
from ocdit_core.synthesis.lighting import LIGHT_TILE, BakedLight, LightViews, ShadowMaps, light_views
from ocdit_core.synthesis.room import Material, Place, Room
from ocdit_core.synthesis.shaders import LIGHT_SAMPLES

if TYPE_CHECKING:
    import trimesh


def make_frame(gl: Any, kind: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return framebuffers and the textures that they draw into, by name, of a size (rows, columns) in pixels.

    The kinds are "silhouettes" (sheet), "preview" (linear, seen) and "view" (smoothed, seen, and their sources).
    """
    pixels = size[::-1]
    made: dict[str, Any] = {}
    if kind == "silhouettes":
        made["sheet"] = gl.texture(pixels, 1)
        made["sheet only"] = gl.framebuffer([made["sheet"]])
        return made
    made["depth"] = gl.depth_renderbuffer(pixels)
    made["seen"] = gl.texture(pixels, 2, dtype="f4")
    if kind == "preview":
        made["linear"] = gl.texture(pixels, 4, dtype="f2")
        made["all"] = gl.framebuffer([made["linear"], made["seen"]], made["depth"])
        return made
    for name, dtype in {"normal": "f2", "colour": "f1", "sky": "f2", "shaded": "f1", "smoothed": "f1"}.items():
        made[name] = gl.texture(pixels, 4, dtype=dtype)
    made["shaded"].repeat_x = made["shaded"].repeat_y = False
    made["surfaces"] = gl.framebuffer([made[k] for k in ("seen", "normal", "colour", "sky")], made["depth"])
    made["light"] = gl.framebuffer([made["shaded"]], made["depth"])
    made["light"].depth_mask = False  # it only asks where objects are
    made["room"] = gl.framebuffer([made["shaded"], made["seen"]], made["depth"])
    made["smooth"] = gl.framebuffer([made["smoothed"]])
    return made


Array = NDArray[np.float64]
_WORDS = {"position": "3f", "normal": "3f", "uv": "2f", "colour": "4f"}


@dataclass(eq=False)
class SceneMesh:
    """A mesh on the graphics card; or a part of a room, without a surface, whose texture belongs to its pool."""

    surface: Surface | None
    arrays: dict[str, Any]
    buffer: Any
    texture: Any | None

    def release(self) -> None:
        """Free the GPU memory; its context must be current."""
        for item in (*self.arrays.values(), self.buffer, self.texture if self.surface is not None else None):
            if item is not None:
                item.release()

    @property
    def cutoff(self) -> float:
        """Texels with less alpha than this are holes; 0: there are none."""
        return 0.0 if self.surface is None else self.surface.alpha_cutoff


@dataclass(frozen=True, kw_only=True, eq=False)
class Placed:
    """One object in its pose.

    Attributes:
        mesh: from `SceneRenderer.upload`.
        pose: (4, 4) world-from-object, metres.
        material: how it reflects light.
        label: its value in the image of labels, 1..254; 0, as for distractors, is that of the background.
        name: its name in the source of objects.
    """

    mesh: SceneMesh
    pose: NDArray[np.float64]
    material: Material
    label: int
    name: str = ""

    @property
    def points(self) -> NDArray[np.float64]:
        """Its vertices in the world (n, 3), metres."""
        assert self.mesh.surface is not None
        return np.asarray(self.mesh.surface.vertices @ self.pose[:3, :3].T + self.pose[:3, 3])


@dataclass(frozen=True, kw_only=True, eq=False)
class SceneView:
    """Image, labels and depth of one camera.

    Attributes:
        rgb: (h, w, 3) sRGB, with smooth edges.
        labels: (h, w) at the centres of pixels; 0 for the room and unlabelled objects.
        depth: (h, w) metres along the optical axis.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    depth: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class StagedScene:
    """A staged scene; `skies` holds a buffer of the sky's light on the corners of each object."""

    room: Room
    parts: list[tuple[SceneMesh, Material, Place]]
    objects: Sequence[Placed]
    skies: list[Any]
    views: LightViews


def layout_for(program: Any) -> tuple[str, ...]:
    """Return the layout of a buffer of `Surface.corners`, as far as the program reads it."""
    words = [word if name in program else f"{4 * int(word[0])}x" for name, word in _WORDS.items()]
    return (" ".join(words), *(name for name in _WORDS if name in program))


NEAR, FAR = 0.03, 30.0  # metres


def camera_uniforms(room: Room, views: LightViews, pose: Array, K: Array, size: tuple[int, int]) -> dict[str, Any]:
    """Return the uniforms that all programs share for one camera, matrices in OpenGL's order (column by column)."""
    to_pixels = np.diag([size[1], size[0], 1.0])
    return {
        "clip_from_world": (clip_matrix(K, size, NEAR, FAR) @ pose).T,
        "ray_from_image": (pose[:3, :3].T @ np.linalg.inv(K) @ to_pixels).T,
        "eye": -pose[:3, :3].T @ pose[:3, 3],
        "forward": pose[2, :3],
        "light_at": views.light_at[::LIGHT_SAMPLES],
        "light_colour": np.array([light.colour for light in room.lights]),
        "light_clip": views.light_clip.transpose(0, 2, 1),
        "light_texel": 2 * views.radius / LIGHT_TILE,
        "ground_colour": room.ground,
        "horizon_colour": room.horizon,
        "zenith_colour": room.zenith,
        "table": [*room.half_size, room.table_height],
    }


def write_uniforms(program: Any, values: dict[str, Any]) -> None:
    """Write those values that the program uses, matrices in OpenGL's order (column by column)."""
    for name, value in values.items():
        if name in program:
            # The driver cuts arrays off after the last entry that is used.
            length = program[name].array_length * program[name].dimension
            flat = np.ascontiguousarray(value, dtype=np.float32).reshape(-1)[:length]
            program[name].write(flat.tobytes())


KEPT_FRAMES = 8
_SHEET_ROWS = 15360  # of the sheet that silhouettes are drawn on, one below the other
_UNITS = {
    "image": 0, "light_maps": 1, "lamps_seen": 2, "sky_seen": 3,
    "seen_map": 4, "normal_map": 5, "colour_map": 6, "sky_map": 7, "shaded_map": 8,
}  # fmt: skip


class SceneRenderer:
    """Renderer of scenes with an off-screen OpenGL context of its own; a context manager, for one thread.

    `stage` a scene once, then draw it from any number of cameras.

    Raises:
        RenderingError: there is no EGL driver on this machine, or moderngl is missing.
    """

    def __init__(self) -> None:
        self._gl: Any = open_context()
        self._shadows = ShadowMaps(self._gl)
        self._baked = BakedLight(self._gl, self._shadows)
        self._programs: dict[str, Any] = {}
        self._frames: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._blank: Any = self._gl.texture((1, 1), 4, b"\xff\xff\xff\xff")
        self._full: Any = self._gl.buffer(np.array([[-1, -1], [3, -1], [-1, 3]], np.float32).tobytes())
        self._staged: StagedScene | None = None

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._gl is not None:
            with self._context():
                self._unstage()
            self._gl.release()
            self._gl = None

    def upload(self, mesh: trimesh.Trimesh) -> SceneMesh:
        """Upload a mesh in metres.

        Raises:
            MeshError: the mesh has no faces, or a vertex is not finite.
        """
        surface = surface_of(mesh)
        with self._context():
            texture = None if surface.texture is None else make_texture(self._gl, surface.texture, trilinear=True)
            return self._mesh(surface.corners, surface, texture)

    def upload_texture(self, image: NDArray[np.uint8]) -> Any:
        """Upload an image (H, W, 3) sRGB for surfaces of rooms."""
        with self._context():
            rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
            return make_texture(self._gl, rgba, trilinear=True)

    def release(self, *items: Any) -> None:
        """Free meshes and textures that were uploaded; the staged scene must not use them any more."""
        if self._gl is not None:  # with the context went all that was in it
            with self._context():
                for item in items:
                    item.release()

    def stage(self, room: Room, textures: dict[int, Any], objects: Sequence[Placed]) -> None:
        """Prepare a scene: upload the room and compute its light; it replaces the scene before.

        Args:
            room: the static part of the scene.
            textures: textures of the room's surfaces, by number, from `upload_texture`.
            objects: each label but 0 at most once.
        """
        with self._context():
            self._unstage()
            parts: list[tuple[SceneMesh, Material, Place]] = []
            for part in room.surfaces:
                mesh = self._mesh(part.corners, None, None if part.texture is None else textures[part.texture])
                parts.append((mesh, part.material, part.place))
            views = light_views(room, np.concatenate([*(item.points for item in objects), np.zeros((1, 3))]))
            casters = [(item.mesh.arrays["shadow"], item.pose) for item in objects]
            self._shadows.draw(casters, views, len(room.lights))
            self._baked.on_table(views, len(room.lights), room.half_size)
            skies = [self._baked.on_corners(item.mesh.arrays["sky"], item.pose, views) for item in objects]
            self._staged = StagedScene(room=room, parts=parts, objects=objects, skies=skies, views=views)

    def preview(self, pose: Array, K: Array, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return linear radiance (h, w, 3) and labels (h, w), to choose an exposure and judge a camera.

        It has no shadows, so that it is slightly brighter than `draw`.
        """
        scene = self._scene()
        with self._context():
            frame = self._frame("preview", size)
            common = camera_uniforms(scene.room, scene.views, pose, K, size) | {"exposure": 0.0}
            self._begin(frame["all"], size)
            program = self._ready("around", len(scene.room.lights), common)
            for item in scene.objects:
                self._draw(program, item.mesh, item.pose, item.material, item.label)
            for mesh, material, _ in reversed(scene.parts):
                self._draw(program, mesh, np.eye(4), material)
            linear = np.frombuffer(frame["linear"].read(), np.float16).reshape(*size, 4)[..., :3]
            labels = np.frombuffer(frame["seen"].read(), np.float32).reshape(*size, 2)[..., 1]
            return linear.astype(np.float32), labels.astype(np.uint8)

    def draw(self, pose: Array, K: Array, size: tuple[int, int], *, exposure: float) -> SceneView:
        """Draw the image, its labels and its depth.

        Args:
            pose: (4, 4) camera-from-world, metres.
            K: (3, 3) intrinsics in pixels.
            size: height and width in pixels.
            exposure: linear light is multiplied by it before the tone curve; above 0.
        """
        scene = self._scene()
        lamps = len(scene.room.lights)
        with self._context():
            frame = self._frame("view", size)
            light = {"exposure": max(exposure, 1e-6), "baked_area": self._baked.area}
            common = camera_uniforms(scene.room, scene.views, pose, K, size) | light
            # Surfaces of objects, then their light, once a pixel.
            self._begin(frame["surfaces"], size)
            for item, sky in zip(scene.objects, scene.skies, strict=True):
                program = self._ready("surfaces, holes" if item.mesh.cutoff else "surfaces", 0, common)
                self._draw(program, item.mesh, item.pose, item.material, item.label, sky)
            for name in ("seen", "normal", "colour", "sky"):
                frame[name].use(_UNITS[f"{name}_map"])
            frame["light"].use()
            self._gl.depth_func = ">"
            self._fill("objects", lamps, common)
            self._gl.depth_func = "<="
            # The room, the nearest first: what is hidden is not shaded.
            frame["room"].use()
            for mesh, material, place in reversed(scene.parts):
                self._draw(self._ready(place, lamps, common), mesh, np.eye(4), material)
            self._gl.enable_only(self._gl.NOTHING)
            frame["shaded"].use(_UNITS["shaded_map"])
            frame["smooth"].use()
            self._fill("smoothing", 0, common)
            rgba = np.frombuffer(frame["smoothed"].read(), np.uint8).reshape(*size, 4)
            seen = np.frombuffer(frame["seen"].read(), np.float32).reshape(*size, 2)
        return SceneView(
            rgb=np.asarray(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), dtype=np.uint8),
            labels=seen[..., 1].astype(np.uint8),
            depth=np.ascontiguousarray(seen[..., 0]),
        )

    def silhouettes(
        self, pose: Array, K: Array, size: tuple[int, int], objects: Sequence[Placed] | None = None
    ) -> NDArray[np.bool_]:
        """Return the amodal mask of each object (n, h, w): its whole silhouette, ignoring occlusion.

        Args:
            pose: (4, 4) camera-from-world, metres.
            K: (3, 3) intrinsics in pixels.
            size: height and width in pixels.
            objects: default: the labelled objects of the scene, in order.
        """
        wanted = [item for item in self._scene().objects if item.label] if objects is None else list(objects)
        height, width = size
        masks = np.zeros((len(wanted), height, width), np.uint8)
        at_once = max(1, min(len(wanted), _SHEET_ROWS // height))
        with self._context():
            # Sheets for 4, 8, 12 ... objects: few sizes serve all scenes.
            frame = self._frame("silhouettes", (min(-(-at_once // 4) * 4, _SHEET_ROWS // height) * height, width))
            program = self._ready("silhouette", 0, {"clip_from_world": (clip_matrix(K, size, NEAR, FAR) @ pose).T})
            for begin in range(0, len(wanted), at_once):
                some = wanted[begin : begin + at_once]
                self._gl.enable_only(self._gl.NOTHING)
                target = frame["sheet only"]
                target.use()
                target.viewport = (0, 0, width, at_once * height)
                target.clear()
                for row, item in enumerate(some):
                    target.viewport = (0, row * height, width, height)
                    self._draw(program, item.mesh, item.pose)
                read = target.read(viewport=(0, 0, width, len(some) * height), components=1, alignment=1)
                masks[begin : begin + len(some)] = np.frombuffer(read, np.uint8).reshape(len(some), height, width)
        return masks > 0

    def _ready(self, kind: str, lamps: int, common: dict[str, Any]) -> Any:
        """Return a program with the camera's uniforms, compiled on first use."""
        name = f"{kind}, {lamps} lamps"
        if name not in self._programs:
            vertex, fragment = shaders.source(kind, lamps)
            program = self._gl.program(vertex_shader=vertex, fragment_shader=fragment)
            for sampler, unit in _UNITS.items():
                if sampler in program:
                    program[sampler] = unit
            program.extra = {"name": name, "camera": None}
            self._programs[name] = program
        program = self._programs[name]
        if program.extra["camera"] is not common:
            write_uniforms(program, common)
            program.extra["camera"] = common
            self._shadows.lights.use(_UNITS["light_maps"])
            self._baked.lamps.use(_UNITS["lamps_seen"])
            self._baked.sky.use(_UNITS["sky_seen"])
        return program

    def _draw(
        self,
        program: Any,
        mesh: SceneMesh,
        pose: Array,
        material: Material | None = None,
        label: int = 0,
        sky: Any | None = None,
    ) -> None:
        textured = mesh.texture is not None
        look = {"world_from_object": pose.T, "textured": textured, "cutoff": mesh.cutoff, "label": label}
        if material is not None:
            look |= {"roughness": material.roughness, "specular": material.specular, "metallic": material.metallic}
        write_uniforms(program, look)
        (mesh.texture or self._blank).use(_UNITS["image"])
        if sky is not None:
            # The light belongs to this scene: an array of its own, for this image.
            content = [(mesh.buffer, *layout_for(program)), (sky, "4f 4f", "sky_before", "sky_behind")]
            array = self._gl.vertex_array(program, content)
            array.render()
            array.release()
            return
        name = program.extra["name"]
        if name not in mesh.arrays:
            mesh.arrays[name] = self._gl.vertex_array(program, [(mesh.buffer, *layout_for(program))])
        mesh.arrays[name].render()

    def _fill(self, kind: str, lamps: int, common: dict[str, Any]) -> None:
        """Run a program on every pixel that the depth test lets through."""
        program = self._ready(kind, lamps, common)
        if "quad" not in program.extra:
            program.extra["quad"] = self._gl.vertex_array(program, [(self._full, "2f", "corner")])
        program.extra["quad"].render()

    def _begin(self, frame: Any, size: tuple[int, int]) -> None:
        self._gl.enable_only(self._gl.DEPTH_TEST)
        self._gl.depth_func = "<="
        frame.use()
        frame.viewport = (0, 0, size[1], size[0])
        frame.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)

    def _frame(self, kind: str, size: tuple[int, int]) -> dict[str, Any]:
        """Return the framebuffers and textures of a kind of image; the last few sizes are kept."""
        frame = self._frames.pop((kind, *size), None) or make_frame(self._gl, kind, size)
        self._frames[(kind, *size)] = frame
        while len(self._frames) > KEPT_FRAMES:
            for item in self._frames.pop(next(iter(self._frames))).values():
                item.release()
        return frame

    def _mesh(self, corners: NDArray[np.float32], surface: Surface | None, texture: Any | None) -> SceneMesh:
        buffer = self._gl.buffer(corners.tobytes())
        arrays = {}
        if surface is not None:
            for name, program in (("sky", self._baked.corners), ("shadow", self._shadows.program)):
                arrays[name] = self._gl.vertex_array(program, [(buffer, *layout_for(program))])
        return SceneMesh(surface, arrays, buffer, texture)

    def _scene(self) -> StagedScene:
        if self._staged is None:
            raise RenderingError("no scene is staged; call stage first")
        return self._staged

    def _unstage(self) -> None:
        if self._staged is not None:
            for mesh, _, _ in self._staged.parts:
                mesh.release()
            for sky in self._staged.skies:
                sky.release()
        self._staged = None

    def _context(self) -> Any:
        """Make this context current for a block: the renderer of templates in the same process has its own."""
        if self._gl is None:
            raise RenderingError("the renderer is closed; make a new one")
        return self._gl
