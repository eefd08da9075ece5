"""Load Mitsuba 3 by the fastest variant that works on this machine, and build its cameras and meshes."""

from __future__ import annotations

import logging
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdit_core.errors import RenderingError
from ocdit_core.objects.surfaces import linear_from_srgb

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
