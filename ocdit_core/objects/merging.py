"""Several parts with several materials become one mesh with one texture, or with one colour a vertex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.objects.materials import neutral_diffuse, surface_factors, texture_of

if TYPE_CHECKING:
    import trimesh

NEUTRAL = np.array([165, 165, 165, 255], np.uint8)
MAX_TILES = 8  # a texture repeated more often across one face than this is baked into vertex colours
MAX_TEXTURE = 1024  # side in pixels of one part's texture in an atlas; views are 128 pixels wide
_PADDING = 4
_ATLAS_WIDTH = 4096


@dataclass
class _Part:
    """One geometry in the scene's frame; it has a texture with coordinates, or colours."""

    vertices: NDArray[Any]
    faces: NDArray[Any]
    uv: NDArray[Any] | None = None
    texture: NDArray[np.uint8] | None = None  # (H, W, 4) sRGBA, first row at the top
    colours: NDArray[np.uint8] | None = None  # (V, 4) sRGBA


def merge(parts: list[trimesh.Trimesh], *, linear_colours: bool) -> trimesh.Trimesh:
    """Join the parts of a scene, keeping what their surfaces look like.

    One part, or parts without any texture, lose nothing. Parts with different textures share an atlas. Only where a
    texture repeats over a face more often than an atlas can hold does every vertex take its texel's colour instead.

    Args:
        parts: meshes in one frame, each with any kind of trimesh visual.
        linear_colours: whether vertex colours are linear (glTF's rule) rather than sRGB.

    Returns:
        One mesh; textures and colours are sRGB; its metadata are what `surface_factors` returns.
    """
    mesh = _merged(parts, linear_colours)
    mesh.metadata = surface_factors(parts)
    return mesh


def _merged(parts: list[trimesh.Trimesh], linear_colours: bool) -> trimesh.Trimesh:
    import trimesh
    from trimesh.visual import ColorVisuals, TextureVisuals

    visual: Any = parts[0].visual
    if len(parts) == 1 and visual.kind == "texture" and texture_of(visual) is not None:
        return parts[0]
    read = [_read(part, linear_colours) for part in parts]
    if any(part.texture is not None for part in read):
        atlas = _atlas(read)
        if atlas is not None:
            joined, texture, uv = atlas
            from PIL import Image

            material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
            return _join(joined, TextureVisuals(uv=uv, material=material))
        for part in read:
            _bake(part)
    if all(part.colours is None for part in read):
        return _join(read, None)
    colours = np.concatenate(
        [part.colours if part.colours is not None else np.tile(NEUTRAL, (len(part.vertices), 1)) for part in read]
    )
    return _join(read, ColorVisuals(vertex_colors=colours))


def _join(parts: list[_Part], visual: Any) -> trimesh.Trimesh:
    import trimesh

    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return trimesh.Trimesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]),
        visual=visual,
        process=False,
    )


def _read(mesh: trimesh.Trimesh, linear_colours: bool) -> _Part:
    """Take a mesh's surface apart; colour factors are multiplied in, vertex and face colours become (V, 4)."""
    part = _Part(vertices=np.asarray(mesh.vertices), faces=np.asarray(mesh.faces))
    visual: Any = mesh.visual
    if visual.kind == "texture":
        image, factor = texture_of(visual), getattr(visual.material, "baseColorFactor", None)
        if image is not None and visual.uv is not None and len(visual.uv) == len(part.vertices):
            part.texture = _tinted(np.asarray(image.convert("RGBA")), factor)
            part.uv = np.nan_to_num(np.asarray(visual.uv, dtype=np.float64)[:, :2])
            return part
        stored = getattr(visual, "vertex_attributes", {}).get("color")
        if stored is not None and len(stored) == len(part.vertices):
            part.colours = _as_bytes(stored, linear_colours)
            part.colours = _tinted(part.colours[None], factor)[0]
            return part
        part.colours = np.tile(_plain(visual.material), (len(part.vertices), 1))
    elif visual.kind == "vertex":
        part.colours = _as_bytes(visual.vertex_colors, linear_colours)
    elif visual.kind == "face":
        colours = _as_bytes(visual.face_colors, linear_colours)
        part.vertices = part.vertices[part.faces.reshape(-1)]
        part.faces = np.arange(len(part.vertices)).reshape(-1, 3)
        part.colours = np.repeat(colours, 3, axis=0)
    return part


def _as_bytes(colours: Any, linear: bool) -> NDArray[np.uint8]:
    values = np.asarray(colours)
    scale = 1.0 if np.issubdtype(values.dtype, np.floating) else float(np.iinfo(values.dtype).max)
    values = values.astype(np.float64) / scale
    rgba = np.ones((len(values), 4))
    rgba[:, : values.shape[1]] = values[:, :4]
    if linear:
        rgba[:, :3] = np.clip(rgba[:, :3], 0, 1) ** (1 / 2.2)
    return np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


def _tinted(pixels: NDArray[np.uint8], factor: Any) -> NDArray[np.uint8]:
    """Multiply sRGB pixels (H, W, 4) by glTF's linear colour factor (trimesh keeps it as 0..255)."""
    if factor is None or (np.asarray(factor).reshape(-1)[:3] == 255).all():
        return pixels
    table = (np.arange(256) / 255) ** 2.2
    tinted = pixels.copy()
    for channel, share in enumerate(np.asarray(factor, dtype=np.float64).reshape(-1)[:3] / 255):
        curve = np.rint(255 * np.clip(table * share, 0, 1) ** (1 / 2.2)).astype(np.uint8)
        tinted[..., channel] = curve[pixels[..., channel]]
    return tinted


def _plain(material: Any) -> NDArray[np.uint8]:
    """Colour of a material without texture, sRGBA."""
    factor = getattr(material, "baseColorFactor", None)
    if factor is not None:
        return _tinted(np.full((1, 1, 4), 255, np.uint8), factor)[0, 0]
    return neutral_diffuse(material, NEUTRAL)


def _bake(part: _Part) -> None:
    """Give every vertex the colour of its texel."""
    if part.texture is None or part.uv is None:
        return
    height, width = part.texture.shape[:2]
    at = part.uv - np.floor(part.uv)
    column = np.minimum((at[:, 0] * width).astype(int), width - 1)
    row = np.minimum(((1 - at[:, 1]) * height).astype(int), height - 1)
    part.colours, part.texture, part.uv = part.texture[row, column], None, None


def _atlas(parts: list[_Part]) -> tuple[list[_Part], NDArray[np.uint8], NDArray[Any]] | None:
    """Pack every part's texture or plain colour into one picture: parts, picture (H, W, 4), coordinates (V, 2).

    None when a part can be in no atlas: its colours change from vertex to vertex, or its texture repeats too often.
    """
    ready: list[_Part] = []
    for part in parts:
        if part.texture is None:
            colours = part.colours if part.colours is not None else np.tile(NEUTRAL, (len(part.vertices), 1))
            if not (colours == colours[0]).all():
                return None
            part = _Part(
                part.vertices, part.faces, np.full((len(part.vertices), 2), 0.5), np.tile(colours[0], (4, 4, 1))
            )
        unrolled = _unrolled(part)
        if unrolled is None:
            return None
        ready.append(unrolled)
    unique: dict[bytes, int] = {}
    pictures: list[NDArray[np.uint8]] = []
    which = []
    for part in ready:
        assert part.texture is not None
        key = str(part.texture.shape).encode() + part.texture.tobytes()
        if key not in unique:
            unique[key] = len(pictures)
            pictures.append(part.texture)
        which.append(unique[key])
    atlas, corners = _packed(pictures)
    height, width = atlas.shape[:2]
    uv = []
    for part, index in zip(ready, which, strict=True):
        assert part.uv is not None
        side = np.array(pictures[index].shape[1::-1])
        x, y = corners[index]
        # Texture coordinates count rows from the bottom, pictures from the top.
        inside = part.uv * side
        uv.append(np.stack([(x + inside[:, 0]) / width, 1 - (y + side[1] - inside[:, 1]) / height], axis=1))
    return ready, atlas, np.concatenate(uv)


def _unrolled(part: _Part) -> _Part | None:
    """The part with texture coordinates in [0, 1]: a texture that repeats is laid out as often as is needed."""
    assert part.uv is not None
    assert part.texture is not None
    texture = _limited(part.texture)
    if part.uv.min() >= -1e-4 and part.uv.max() <= 1 + 1e-4:
        return _Part(part.vertices, part.faces, np.clip(part.uv, 0, 1), texture)
    corner = part.faces.reshape(-1)
    uv = part.uv[corner].reshape(-1, 3, 2)
    uv = (uv - np.floor(uv.min(axis=1, keepdims=True) + 1e-6)).reshape(-1, 2)
    tiles = np.maximum(np.ceil(uv.max(axis=0) - 1e-4).astype(int), 1)
    if tiles.max() > MAX_TILES:
        return None
    texture = _limited(np.tile(texture, (tiles[1], tiles[0], 1)))
    return _Part(part.vertices[corner], np.arange(len(corner)).reshape(-1, 3), np.clip(uv / tiles, 0, 1), texture)


def _limited(texture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    factor = MAX_TEXTURE / max(texture.shape[:2])
    if factor >= 1:
        return texture
    size = [max(1, round(side * factor)) for side in texture.shape[1::-1]]
    return np.asarray(cv2.resize(texture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _packed(pictures: list[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Lay pictures out in shelves, tallest first; returns the sheet and each picture's corner (x, y) in it."""
    corners = [(0, 0)] * len(pictures)
    x = y = shelf = width = 0
    for index in sorted(range(len(pictures)), key=lambda i: -pictures[i].shape[0]):
        high, wide = (side + 2 * _PADDING for side in pictures[index].shape[:2])
        if x and x + wide > _ATLAS_WIDTH:
            x, y, shelf = 0, y + shelf, 0
        corners[index] = (x + _PADDING, y + _PADDING)
        x, shelf = x + wide, max(shelf, high)
        width = max(width, x)
    sheet = np.zeros((y + shelf, width, 4), np.uint8)
    for picture, (left, top) in zip(pictures, corners, strict=True):
        # Edges are drawn out so that filtering does not mix in the neighbours.
        bordered = np.pad(picture, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)), mode="edge")
        sheet[top - _PADDING :, left - _PADDING :][: bordered.shape[0], : bordered.shape[1]] = bordered
    return sheet, corners
