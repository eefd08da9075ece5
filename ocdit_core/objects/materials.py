"""What trimesh's materials say of a surface: its colour texture, its plain colour, how metallic and how rough it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import trimesh

# glTF packs roughness into green and metalness into blue of one picture.
_FACTORS = {"metallic": ("metallicFactor", 2), "roughness": ("roughnessFactor", 1)}


def texture_of(visual: Any) -> Any:
    """Return the colour texture (a Pillow image) of a trimesh visual, or None."""
    material = getattr(visual, "material", None)
    image = getattr(material, "baseColorTexture", None)
    image = image if image is not None else getattr(material, "image", None)
    return None if image is None or _stands_in(image) else image


def _stands_in(image: Any) -> bool:
    """Whether it is trimesh's own dark grey, where a file has texture coordinates and no material."""
    from trimesh.visual.material import color_image

    own = color_image()
    return bool(image.size == own.size and image.mode == own.mode and image.tobytes() == own.tobytes())


def surface_factors(parts: list[trimesh.Trimesh]) -> dict[str, float]:
    """Return the means of "metallic" and "roughness" over the surface of those parts that state them, in 0..1.

    What no part states is left out: glTF's own default, an entirely metallic surface, is hardly ever meant where a
    file says nothing.
    """
    means = {}
    for key, (factor, channel) in _FACTORS.items():
        stated = [(_value(part.visual, factor, channel), float(part.area)) for part in parts]
        known = [(value, area) for value, area in stated if value is not None]
        total = sum(area for _, area in known)
        if known and total > 0:
            means[key] = float(np.clip(sum(value * area for value, area in known) / total, 0, 1))
    return means


def _value(visual: Any, factor: str, channel: int) -> float | None:
    material = getattr(visual, "material", None)
    stated = getattr(material, factor, None)
    picture = getattr(material, "metallicRoughnessTexture", None)
    if picture is None:
        return None if stated is None else float(stated)
    texels = np.asarray(picture.convert("RGB"))[..., channel].mean() / 255
    return float(texels) * (1.0 if stated is None else float(stated))


def neutral_diffuse(material: Any, neutral: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a simple material's diffuse colour as sRGBA, or `neutral` where the file gives it none."""
    from trimesh.visual.color import DEFAULT_COLOR

    diffuse = getattr(material, "diffuse", None)
    if diffuse is None:
        return neutral
    # trimesh fills in a darker grey of its own; a file that means that very grey says so with Kd.
    stated = "kd" in (getattr(material, "kwargs", None) or {})
    rgba = np.resize(np.asarray(diffuse, dtype=np.uint8), 4)
    return neutral if not stated and (rgba == DEFAULT_COLOR).all() else rgba
