"""Parts of a scene, each of one material, and how they become one mesh with one texture and colours.

All colours here are sRGB. A surface's colour is texture x material colour x vertex colour, multiplied as linear light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdit_core.images import shrunk
from ocdit_core.objects.sources import Array, Pixels
from ocdit_core.objects.surfaces import NEUTRAL_GREY, linear_from_srgb, srgb_from_linear

if TYPE_CHECKING:
    import trimesh

MAX_TILES = 8  # repeats of a texture across one face in an atlas; faces with more are subdivided
MAX_TEXTURE = 1024  # side in pixels of one part's texture in an atlas; views are 128 pixels wide
BLEND_CUTOFF = 0.5  # what is blended with at least this opacity is drawn opaque, the rest of its texture as a hole
FAINT = 0.25  # a blended surface nowhere more opaque than this is left out where the object has other surfaces
_PADDING = 4
_ATLAS_WIDTH = 4096
_MAX_SPLIT_FACES = 100_000
_WHITE = np.full((4, 4, 4), 255, np.uint8)
_GREY = np.array([NEUTRAL_GREY / 255] * 3 + [1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """How one part looks; None: the file does not say.

    Attributes:
        colour: (3,) or (4,) sRGBA factor in 0..1.
        texture: (H, W, 4) uint8 sRGBA, first row at the top.
        wrap: what lies beyond the texture's border, for u and v: "repeat", "mirror" or "clamp".
        alpha: "opaque"; "mask": holes where the opacity is below `cutoff`; or "blend": semi-transparent.
        cutoff: opacity below which a masked surface is a hole.
        metallic: fraction of bare metal, 0..1.
        roughness: 0 polished .. 1 matt.
    """

    colour: ArrayLike | None = None
    texture: Pixels | None = None
    wrap: tuple[str, str] = ("repeat", "repeat")
    alpha: str = "opaque"
    cutoff: float = 0.5
    metallic: float | None = None
    roughness: float | None = None


@dataclass(kw_only=True, eq=False)
class Part:
    """Triangles of one material, in the scene's frame and the file's unit.

    Attributes:
        vertices: (V, 3).
        faces: (F, 3) indices.
        material: its look.
        uv: (V, 2) texture coordinates, v upwards.
        colours: (V, 3) or (V, 4) sRGBA in 0..1, multiplied with the material.
    """

    vertices: Array
    faces: Array
    material: Material = field(default_factory=Material)
    uv: Array | None = None
    colours: Array | None = None

    def moved(self, transform: Array) -> Part:
        """Return the part moved by a transform (4, 4); faces that this mirrors are turned round."""
        vertices = self.vertices @ transform[:3, :3].T + transform[:3, 3]
        mirrored = np.linalg.det(transform[:3, :3]) < 0
        return replace(self, vertices=vertices, faces=self.faces[:, ::-1] if mirrored else self.faces)


@dataclass(kw_only=True)
class ParsedFile:
    """The surfaces of a file, and the metres in its unit of length, where the file or its format states it."""

    parts: list[Part]
    unit: float | None = None


def rgba(colours: ArrayLike, *, linear: bool = False) -> NDArray[np.float32]:
    """Return colours (N, 3 or 4), floats in 0..1 or integers up to their type's maximum, as (N, 4) sRGBA in 0..1.

    `linear`: whether they are linear light, as glTF's are.
    """
    values = np.asarray(colours)
    scale = np.iinfo(values.dtype).max if np.issubdtype(values.dtype, np.integer) else 1
    out = np.ones((len(values), 4), np.float32)
    out[:, : values.shape[1]] = np.nan_to_num(np.clip(values[:, :4] / np.float32(scale), 0, 1))
    if linear:
        out[:, :3] = srgb_from_linear(out[:, :3])
    return out


def solid(texture: Pixels) -> Pixels:
    """Return a texture (H, W, 4) without holes."""
    return np.dstack([texture[..., :3], np.full(texture.shape[:2], 255, np.uint8)])


def with_emission(material: Material, emission: ArrayLike, texture: Pixels | None = None) -> Material:
    """Return a material whose colour includes the light that it emits: the renderer has no emission of its own.

    Args:
        material: its texture, if any, shares its coordinates with the emissive one.
        emission: (3,) linear light.
        texture: emissive texture, multiplied with `emission`.
    """
    colour = np.ones(4, np.float32) if material.colour is None else rgba([np.ravel(material.colour)])[0]
    light = np.asarray(emission, dtype=np.float32)
    if texture is None and material.texture is None:
        shown = linear_from_srgb(colour[:3]) + light
        return replace(material, colour=np.array([*srgb_from_linear(np.clip(shown, 0, 1)), colour[3]]))
    side = 2 * MAX_TEXTURE
    base = shrunk(_WHITE if material.texture is None else material.texture, side)
    glow = shrunk(_WHITE if texture is None else texture, side)
    size = (glow if texture is not None and base.shape[0] < glow.shape[0] else base).shape[1::-1]
    base, glow = (np.asarray(cv2.resize(i, size, interpolation=cv2.INTER_AREA), np.uint8) for i in (base, glow))
    table = linear_from_srgb(np.arange(256) / 255)
    total = table[base[..., :3]] * linear_from_srgb(colour[:3]) + table[glow[..., :3]] * light
    shown = np.rint(255 * srgb_from_linear(np.clip(total, 0, 1))).astype(np.uint8)
    return replace(material, colour=[1, 1, 1, colour[3]], texture=np.dstack([shown, base[..., 3]]))


def triangulated(polygons: Sequence[Any] | Array, points: Array) -> Array:
    """Cut polygons, corners of each as indices of points (V, 3), into triangles; concave ones by their ears.

    Returns numbers (F, 3) of corners, counted through all the polygons; those of fewer than three are left out.
    """
    sizes = np.array([len(polygon) for polygon in polygons], np.int64)
    starts = np.cumsum(sizes) - sizes
    triangles = []
    for size in np.unique(sizes[sizes >= 3]):
        which = np.flatnonzero(sizes == size)
        corners = starts[which, None] + np.arange(size)
        convex = np.ones(len(which), bool)
        if size > 3:
            place = np.asarray(points)[np.array([polygons[int(index)] for index in which], np.int64)]
            turn = np.cross(place - np.roll(place, 1, axis=1), np.roll(place, -1, axis=1) - place)
            normal = np.cross(place, np.roll(place, -1, axis=1)).sum(axis=1, keepdims=True)
            convex = ((turn * normal).sum(axis=2) >= -1e-9 * (normal**2).sum(axis=2)).all(axis=1)
            for index in np.flatnonzero(~convex):
                triangles.append(corners[index][_ears(place[index], normal[index, 0])])
        fan = corners[convex]
        for number in range(1, size - 1):
            triangles.append(fan[:, [0, number, number + 1]])
    return np.concatenate([np.zeros((0, 3), np.int64), *triangles])


def strip_triangles(indices: ArrayLike, *, fan: bool = False) -> Array:
    """Return the triangles (F, 3) of a strip (N,), every second one turned round; or those of a fan."""
    row = np.asarray(indices)
    if len(row) < 3:
        return np.zeros((0, 3), np.int64)
    if fan:
        return np.stack([np.full(len(row) - 2, row[0]), row[1:-1], row[2:]], axis=1)
    triangles = np.stack([row[:-2], row[1:-1], row[2:]], axis=1)
    triangles[1::2] = triangles[1::2, [1, 0, 2]]
    return triangles


def _ears(points: Array, normal: Array) -> Array:
    """Return triangles (n - 2, 3) of a simple polygon (n, 3), by clipping ears; a fan where none is found."""
    axes = np.argsort(np.abs(normal))[:2]
    flat = points[:, np.sort(axes)]
    area = float((flat[:, 0] * np.roll(flat[:, 1], -1) - np.roll(flat[:, 0], -1) * flat[:, 1]).sum())
    if area < 0:
        flat = flat * [-1, 1]
    left = list(range(len(flat)))
    triangles = []
    while len(left) > 3:
        for at in range(len(left)):
            ear = [left[at - 1], left[at], left[(at + 1) % len(left)]]
            a, b, c = flat[ear]
            if _turn(a, b, c) <= 0:
                continue
            others = flat[[index for index in left if index not in ear]]
            # The bridge to a hole passes the same points twice: they are not inside.
            others = others[(others[:, None] != flat[ear]).any(axis=2).all(axis=1)]
            inside = (_turn(a, b, others) >= 0) & (_turn(b, c, others) >= 0) & (_turn(c, a, others) >= 0)
            if not inside.any():
                break
        else:
            at, ear = 0, [left[-1], left[0], left[1]]
        triangles.append(ear)
        del left[at]
    return np.array([*triangles, left])


def _turn(a: Array, b: Array, c: Array) -> Array:
    return np.asarray((b[0] - a[0]) * (c[..., 1] - a[1]) - (b[1] - a[1]) * (c[..., 0] - a[0]))


def corners_of(polygons: Sequence[Any] | Array) -> Array:
    """Return the indices (C,) of all the corners of polygons, one after the other."""
    if isinstance(polygons, np.ndarray):
        return polygons.reshape(-1)
    return np.fromiter(chain.from_iterable(polygons), np.int64)


def part_of(
    polygons: Sequence[Any] | Array,
    points: Array,
    material: Material,
    *,
    uv: tuple[Array, Array] | None = None,
    colours: tuple[Array, Array] | None = None,
) -> Part:
    """Return polygons as a part; corners that share position, coordinates and colour become one vertex.

    Args:
        polygons: corners of each, as indices of `points`.
        points: (V, 3).
        material: material of all polygons.
        uv: texture coordinates (N, 2), and the index of each corner (C,), counted through all the polygons.
        colours: sRGB colours (N, 3) or (N, 4) in 0..1, and the index of each corner (C,).

    Raises:
        ValueError: an index is out of range.
    """
    flat = corners_of(polygons)
    columns: list[tuple[Array, Array, str]] = [(np.asarray(points), flat, "vertex")]
    columns += [(*uv, "coordinate")] if uv is not None else []
    columns += [(*colours, "colour")] if colours is not None else []
    key = np.zeros(len(flat), np.int64)
    for values, index, kind in columns:
        wrong = (index < 0) | (index >= len(values))
        if wrong.any():
            raise ValueError(f"a face names {kind} {index[wrong][0]} of {len(values)}, counted from 0")
        key = key * len(values) + index
    triangles = triangulated(polygons, points)
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    picked = [values[index[first]] for values, index, _ in columns]
    return Part(
        vertices=picked[0],
        faces=inverse.reshape(-1)[triangles],
        material=material,
        uv=picked[1] if uv is not None else None,
        colours=picked[-1] if colours is not None else None,
    )


def join(parts: list[Part]) -> tuple[trimesh.Trimesh, list[str]]:
    """Join the parts of a scene, keeping what their surfaces look like.

    Returns:
        One mesh: different textures share an atlas, colours of vertices beside a texture are in its
        `vertex_attributes["colour"]`, (V, 4) uint8 sRGBA, and its metadata hold "metallic" and "roughness" where parts
        state them, means over the surface. And what is not drawn as the file means it, in a few words each.
    """
    import trimesh
    from PIL import Image
    from trimesh.visual import ColorVisuals, TextureVisuals

    parts, undrawn = _without_faint(parts)
    if any(part.material.texture is not None and part.uv is None for part in parts):
        undrawn.append("a texture without coordinates")
    metadata = _surface_factors(parts)
    parts = [_resolved(part) for part in parts]
    texture, uv = None, None
    if any(part.material.texture is not None for part in parts):
        parts, texture, uv = _textured(parts)
    colours = None
    if any(part.colours is not None for part in parts):
        # What states no colour is neutral grey, or as its texture is.
        plain = np.ones(4) if texture is not None else _GREY
        shown = [p.colours if p.colours is not None else np.tile(plain, (len(p.vertices), 1)) for p in parts]
        colours = np.rint(np.concatenate(shown) * 255).astype(np.uint8)
    visual: Any = None
    if texture is not None:
        holes = bool(texture[..., 3].min() < 255)
        material = trimesh.visual.material.PBRMaterial(
            baseColorTexture=Image.fromarray(texture if holes else np.ascontiguousarray(texture[..., :3])),
            alphaMode="MASK" if holes else None,
            alphaCutoff=0.5 if holes else None,
        )
        visual = TextureVisuals(uv=uv, material=material)
    elif colours is not None:
        visual = ColorVisuals(vertex_colors=colours)
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    mesh = trimesh.Trimesh(
        vertices=np.concatenate([part.vertices for part in parts]),
        faces=np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)]),
        visual=visual,
        process=False,
        metadata=metadata,
    )
    if texture is not None and colours is not None and (colours[:, :3] != 255).any():
        mesh.vertex_attributes["colour"] = colours
    return mesh, undrawn


def _opacity(part: Part) -> Array:
    """Return the opacities in 0..1 of a part's texels (H, W), or of its vertices (V,), factor included."""
    factor = 1.0 if part.material.colour is None else float((*np.ravel(part.material.colour), 1.0)[3])
    vertices = np.ones(len(part.vertices)) if part.colours is None else rgba(part.colours)[:, 3]
    if part.material.texture is None or part.uv is None:
        return vertices * factor
    # Beside a texture, colours of vertices dim as a whole: a shader would need both at every pixel.
    return part.material.texture[..., 3] * np.float32(factor * float(vertices.mean()) / 255)


def _without_faint(parts: list[Part]) -> tuple[list[Part], list[str]]:
    """Leave out what is blended and nearly transparent, unless nothing else remains; name what is drawn otherwise."""
    blended = [part.material.alpha == "blend" for part in parts]
    strongest = [float(_opacity(part).max()) if blend else 1.0 for part, blend in zip(parts, blended, strict=True)]
    faint = [opacity < FAINT for opacity in strongest]
    undrawn = []
    if any(faint) and not all(faint):
        surfaces = f"nearly transparent surface{'s' if sum(faint) > 1 else ''}"
        undrawn.append(f"{sum(faint)} {surfaces} (opacity below {FAINT:g})")
        parts = [part for part, out in zip(parts, faint, strict=True) if not out]
        strongest = [opacity for opacity, out in zip(strongest, faint, strict=True) if not out]
    if any(opacity < 0.95 for opacity in strongest):
        undrawn.append("semi-transparency (drawn opaque)")
    return parts, undrawn


def _resolved(part: Part) -> Part:
    """Return the part with its factor and opacity worked into texture and colours: texels are solid or holes."""
    material, colours, faces = part.material, part.colours, part.faces
    texture = material.texture if part.uv is not None else None
    if material.alpha != "opaque":
        opacity = _opacity(part)
        cutoff = material.cutoff if material.alpha == "mask" else min(BLEND_CUTOFF, float(opacity.max()))
        filled = opacity >= cutoff
        if texture is not None:
            texture = np.dstack([texture[..., :3], np.where(filled, np.uint8(255), np.uint8(0))])
        else:
            kept = faces[opacity[faces].mean(axis=1) >= cutoff]
            faces = faces if material.alpha == "blend" and not len(kept) else kept
    elif texture is not None and texture[..., 3].min() < 255:
        texture = solid(texture)
    if colours is not None:
        colours = rgba(colours)
    if material.colour is not None:
        factor = rgba([np.ravel(material.colour)])[0]
        if texture is not None:
            texture = _tinted(texture, factor)
        else:
            light = np.ones((1, 3)) if colours is None else linear_from_srgb(colours[:, :3])
            shown = np.broadcast_to(srgb_from_linear(light * linear_from_srgb(factor[:3])), (len(part.vertices), 3))
            colours = np.pad(shown, ((0, 0), (0, 1)))
    if colours is not None:
        colours[:, 3] = 1
    uv = None if texture is None or part.uv is None else np.nan_to_num(np.asarray(part.uv, dtype=np.float64))
    return replace(part, faces=faces, material=replace(material, texture=texture), uv=uv, colours=colours)


def _tinted(pixels: Pixels, factor: Array) -> Pixels:
    """Multiply sRGB pixels (H, W, 4) by an sRGB colour."""
    if (factor[:3] == 1).all():
        return pixels
    table = linear_from_srgb(np.arange(256) / 255)[:, None] * linear_from_srgb(factor[:3])
    curves = np.rint(255 * srgb_from_linear(np.clip(table, 0, 1))).astype(np.uint8)
    channels = [curves[pixels[..., channel], channel] for channel in range(3)]
    return np.dstack([*channels, pixels[..., 3]])


def _surface_factors(parts: list[Part]) -> dict[str, float]:
    """Return the means of "metallic" and "roughness" over the surface of those parts that state them.

    glTF's default, an entirely metallic surface, is hardly ever meant where a file says nothing.
    """
    import trimesh

    means = {}
    areas = [float(trimesh.triangles.area(part.vertices[part.faces]).sum()) for part in parts]
    for key in ("metallic", "roughness"):
        stated = [(getattr(part.material, key), area) for part, area in zip(parts, areas, strict=True)]
        known = [(value, area) for value, area in stated if value is not None]
        if total := sum(area for _, area in known):
            means[key] = float(np.clip(sum(value * area for value, area in known) / total, 0, 1))
    return means


def _textured(parts: list[Part]) -> tuple[list[Part], Pixels, Array]:
    """Return parts, one texture (H, W, 4) for all of them, and texture coordinates (V, 2)."""
    first = next(part for part in parts if part.material.texture is not None).material
    assert first.texture is not None
    same = [p.material.texture is not None and np.array_equal(p.material.texture, first.texture) for p in parts]
    if all(same) and all(p.material.wrap == ("repeat", "repeat") or _inside(p) for p in parts):
        return parts, first.texture, np.concatenate([part.uv for part in parts if part.uv is not None])
    ready = []
    for part in parts:
        if part.material.texture is None:
            count = len(part.vertices)
            part = replace(
                part,
                material=replace(part.material, texture=_WHITE),
                uv=np.full((count, 2), 0.5),
                colours=np.tile(_GREY, (count, 1)) if part.colours is None else part.colours,
            )
        ready.append(_unrolled(part))
    unique: dict[tuple[Any, ...], Pixels] = {}
    keys = []
    for part in ready:
        texture = part.material.texture
        assert texture is not None
        keys.append((texture.shape, texture.tobytes()))
        unique[keys[-1]] = texture
    atlas, corners = _packed(unique)
    height, width = atlas.shape[:2]
    coordinates = []
    for part, key in zip(ready, keys, strict=True):
        side = np.array(unique[key].shape[1::-1])
        x, y = corners[key]
        # Texture coordinates count rows from the bottom, images from the top.
        inside = part.uv * side
        coordinates.append(np.stack([(x + inside[:, 0]) / width, 1 - (y + side[1] - inside[:, 1]) / height], axis=1))
    return ready, atlas, np.concatenate(coordinates)


def _inside(part: Part) -> bool:
    return part.uv is not None and bool(part.uv.min() >= -1e-4 and part.uv.max() <= 1 + 1e-4)


def _unrolled(part: Part) -> Part:
    """Return the part with coordinates in [0, 1]: its texture is laid out as often as its faces repeat it."""
    texture, uv = part.material.texture, part.uv
    assert texture is not None
    assert uv is not None
    if _inside(part):
        material = replace(part.material, texture=shrunk(texture, MAX_TEXTURE))
        return replace(part, material=material, uv=np.clip(uv, 0, 1))
    # Every face gets its own corners: position, coordinates, colour.
    colours = np.ones((len(uv), 4)) if part.colours is None else part.colours
    corners = np.concatenate([part.vertices, uv, colours], axis=1)[part.faces]
    corners = _subdivided(corners)
    at = corners[..., 3:5]
    for axis, mode in enumerate(part.material.wrap):
        period = {"repeat": 1, "mirror": 2}.get(mode)
        if period is not None:
            at[..., axis] -= period * np.floor(at[..., axis].min(axis=1, keepdims=True) / period + 1e-6)
    at[...] = np.clip(at, -MAX_TILES, MAX_TILES + 2)
    low = np.minimum(np.floor(at.min(axis=(0, 1)) + 1e-4), 0).astype(int)
    tiles = np.maximum(np.ceil(at.max(axis=(0, 1)) - 1e-4).astype(int) - low, 1)
    texture = shrunk(texture, max(2 * MAX_TEXTURE // int(tiles.max()), 16))
    columns, rows = (
        _wrapped(np.arange(low[axis] * n, (low[axis] + tiles[axis]) * n), n, part.material.wrap[axis])
        for axis, n in enumerate(texture.shape[1::-1])
    )
    laid_out = np.ascontiguousarray(texture[::-1][rows][:, columns][::-1])
    flat = corners.reshape(-1, 9)
    return replace(
        part,
        vertices=flat[:, :3],
        faces=np.arange(len(flat)).reshape(-1, 3),
        material=replace(part.material, texture=shrunk(laid_out, 2 * MAX_TEXTURE)),
        uv=np.clip((flat[:, 3:5] - low) / tiles, 0, 1),
        colours=None if part.colours is None else flat[:, 5:],
    )


def _subdivided(corners: Array) -> Array:
    """Cut faces (F, 3, 9) in four until none spans more than MAX_TILES repeats, or there are too many."""
    while True:
        wide = np.ptp(corners[..., 3:5], axis=1).max(axis=1) > MAX_TILES
        if not wide.any() or len(corners) + 3 * int(wide.sum()) > _MAX_SPLIT_FACES:
            return corners
        a, b, c = np.moveaxis(corners[wide], 1, 0)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        quarters = [np.stack(face, axis=1) for face in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        corners = np.concatenate([corners[~wide], *quarters])


def _wrapped(index: Array, n: int, mode: str) -> Array:
    """Return which of n texels lies at each index."""
    if mode == "clamp":
        return index.clip(0, n - 1)
    if mode == "mirror":
        index = index % (2 * n)
        return np.minimum(index, 2 * n - 1 - index)
    return index % n


def _packed(images: dict[Any, Pixels]) -> tuple[Pixels, dict[Any, tuple[int, int]]]:
    """Lay images out in shelves, tallest first; return the atlas and each image's corner (x, y) in it."""
    corners: dict[Any, tuple[int, int]] = {}
    x = y = shelf = width = 0
    for key in sorted(images, key=lambda key: -images[key].shape[0]):
        high, wide = (side + 2 * _PADDING for side in images[key].shape[:2])
        if x and x + wide > _ATLAS_WIDTH:
            x, y, shelf = 0, y + shelf, 0
        corners[key] = (x + _PADDING, y + _PADDING)
        x, shelf = x + wide, max(shelf, high)
        width = max(width, x)
    sheet = np.full((y + shelf, width, 4), 255, np.uint8)
    for key, (left, top) in corners.items():
        # Edges are drawn out so that filtering does not mix in the neighbours.
        bordered = np.pad(images[key], ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)), mode="edge")
        sheet[top - _PADDING :, left - _PADDING :][: bordered.shape[0], : bordered.shape[1]] = bordered
    return sheet, corners
