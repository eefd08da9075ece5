"""Render rooms with objects by path tracing (Mitsuba 3), for a fraction of the images.

Cameras, objects and lamps are those of `SceneRenderer`, whose labels and depth hold for these images as well. The
ambient light comes from the ceiling, with indirect light from all surfaces.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.objects.surfaces import linear_from_srgb
from ocdit_core.synthesis.renderer import Placed
from ocdit_core.synthesis.room import Material, Room

logger = logging.getLogger(__name__)

_VARIANTS = ("llvm_ad_rgb", "scalar_rgb")  # the first is faster and needs the LLVM library
_PROBE = """
import sys
import mitsuba

mitsuba.set_variant(sys.argv[1])
scene = mitsuba.cornell_box()
scene["sensor"]["film"]["width"] = scene["sensor"]["film"]["height"] = 8
assert mitsuba.render(mitsuba.load_dict(scene), spp=1).numpy().max() > 0
"""


def load_mitsuba() -> Any:
    """Import mitsuba and set the fastest variant that renders on this machine.

    Raises:
        RenderingError: Mitsuba is missing or does not start.
    """
    try:
        import mitsuba
    except ImportError as error:
        raise RenderingError("path tracing needs the package mitsuba: pip install mitsuba") from error
    reasons: dict[str, str] = {}
    for variant in _VARIANTS:
        reasons[variant] = _failure(variant)
        if not reasons[variant]:
            if variant != _VARIANTS[0]:
                logger.warning("Mitsuba uses its slower %s (%s: %s)", variant, _VARIANTS[0], reasons[_VARIANTS[0]])
            mitsuba.set_variant(variant)
            return mitsuba
    named = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())
    raise RenderingError(f"Mitsuba does not start ({named})")


@cache
def _failure(variant: str) -> str:
    """Return why a variant of Mitsuba does not render, or "".

    It is tried in a subprocess: an LLVM that is too old for Mitsuba or for the processor aborts the process.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE, variant], capture_output=True, text=True, check=False)
    said = done.stderr.split("\n")
    errors = [" ".join(line.split()) for line in said if "error" in line.lower()]
    return (errors or [f"it ended with code {done.returncode}"])[-1] if done.returncode else ""


def pinhole(K: NDArray[np.float64], size: tuple[int, int]) -> dict[str, Any]:
    """Return the entries of Mitsuba's perspective sensor for K (3, 3) in pixels and an image of (height, width)."""
    height, width = size
    return {
        "type": "perspective",
        "fov": float(np.degrees(2 * np.arctan(width / (2 * K[0, 0])))),
        "fov_axis": "x",
        "principal_point_offset_x": float(0.5 - K[0, 2] / width),
        "principal_point_offset_y": float(0.5 - K[1, 2] / height),
    }


def traced_mesh(mi: Any, corners: NDArray[np.float32], properties: Any) -> Any:
    """Return a Mitsuba mesh with vertex normals, texture coordinates and linear vertex colours.

    Args:
        mi: the mitsuba module.
        corners: (3 * faces, 12), as `Surface.corners`.
        properties: Mitsuba properties that hold the material.
    """
    mesh = mi.Mesh(
        "object",
        vertex_count=len(corners),
        face_count=len(corners) // 3,
        has_vertex_normals=True,
        has_vertex_texcoords=True,
        props=properties,
    )
    mesh.add_attribute("vertex_color", 3, np.ascontiguousarray(linear_from_srgb(corners[:, 8:11])).ravel())
    values = mi.traverse(mesh)
    values["vertex_positions"] = np.ascontiguousarray(corners[:, :3]).ravel()
    values["vertex_normals"] = np.ascontiguousarray(corners[:, 3:6]).ravel()
    # Mitsuba counts image rows from the top.
    values["vertex_texcoords"] = np.stack([corners[:, 6], 1 - corners[:, 7]], axis=1).ravel()
    values["faces"] = np.arange(len(corners), dtype=np.uint32)
    values.update()
    return mesh


Array = NDArray[np.float64]
SAMPLES = 36  # light paths a pixel: a square, as the sampler wants it
_BOUNCES = 6
_GAMMA = 2.2  # of colours and textures, as in the scene renderer
_WINDOW = 0.5  # metres: half the side of what shines in from a wall
# Radiance against that of the scene renderer's windows, which are whole parts of its sky.
_WINDOW_GAIN = 4.0


class PathTracer:
    """Path tracer of staged rooms, for one thread.

    Args:
        samples: light paths per pixel.

    Raises:
        RenderingError: Mitsuba is missing or does not start.
    """

    def __init__(self, samples: int = SAMPLES) -> None:
        try:
            import drjit
        except ImportError as error:
            raise RenderingError("path-traced images need the package mitsuba: pip install mitsuba") from error
        # Before anything starts threads: they would add light up in another order each time, and round it so.
        drjit.set_thread_count(1)
        self._mi = load_mitsuba()
        self._samples = samples
        self._parts: dict[str, Any] = {}

    def stage(self, room: Room, textures: dict[int, NDArray[np.uint8]], objects: Sequence[Placed]) -> None:
        """Make a scene ready; the one before it is dropped.

        Args:
            room: the static part of the scene.
            textures: (H, W, 3) sRGB images of the room's surfaces, by number.
            objects: objects in their poses.
        """
        parts: dict[str, Any] = {}
        for number, surface in enumerate(room.surfaces):
            texture = None if surface.texture is None else textures[surface.texture]
            parts[f"room_{number}"] = self._shape(surface.corners, texture, surface.material)
        for number, item in enumerate(objects):
            assert item.mesh.surface is not None
            corners = item.mesh.surface.corners.copy()
            corners[:, :3] = corners[:, :3] @ item.pose[:3, :3].T + item.pose[:3, 3]
            corners[:, 3:6] = corners[:, 3:6] @ item.pose[:3, :3].T
            cutoff = item.mesh.surface.alpha_cutoff
            parts[f"object_{number}"] = self._shape(corners, item.mesh.surface.texture, item.material, cutoff)
        for number, lamp in enumerate(room.lights):
            # What arrives from a ball of radiance L and radius r is pi L r^2 / d^2, of which a white surface sends
            # back a pi-th each way: its intensity, as the scene renderer counts, is L r^2.
            parts[f"lamp_{number}"] = {
                "type": "sphere",
                "center": lamp.position.tolist(),
                "radius": lamp.radius,
                "emitter": _area(lamp.colour / lamp.radius**2),
            }
        parts |= self._sky(room)
        self._parts = parts

    def draw(self, pose: Array, K: Array, size: tuple[int, int], *, seed: int = 0) -> NDArray[np.float32]:
        """Return linear radiance (h, w, 3), before exposure.

        Args:
            pose: (4, 4) camera-from-world, OpenCV axes, metres.
            K: (3, 3) intrinsics in pixels, of square pixels.
            size: height and width in pixels.
            seed: random seed of the light paths.
        """
        mi, (height, width) = self._mi, size
        film: dict[str, Any] = {"type": "hdrfilm", "width": width, "height": height, "rfilter": {"type": "box"}}
        film |= {"pixel_format": "rgb", "component_format": "float32"}
        sensor = {
            **pinhole(K, size),
            "near_clip": 0.01,
            "far_clip": 50.0,
            # Mitsuba's camera axes: x left, y up, z forward.
            "to_world": mi.ScalarTransform4f(np.linalg.inv(pose) @ np.diag([-1.0, -1.0, 1.0, 1.0])),
            "film": film,
            "sampler": {"type": "multijitter", "sample_count": self._samples},
        }
        integrator = {"type": "path", "max_depth": _BOUNCES, "hide_emitters": False}
        scene = mi.load_dict({"type": "scene", "integrator": integrator, "sensor": sensor, **self._parts})
        linear = np.array(mi.render(scene, seed=seed), dtype=np.float32)
        # A path that found a lamp by chance: brighter than any tone that an image has.
        return np.minimum(np.nan_to_num(linear), 20 * max(float(np.percentile(linear, 99)), 1e-3))

    def _shape(
        self, corners: NDArray[np.float32], texture: NDArray[np.uint8] | None, material: Material, cutoff: float = 0.0
    ) -> Any:
        mi = self._mi
        colour: dict[str, Any] = {"type": "mesh_attribute", "name": "vertex_color"}
        if texture is not None:
            # An image comes with one tint for all corners.
            texels = (texture[..., :3] / np.float32(255) * corners[0, 8:11]) ** np.float32(_GAMMA)
            colour = {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(texels)), "raw": True}
        principled = {
            "type": "principled",
            "base_color": colour,
            "roughness": float(np.clip(material.roughness, 0.1, 1.0)),
            "metallic": material.metallic,
            "specular": float(np.clip(material.specular, 0.0, 1.0)),
        }
        bsdf: dict[str, Any] = {"type": "twosided", "bsdf": principled}
        if texture is not None and cutoff > 0:
            solid = (texture[..., 3:] >= 255 * cutoff).astype(np.float32)
            opacity = {"type": "bitmap", "bitmap": mi.Bitmap(solid), "raw": True, "filter_type": "nearest"}
            bsdf = {"type": "mask", "opacity": opacity, "bsdf": bsdf}
        properties = mi.Properties()
        properties["material"] = mi.load_dict(bsdf)
        return traced_mesh(mi, corners, properties)

    def _sky(self, room: Room) -> dict[str, Any]:
        """Return emitters: the ceiling, and a square on the wall for each window."""
        mi = self._mi
        half = (room.high - room.low)[:2] / 2
        middle = (room.high + room.low)[:2] / 2
        sky = {"ceiling": ([*middle, room.high[2] - 0.005], [*middle, 0.0], [*half, 1.0], [0.0, 1.0, 0.0], room.zenith)}
        for number, window in enumerate(room.windows):
            towards = window[:3]
            edges = np.where(towards > 0, room.high, room.low) / np.where(towards == 0, np.inf, towards)
            edges[towards == 0] = np.inf
            axis = int(np.argmin(edges))
            if axis == 2:
                continue  # it shines through the ceiling, which shines already
            at = towards * edges[axis]
            inwards = np.zeros(3)
            inwards[axis] = -np.sign(towards[axis])
            at = at + 0.01 * inwards
            at[2] = np.clip(at[2], room.low[2] + _WINDOW, room.high[2] - _WINDOW)
            radiance = _WINDOW_GAIN * window[3:]
            sky[f"window_{number}"] = (at, at + inwards, [_WINDOW, _WINDOW, 1.0], [0.0, 0.0, 1.0], radiance)
        return {
            name: {
                "type": "rectangle",
                "to_world": mi.ScalarTransform4f().look_at(
                    origin=[float(v) for v in origin], target=[float(v) for v in target], up=up
                )
                @ mi.ScalarTransform4f().scale([float(v) for v in scale]),
                "emitter": _area(radiance),
            }
            for name, (origin, target, scale, up, radiance) in sky.items()
        }


def developed(linear: NDArray[np.float32], exposure: float) -> NDArray[np.uint8]:
    """Return the sRGB image (h, w, 3) of linear radiance, by the tone curve of the scene renderer."""
    x = linear * np.float32(exposure)
    x = np.clip(x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14), 0.0, 1.0)
    return np.asarray(np.rint(255 * x ** (1 / _GAMMA)), dtype=np.uint8)


def _area(radiance: Array) -> dict[str, Any]:
    return {"type": "area", "radiance": {"type": "rgb", "value": [float(value) for value in radiance]}}
