"""Mesh formats in XML: 3MF and COLLADA (DAE)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np

from ocdit_core.objects.parts import Material, ParsedFile, Part, corners_of, part_of, strip_triangles, with_emission
from ocdit_core.objects.sources import BESIDE_TEXTURE, MAX_FACES, Array, SourceFiles
from ocdit_core.objects.surfaces import linear_from_srgb, scaled_colours

Element = ElementTree.Element


def _parsed(data: bytes) -> Element:
    """Return the root of an XML text, names without their namespaces."""
    root = ElementTree.fromstring(data)
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1] if isinstance(element.tag, str) else ""
        for key in [key for key in element.attrib if "}" in key]:
            element.attrib[key.rsplit("}", 1)[-1]] = element.attrib.pop(key)
    return root


# 3MF: https://github.com/3MFConsortium/spec_core and spec_materials

_UNITS_3MF = {"micron": 1e-6, "millimeter": 1e-3, "centimeter": 0.01, "inch": 0.0254, "foot": 0.3048, "meter": 1.0}
_TILES = {"clamp": "clamp", "mirror": "mirror", "none": "clamp"}


@dataclass
class _Model3mf:
    """One .model file; by their ids: objects, groups of colours (N, 3), groups of texture coordinates (N, 2)."""

    root: Element
    objects: dict[str, Element] = field(default_factory=dict)
    colours: dict[str, Array] = field(default_factory=dict)
    textures: dict[str, tuple[Array, Material]] = field(default_factory=dict)


class _Package3mf:
    """The ZIP archive of a 3MF file."""

    def __init__(self, files: SourceFiles, data: bytes) -> None:
        self.files = files
        self.archive = zipfile.ZipFile(io.BytesIO(data))
        self.names = {f"/{name}".lower(): name for name in self.archive.namelist()}
        self.model = cache(self._model)

    def read(self, path: str) -> bytes:
        return self.archive.read(self.names[("/" + path.lstrip("/")).lower()])

    def main(self) -> str:
        for relation in _parsed(self.read("/_rels/.rels")):
            if relation.get("Type", "").endswith("/3dmodel"):
                return "/" + relation.get("Target", "").lstrip("/")
        raise ValueError("no 3D model in the package")

    def _model(self, path: str) -> _Model3mf:
        model = _Model3mf(_parsed(self.read(path)))
        resources = model.root.find("resources")
        kinds = {element.get("id", ""): element for element in (resources if resources is not None else [])}
        for number, element in kinds.items():
            if element.tag == "object":
                model.objects[number] = element
            elif element.tag in ("basematerials", "colorgroup"):
                key = "displaycolor" if element.tag == "basematerials" else "color"
                names = [item.get(key, "#A5A5A5").strip() for item in element]  # a neutral grey
                self.files.leave_out(
                    "the opacity of its colours", when=any(n[7:].upper() not in ("", "FF") for n in names)
                )
                model.colours[number] = np.array([_colour_3mf(name) for name in names]).reshape(-1, 3)
            elif element.tag == "texture2dgroup":
                image = kinds[element.get("texid", "")]
                uv = np.array([[item.get("u"), item.get("v")] for item in element], dtype=np.float64).reshape(-1, 2)
                pixels = self.files.decode(self.read(image.get("path", "")), image.get("path", ""))
                wrap = tuple(_TILES.get(image.get(f"tilestyle{axis}", ""), "repeat") for axis in "uv")
                model.textures[number] = (uv, Material(texture=pixels, wrap=(wrap[0], wrap[1])))
            elif element.tag == "compositematerials":
                base = model.colours[element.get("matid", "")]
                chosen = base[[int(word) for word in element.get("matindices", "").split()]]
                mixes = [np.array(item.get("values", "").split(), dtype=np.float64) for item in element]
                model.colours[number] = np.array([mix @ chosen[: len(mix)] / max(mix.sum(), 1e-9) for mix in mixes])
            elif element.tag == "multiproperties":
                layers = element.get("pids", "").split()
                known = [(i, model.colours[pid]) for i, pid in enumerate(layers) if pid in model.colours]
                if len(known) < len(layers):
                    self.files.leave_out("layers of properties other than colours")
                if known:
                    at, values = known[0]
                    rows = [[int(word) for word in item.get("pindices", "0").split()] for item in element]
                    model.colours[number] = np.array([values[row[at] if at < len(row) else 0] for row in rows])
            elif element.tag != "texture2d":
                self.files.leave_out(element.tag)
        return model

    def parts(self, path: str, number: str, transform: Array, depth: int = 0) -> Iterator[Part]:
        """Yield the parts of an object and its components, in the frame of what refers to it."""
        model = self.model(path)
        item = model.objects[number]
        if item.get("type") in ("support", "solidsupport"):
            self.files.leave_out("support structures")
            return
        if depth > 50:
            raise ValueError("components contain themselves")
        for component in item.findall("components/component"):
            inner = _transform_3mf(component.get("transform")) @ transform
            yield from self.parts(component.get("path", path), component.get("objectid", ""), inner, depth + 1)
        mesh = item.find("mesh")
        if mesh is not None:
            yield from self._mesh(model, item, mesh, transform)

    def _mesh(self, model: _Model3mf, item: Element, mesh: Element, transform: Array) -> Iterator[Part]:
        if mesh.find("beamlattice") is not None:
            self.files.leave_out("a beam lattice")
        points = np.array([[v.get(a) for a in "xyz"] for v in mesh.iterfind("vertices/vertex")], dtype=np.float64)
        points = points.reshape(-1, 3) @ transform[:3, :3] + transform[3, :3]
        groups: dict[str, tuple[list[list[int]], list[int]]] = {}
        for triangle in mesh.iterfind("triangles/triangle"):
            first = triangle.get("p1")
            group = triangle.get("pid", item.get("pid", "")) if first is not None or "pid" in item.attrib else ""
            fallback = first if first is not None else item.get("pindex", "0")
            polygons, indices = groups.setdefault(group, ([], []))
            polygons.append([int(triangle.get(key, "-1")) for key in ("v1", "v2", "v3")])
            indices += [int(triangle.get(key, fallback)) for key in ("p1", "p2", "p3")]
            if "paint_color" in triangle.attrib or "mmu_segmentation" in triangle.attrib:
                self.files.leave_out("colours painted in a slicer")
        for group, (polygons, indices) in groups.items():
            corner = np.array(indices)
            if group in model.textures:
                uv, material = model.textures[group]
                yield part_of(np.array(polygons), points, material, uv=(uv, corner))
            elif group in model.colours:
                yield part_of(np.array(polygons), points, Material(), colours=(model.colours[group], corner))
            else:
                if group:
                    reason = f"its property group {group} is missing or of an unknown kind; drawn in neutral grey"
                    self.files.warnings.append(reason)
                yield part_of(np.array(polygons), points, Material())


def read_3mf(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read a 3MF package: build items, components, base materials, colours, textures, units."""
    package = _Package3mf(files, data)
    main = package.main()
    root = package.model(main).root
    parts: list[Part] = []
    for item in root.iterfind("build/item"):
        transform = _transform_3mf(item.get("transform"))
        parts += package.parts(item.get("path", main), item.get("objectid", ""), transform)
        if sum(len(part.faces) for part in parts) > MAX_FACES:
            break
    unit = root.get("unit", "millimeter")
    if unit not in _UNITS_3MF:
        raise ValueError(f"unit {unit!r} is unknown")
    return ParsedFile(parts=parts, unit=_UNITS_3MF[unit])


def _colour_3mf(text: str) -> list[float]:
    return [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def _transform_3mf(text: str | None) -> Array:
    """Return (4, 4), for rows of coordinates on its left."""
    matrix = np.eye(4)
    if text:
        matrix[:, :3] = np.array(text.split(), dtype=np.float64).reshape(4, 3)
    return matrix


# COLLADA 1.4.1 and 1.5: https://www.khronos.org/collada/

# What a document may hold and is not drawn, by its element; "texture": if it holds one.
_UNDRAWN_DAE = {
    "animation": "animations (drawn at rest)", "lines": "lines", "linestrips": "lines", "points": "points",
    "ph": "holes in polygons (filled)", "skew": "<skew> transforms", "lookat": "<lookat> transforms",
    "spline": "splines", "brep": "<brep> geometry", "convex_mesh": "<convex_mesh> geometry", "bump": "bump maps",
    "normalmap": "normal maps", "specular texture": "specular maps", "reflective texture": "reflection maps",
    "ambient texture": "ambient maps", "shininess texture": "shininess maps",
}  # fmt: skip
_WRAPS = {"MIRROR": "mirror", "CLAMP": "clamp", "BORDER": "clamp", "NONE": "clamp"}


def read_dae(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read a COLLADA file, in its own axes: geometry, materials, skins in their pose, morphs."""
    document = _Dae(files, _parsed(data))
    root = document.root
    unit = root.find("asset/unit")
    stated = "" if unit is None else unit.get("meter", "")
    axis = (root.findtext("asset/up_axis") or "").strip()
    files.leave_out(f"its up axis {axis} (poses are in the file's own coordinates)", when=axis in ("X_UP", "Y_UP"))
    found = {item.tag for item in root.iter()}
    found |= {f"{item.tag} texture" for item in root.iter() if item.find("texture") is not None}
    files.leave_out(*(feature for tag, feature in _UNDRAWN_DAE.items() if tag in found))
    return ParsedFile(parts=document.scene(), unit=(float(stated.replace(",", ".")) if stated else None) or None)


def _floats(text: str | None) -> Array:
    """Return the numbers of a text; commas are decimal points, unless there are points too: then they separate."""
    text = text or ""
    if "," in text:
        text = text.replace(",", " " if "." in text else ".")
    return np.array(text.split(), dtype=np.float64)


def _integers(element: Element | None) -> Array:
    return np.array((element.text or "").split() if element is not None else [], dtype=np.int64)


def _names(source: Element) -> list[str]:
    return (source.findtext("IDREF_array") or source.findtext("Name_array") or "").split()


# Of each symbol of a material: the material, and the set of coordinates that each semantic stands for.
_Bound = dict[str, tuple[str, dict[str, str]]]


class _Dae:
    """A COLLADA document: what its references mean, and the parts of its scene."""

    def __init__(self, files: SourceFiles, root: Element) -> None:
        self.files, self.root = files, root
        self.ids = {element.get("id", ""): element for element in root.iter() if "id" in element.attrib}
        self.worlds: dict[str, Array] = {}
        self.material = cache(self._material)

    def _at(self, reference: str | None) -> Element:
        return self.ids[(reference or "").rsplit("#", 1)[-1]]

    def scene(self) -> list[Part]:
        """Return the parts of the scene; of the whole library where no scene is named."""
        named = self.root.find("scene/instance_visual_scene")
        scenes = [self._at(named.get("url"))] if named is not None else self.root.findall(".//visual_scene")[:1]
        total = len(self.root.findall(".//visual_scene"))
        self.files.leave_out(f"{total - 1} of its {total} scenes", when=total > 1)
        parts: list[Part] = []
        placed: list[tuple[Element, Array]] = []
        for scene in scenes:
            for node in scene.findall("node"):
                placed += self._nodes(node, np.eye(4), 0)
        for instance, world in placed:
            parts += self._instance(instance, world)
        if not scenes:
            for geometry in self.root.findall(".//geometry"):
                parts += self._geometry(geometry, {})
        return parts

    def _nodes(self, node: Element, parent: Array, depth: int) -> Iterator[tuple[Element, Array]]:
        """Yield what a node and those below it instantiate, with its transform (4, 4)."""
        if depth > 200:
            raise ValueError("nodes contain themselves")
        world = parent
        for child in node:
            if child.tag in ("matrix", "translate", "rotate", "scale", "lookat", "skew"):
                world = world @ self._transform(child)
        for key in ("id", "sid", "name"):
            self.worlds.setdefault(f"{key} {node.get(key)}", world)
        for child in node:
            if child.tag in ("instance_geometry", "instance_controller"):
                yield child, world
            elif child.tag == "node":
                yield from self._nodes(child, world, depth + 1)
            elif child.tag == "instance_node":
                yield from self._nodes(self._at(child.get("url")), world, depth + 1)

    def _transform(self, element: Element) -> Array:
        values, matrix = _floats(element.text), np.eye(4)
        if element.tag == "matrix":
            return values.reshape(4, 4)
        if element.tag == "translate":
            matrix[:3, 3] = values
        elif element.tag == "scale":
            matrix[:3, :3] = np.diag(values)
        elif element.tag == "rotate":
            axis = values[:3] / max(float(np.linalg.norm(values[:3])), 1e-12)
            matrix[:3, :3] = cv2.Rodrigues(np.radians(values[3]) * axis)[0]
        return matrix

    def _instance(self, instance: Element, world: Array) -> list[Part]:
        bound: _Bound = {}
        for material in instance.iterfind("bind_material/technique_common/instance_material"):
            sets = {item.get("semantic", ""): item.get("input_set", "0") for item in material}
            bound[material.get("symbol", "")] = material.get("target", ""), sets
        target = self._at(instance.get("url"))
        if target.tag == "geometry":
            return [part.moved(world) for part in self._geometry(target, bound)]
        parts, skinned = self._controller(target, bound)
        return parts if skinned else [part.moved(world) for part in parts]  # skins are in the scene's frame already

    # Geometry

    def _source(self, element: Element) -> Array:
        """Return a source's values, one row for each index."""
        numbers = _floats(element.findtext("float_array"))
        accessor = element.find("technique_common/accessor")
        stride = int(accessor.get("stride", "1")) if accessor is not None else 3
        offset = int(accessor.get("offset", "0")) if accessor is not None else 0
        return numbers[offset : offset + (len(numbers) - offset) // stride * stride].reshape(-1, stride)

    def _geometry(self, geometry: Element, bound: _Bound, moved: Any = None) -> list[Part]:
        """Return a geometry's parts; `moved` changes its positions (V, 3)."""
        parts = []
        for primitive in geometry.iterfind("mesh/*"):
            if primitive.tag in ("triangles", "polylist", "polygons", "tristrips", "trifans"):
                parts += self._primitive(primitive, bound, moved)
        return parts

    def _primitive(self, primitive: Element, bound: _Bound, moved: Any) -> list[Part]:
        inputs: list[tuple[str, int, str, Element]] = []
        for item in primitive.findall("input"):
            semantic, offset = item.get("semantic", ""), int(item.get("offset", "0"))
            source = self._at(item.get("source"))
            # <vertices> stands for its own inputs.
            for inner in source.findall("input") if semantic == "VERTEX" else [item]:
                values = self._at(inner.get("source"))
                inputs.append((inner.get("semantic", ""), offset, inner.get("set", "0"), values))
        width = 1 + max(offset for _, offset, _, _ in inputs)
        runs = [_integers(p).reshape(-1, width) for p in [*primitive.findall("p"), *primitive.findall("ph/p")]]
        index = np.concatenate(runs) if runs else np.zeros((0, width), np.int64)
        starts = np.cumsum([0, *map(len, runs)])
        if primitive.tag == "triangles":
            polygons: list[Any] = list(np.arange(len(index) // 3 * 3).reshape(-1, 3))
        elif primitive.tag == "polylist":
            ends = np.cumsum(_integers(primitive.find("vcount")))
            polygons = [np.arange(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        elif primitive.tag == "polygons":
            polygons = [np.arange(a, b) for a, b in pairwise(starts)]
        else:
            fan = primitive.tag == "trifans"
            polygons = [face for a, b in pairwise(starts) for face in strip_triangles(np.arange(a, b), fan=fan)]
        if not polygons:
            return []
        corner = index[corners_of(polygons)]
        splits = np.cumsum([len(polygon) for polygon in polygons])[:-1]
        _, at, _, source = next(item for item in inputs if item[0] == "POSITION")
        points = self._source(source)[:, :3]
        points = points if moved is None else moved(points)
        symbol = primitive.get("material", "")
        target, sets = bound.get(symbol, ("", {}))
        material, semantic = self.material(target or (f"#{symbol}" if symbol in self.ids else ""))
        uv = colours = None
        coordinates = [item for item in inputs if item[0] == "TEXCOORD"]
        self.files.leave_out("further sets of texture coordinates", when=len(coordinates) > 1)
        coordinates = [item for item in coordinates if item[2] == sets.get(semantic)] or coordinates
        stored = next((item for item in inputs if item[0] == "COLOR"), None)
        if material.texture is not None and coordinates:
            uv = (self._source(coordinates[0][3])[:, :2], corner[:, coordinates[0][1]])
            self.files.leave_out(BESIDE_TEXTURE, when=stored is not None)
        elif stored is not None:  # more exact than the material's one colour
            self.files.leave_out("a texture without coordinates", when=material.texture is not None)
            colours = (scaled_colours(self._source(stored[3])[:, :3]), corner[:, stored[1]])
            material = Material()
        return [part_of(np.split(corner[:, at], splits), points, material, uv=uv, colours=colours)]

    # Controllers

    def _controller(self, controller: Element, bound: _Bound, moved: Any = None) -> tuple[list[Part], bool]:
        """Return the parts of a skin or a morph, and whether they are in the scene's frame."""
        skin, morph = controller.find("skin"), controller.find("morph")
        element = skin if skin is not None else morph
        if element is None:
            return [], False
        base = self._at(element.get("source"))
        change = self._skinned(skin) if skin is not None else self._morphed(element, base)
        applied = change if moved is None else (lambda points: moved(change(points)))
        if base.tag == "controller":
            return self._controller(base, bound, applied)[0], skin is not None
        return self._geometry(base, bound, applied), skin is not None

    def _morphed(self, morph: Element, base: Element) -> Any:
        sources = {item.get("semantic"): self._at(item.get("source")) for item in morph.iterfind("targets/input")}
        names = _names(sources["MORPH_TARGET"])
        weights = _floats(sources["MORPH_WEIGHT"].findtext("float_array"))

        def positions(geometry: Element) -> Array:
            source = next(i for i in geometry.iterfind("mesh/vertices/input") if i.get("semantic") == "POSITION")
            return self._source(self._at(source.get("source")))[:, :3]

        first = 0 if morph.get("method") == "RELATIVE" else positions(base)
        deltas = [w * (positions(self._at(name)) - first) for name, w in zip(names, weights, strict=False)]
        return lambda points: points + sum(deltas)

    def _skinned(self, skin: Element) -> Any:
        shape = _floats(skin.findtext("bind_shape_matrix"))
        shape = shape.reshape(4, 4) if shape.size == 16 else np.eye(4)
        joints = {item.get("semantic"): self._at(item.get("source")) for item in skin.iterfind("joints/input")}
        names = _names(joints["JOINT"])
        inverse = self._source(joints["INV_BIND_MATRIX"]).reshape(-1, 4, 4)
        matrices = []
        for name, bind in zip(names, inverse, strict=True):
            keys = (f"{kind} {name}" for kind in ("sid", "id", "name"))
            world = next((self.worlds[key] for key in keys if key in self.worlds), None)
            if world is None:
                self.files.warnings.append(f"its skeleton lacks the joint {name}; drawn where it was bound")
                world = np.linalg.inv(bind)
            matrices.append(world @ bind @ shape)
        stored = skin.find("vertex_weights")
        if stored is None:
            raise ValueError("a skin without weights")
        items = {item.get("semantic"): item for item in stored.findall("input")}
        inputs = {name: (int(item.get("offset", "0")), item.get("source")) for name, item in items.items()}
        counts = _integers(stored.find("vcount"))
        rows = _integers(stored.find("v")).reshape(-1, 1 + max(offset for offset, _ in inputs.values()))
        weights = self._source(self._at(inputs["WEIGHT"][1])).reshape(-1)[rows[:, inputs["WEIGHT"][0]]]
        owner = np.repeat(np.arange(len(counts)), counts)
        joint = rows[:, inputs["JOINT"][0]]
        table = np.stack([*matrices, shape])  # -1 names the bind shape itself
        total = np.bincount(owner, weights, len(counts))
        blended = np.zeros((len(counts), 4, 4))
        np.add.at(blended, owner, (weights / np.maximum(total[owner], 1e-12))[:, None, None] * table[joint])
        blended[total <= 0] = shape
        return lambda points: np.einsum("vij,vj->vi", blended[:, :3, :3], points) + blended[:, :3, 3]

    # Materials

    def _material(self, target: str) -> tuple[Material, str]:
        """Return a material and the name of its texture's coordinates."""
        material = self.ids.get(target.rsplit("#", 1)[-1])
        named = material.find("instance_effect") if material is not None else None
        if named is not None:
            return self._effect(self._at(named.get("url")))
        if target:
            self.files.warnings.append(f"its material {target} is missing; drawn in neutral grey")
        return Material(), ""

    def _effect(self, effect: Element) -> tuple[Material, str]:
        params = {item.get("sid", ""): item for item in effect.iter("newparam")}
        shader = next((item for item in effect.iter() if item.tag in ("phong", "lambert", "blinn", "constant")), None)
        if shader is None:
            return Material(), ""
        glow = shader.find("emission")
        # A <constant> has no diffuse colour: what it emits is all that there is.
        diffuse = shader.find("diffuse") if shader.tag != "constant" else glow
        texture, wrap, semantic = self._sampled(diffuse, params)
        colour = self._colour(diffuse, params)
        material = Material(colour=None if texture is not None else colour, texture=texture, wrap=wrap)
        emission = self._colour(glow, params) if shader.tag != "constant" else None
        if emission is not None and emission[:3].any():
            material = with_emission(material, linear_from_srgb(emission[:3]))
        glowing, glow_wrap, glow_semantic = self._sampled(glow, params)
        if glowing is not None and texture is None and shader.tag != "constant":
            material, semantic = with_emission(replace(material, wrap=glow_wrap), np.ones(3), glowing), glow_semantic
        see_through = shader.find("transparent")
        if see_through is not None and see_through.find("texture") is not None and texture is not None:
            material = replace(material, alpha="mask")
        elif self._opacity(shader, params) < 0.99:
            self.files.leave_out("transparency")
        return material, semantic

    def _opacity(self, shader: Element, params: dict[str, Element]) -> float:
        amount = shader.find("transparency/float")
        factor = float((amount.text or "1").replace(",", ".")) if amount is not None else 1.0
        stated = shader.find("transparent")
        colour = self._colour(stated, params)
        if stated is None or colour is None:
            return factor if amount is not None and factor > 0 else 1.0
        if stated.get("opaque") == "RGB_ZERO":
            return 1 - factor * float(colour[:3].mean())
        return factor * float(colour[3]) if factor > 0 else 1.0

    def _colour(self, channel: Element | None, params: dict[str, Element]) -> Array | None:
        if channel is None:
            return None
        stored = channel.find("color")
        if stored is None and channel.find("param") is not None:
            param = params.get(channel.find("param").get("ref", ""))  # type: ignore[union-attr]
            stored = next((i for i in param or () if i.tag.startswith("float") or i.tag == "color"), None)
        if stored is None:
            return None
        values = _floats(stored.text)
        return np.array([*values[:3], *values[3:4], 1.0])[:4] if len(values) >= 3 else None

    def _sampled(self, channel: Element | None, params: dict[str, Element]) -> tuple[Any, tuple[str, str], str]:
        """Return a channel's texture, how it is continued, and the name of its coordinates."""
        wrap = ("repeat", "repeat")
        stored = channel.find("texture") if channel is not None else None
        if stored is None:
            return None, wrap, ""
        name = stored.get("texture", "")
        if name in params and (sampler := params[name].find("sampler2D")) is not None:
            modes = [_WRAPS.get(sampler.findtext(f"wrap_{axis}", ""), "repeat") for axis in "st"]
            wrap = (modes[0], modes[1])
            named = sampler.find("instance_image")
            name = named.get("url", "").lstrip("#") if named is not None else sampler.findtext("source", "").strip()
        if name in params and (surface := params[name].find("surface")) is not None:
            name = (surface.findtext("init_from") or surface.findtext("init_from/ref") or "").strip()
        image = self.ids.get(name)
        file = name if image is None else (image.findtext("init_from/ref") or image.findtext("init_from") or "").strip()
        pixels = self.files.texture(file) if file else None
        return pixels, wrap, stored.get("texcoord", "")
