"""glTF 2.0 and GLB by the specification, from accessors to triangles.

https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html; numbers in brackets are its sections.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.parts import Material, ParsedFile, Part, rgba, solid, strip_triangles, with_emission
from ocdit_core.objects.sources import MAX_FACES, Array, Pixels, SourceFiles
from ocdit_core.objects.surfaces import linear_from_srgb, srgb_from_linear

_TYPES = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_FILTERS = {"OCTAHEDRAL": "oct", "QUATERNION": "quat", "EXPONENTIAL": "exp"}
_WRAPS = {33071: "clamp", 33648: "mirror"}
_IMAGE_EXTENSIONS = ("EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds", "KHR_texture_basisu")
# Extensions that are read, or that say nothing of what a surface looks like.
_KNOWN = (
    *_IMAGE_EXTENSIONS, "KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression",
    "KHR_mesh_quantization", "KHR_texture_transform", "EXT_mesh_gpu_instancing", "KHR_node_visibility", "KHR_lights_",
    "EXT_lights_", "KHR_xmp", "KHR_materials_",
)  # fmt: skip
# Extensions of materials that are not drawn, and the value without which they have no effect; the base colour is.
_UNDRAWN_MATERIALS = {
    "anisotropy": "anisotropyStrength", "clearcoat": "clearcoatFactor", "dispersion": "dispersion",
    "diffuse_transmission": "diffuseTransmissionFactor", "iridescence": "iridescenceFactor",
    "sheen": "sheenColorFactor", "transmission": "transmissionFactor", "volume": "thicknessFactor",
}  # fmt: skip
_DRAWN_MATERIALS = ("emissive_strength", "pbrSpecularGlossiness", "unlit")
# Normals are computed from the faces; tangents serve normal maps alone.
_DRAWN_ATTRIBUTES = ("POSITION", "NORMAL", "TANGENT", "COLOR_0", "JOINTS_", "WEIGHTS_")


@dataclass(frozen=True)
class _Look:
    """A material, and the texture coordinates that it is drawn with: their set, and a transform (2, 3)."""

    material: Material
    texcoord: int = 0
    transform: Array = field(default_factory=lambda: np.eye(2, 3))


def read_gltf(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read a .glb or .gltf file.

    Raises:
        MeshError: truncated, of version 1, or it requires an extension or a package that is not there.
    """
    document = _Document(files, data)
    stored = document.json
    scenes = stored.get("scenes", [])
    if scenes:
        roots = scenes[stored.get("scene", 0)].get("nodes", [])
        files.leave_out(f"{len(scenes) - 1} of its {len(scenes)} scenes", when=len(scenes) > 1)
        shown = document.parents.keys() | {index for scene in scenes for index in scene.get("nodes", [])}
        files.leave_out("nodes outside of its scenes", when=len(shown) < len(document.nodes))
    else:  # [5.25] any part of the file may be drawn then
        roots = [index for index in range(len(document.nodes)) if index not in document.parents]
    moving = any(animation.get("channels") for animation in stored.get("animations", []))
    files.leave_out("animations (drawn at rest)", when=moving)
    unused = len(stored.get("meshes", [])) - len({node["mesh"] for node in document.nodes if "mesh" in node})
    files.leave_out(f"{unused} meshes that no node has", when=unused > 0)
    used = stored.get("extensionsUsed", [])
    files.leave_out("material variants (the default is drawn)", when="KHR_materials_variants" in used)
    files.leave_out(*(f"the extension {name}" for name in used if not name.startswith(_KNOWN)))
    parts: list[Part] = []
    faces, seen = 0, set[int]()
    pending = list(reversed(roots))
    while pending and faces <= MAX_FACES:  # the caller refuses more
        index = pending.pop()
        node = document.nodes[index]
        if index in seen or not _extension(node, "KHR_node_visibility").get("visible", True):
            continue
        seen.add(index)
        if "mesh" in node:
            found = list(document.instances(index, node))
            parts, faces = parts + found, faces + sum(len(part.faces) for part in found)
        pending += reversed(node.get("children", []))
    return ParsedFile(parts=parts, unit=1.0)


def _extension(item: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(item.get("extensions", {}).get(name, {}))


class _Document:
    """The JSON of a file and what its numbers refer to."""

    def __init__(self, files: SourceFiles, data: bytes) -> None:
        self.files = files
        self._binary: bytes | None = None
        if data[:4] == b"glTF":
            data = self._unpacked(data)
        elif files.path.suffix.lower() == ".glb":
            raise MeshError(f"{files.path}: damaged, or not a .glb mesh (it does not begin with glTF)")
        self.json: dict[str, Any] = json.loads(data.decode("utf-8-sig"))
        version = str(self.json.get("asset", {}).get("version", "1.0"))
        if version.startswith("1") or isinstance(self.json.get("meshes"), dict):
            raise self._old()
        for name in self.json.get("extensionsRequired", []):
            if not name.startswith(_KNOWN):
                reason = f"needs the glTF extension {name}, which is not supported; export it without"
                raise MeshError(f"{files.path}: {reason}")
        # trimesh writes its sRGB colours as they are, although glTF's are linear.
        self.linear = "trimesh" not in str(self.json["asset"].get("generator", ""))
        self.nodes: list[dict[str, Any]] = self.json.get("nodes", [])
        self.parents = {child: index for index, node in enumerate(self.nodes) for child in node.get("children", [])}
        # Each value is worked out once.
        self.buffer, self.view, self.accessor = cache(self._buffer), cache(self._view), cache(self._accessor)
        self.world, self.look = cache(self._world), cache(self._look)

    def _old(self) -> MeshError:
        reason = "is glTF 1.0, only 2.0 can be read; convert it, say by importing it into Blender"
        return MeshError(f"{self.files.path}: {reason}")

    def _unpacked(self, data: bytes) -> bytes:
        """Return the JSON chunk of a GLB, and keep its binary one [4]."""
        version, stated = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
        if version == 1:
            raise self._old()
        if stated > len(data) or len(data) < 20:
            reason = f"its header states {stated:,} bytes, the file has {len(data):,}"
            raise MeshError(f"{self.files.path}: truncated: {reason}")
        chunks: dict[bytes, bytes] = {}
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            chunks.setdefault(data[at + 4 : at + 8], data[at + 8 : at + 8 + size])
            at += 8 + size
        self._binary = chunks.get(b"BIN\0")
        return chunks[b"JSON"]

    # Buffers, views and accessors [3.6]

    def _buffer(self, index: int) -> bytes:
        uri = self.json["buffers"][index].get("uri")
        if uri is None:
            if self._binary is None:
                raise ValueError(f"buffer {index} has no data")
            return self._binary
        found = _embedded(uri) if uri.startswith("data:") else self.files.get(uri)
        if found is None:
            raise MeshError(f"{self.files.path}: needs the file {uri}, which is missing")
        return found

    def _view(self, index: int) -> bytes:
        view = self.json["bufferViews"][index]
        packed = _extension(view, "EXT_meshopt_compression") or _extension(view, "KHR_meshopt_compression")
        source = packed or view
        begin = source.get("byteOffset", 0)
        data = self.buffer(source["buffer"])[begin : begin + source["byteLength"]]
        if len(data) < source["byteLength"]:
            raise ValueError(f"buffer {source['buffer']} is too short")
        return self._meshopt(packed, data) if packed else data

    def _meshopt(self, packed: dict[str, Any], data: bytes) -> bytes:
        codec = self.files.package("meshoptimizer", "reading its meshopt compression")
        count, stride, mode = packed["count"], packed["byteStride"], packed["mode"]
        self._check_count(count)
        if mode in ("TRIANGLES", "INDICES"):
            decode = codec.decode_index_buffer if mode == "TRIANGLES" else codec.decode_index_sequence
            return np.asarray(decode(count, 4, data)).astype(f"<u{stride}").tobytes()
        out = np.asarray(codec.decode_vertex_buffer(count, stride, data, dtype=np.dtype((np.void, stride))))
        if (name := packed.get("filter", "NONE")) != "NONE":
            decode = getattr(codec, f"decode_filter_{_FILTERS[name]}")
            out = decode(out.view(np.uint8), count, stride)
        return out.tobytes()

    def _check_count(self, count: int) -> None:
        if count > 9 * MAX_FACES:
            raise MeshError(f"{self.files.path}: states {count:,} values in one list, too many for {MAX_FACES:,} faces")

    def _accessor(self, index: int) -> Array:
        """Return an accessor's values (N, width), normalized integers as floats."""
        accessor = self.json["accessors"][index]
        kind, width = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]]
        count = accessor["count"]
        self._check_count(count)
        values = np.zeros((count, width), kind)
        if "bufferView" in accessor:
            stride = self.json["bufferViews"][accessor["bufferView"]].get("byteStride") or kind.itemsize * width
            at = accessor.get("byteOffset", 0)
            data = self.view(accessor["bufferView"])
            values = np.ndarray((count, width), kind, data, at, (stride, kind.itemsize))
        if sparse := accessor.get("sparse"):
            values = values.copy()
            where, what = sparse["indices"], sparse["values"]
            at, rows_at = what.get("byteOffset", 0), where.get("byteOffset", 0)
            rows_kind = _TYPES[where["componentType"]]
            rows = np.frombuffer(self.view(where["bufferView"]), rows_kind, sparse["count"], rows_at)
            stored = np.frombuffer(self.view(what["bufferView"]), kind, sparse["count"] * width, at)
            values[rows] = stored.reshape(-1, width)
        return _normalized(values) if accessor.get("normalized") else values

    # Nodes [3.5]

    def _world(self, index: int) -> Array:
        """Return a node's transform (4, 4) to the scene."""
        chain = [index]
        while (parent := self.parents.get(chain[-1])) is not None:
            if parent in chain:
                raise MeshError(f"{self.files.path}: damaged: node {parent} is its own ancestor")
            chain.append(parent)
        world = np.eye(4)
        for item in reversed(chain):
            world = world @ _local(self.nodes[item])
        return world

    def instances(self, index: int, node: dict[str, Any]) -> Iterator[Part]:
        """Yield the parts of a node's mesh, in the scene's frame, once for each of its instances."""
        mesh = self.json["meshes"][node["mesh"]]
        weights = node.get("weights", mesh.get("weights", []))
        transforms = [self.world(index)]
        if given := _extension(node, "EXT_mesh_gpu_instancing").get("attributes"):
            columns = {name: self.accessor(number).astype(float) for name, number in given.items()}
            parts = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
            columns = {parts[name]: values for name, values in columns.items() if name in parts}
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            transforms = [transforms[0] @ _local(row) for row in rows]
        for primitive in mesh["primitives"]:
            part = self._primitive(primitive, weights, node.get("skin"))
            if part is None:
                continue
            if "skin" in node:  # [3.7.3.3] the transform of a skinned mesh's own node is ignored
                yield part
                continue
            for number, transform in enumerate(transforms):
                if number * len(part.faces) > 2 * MAX_FACES:
                    return
                yield part.moved(transform)

    # Meshes [3.7]

    def _primitive(self, primitive: dict[str, Any], weights: list[float], skin: int | None) -> Part | None:
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6):
            self.files.leave_out("points" if mode == 0 else "lines")
            return None
        attributes: dict[str, Any] = primitive["attributes"]
        if "POSITION" not in attributes:
            return None
        unpacked, indices = dict[str, Array](), None
        if draco := _extension(primitive, "KHR_draco_mesh_compression"):
            unpacked, indices = self._draco(draco, attributes)

        def get(name: str) -> Array | None:
            if name not in attributes:
                return None
            values = unpacked[name] if name in unpacked else self.accessor(attributes[name])
            for weight, target in zip(weights, primitive.get("targets", []), strict=False):
                if weight and name in target:
                    values = values + weight * self.accessor(target[name])
            return values

        points = get("POSITION")
        assert points is not None
        points = points.astype(float)
        if skin is not None:
            points = self._posed(points, skin, get)
        if indices is None:
            stored = primitive.get("indices")
            indices = np.arange(len(points)) if stored is None else self.accessor(stored)[:, 0].astype(np.int64)
        look = self.look(primitive.get("material"))
        coordinates = get(f"TEXCOORD_{look.texcoord}")
        uv = None
        if coordinates is not None and look.material.texture is not None:
            uv = coordinates.astype(float) @ look.transform[:, :2].T + look.transform[:, 2]
            uv = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
        drawn = (*_DRAWN_ATTRIBUTES, f"TEXCOORD_{look.texcoord}")
        unused = [name for name in attributes if not name.startswith(drawn) and name != "TEXCOORD_0"]
        self.files.leave_out(*(f"the vertex attribute {name}" for name in unused))
        colours = get("COLOR_0")
        strip = mode != 4
        return Part(
            vertices=points,
            faces=strip_triangles(indices, fan=mode == 6) if strip else indices[: len(indices) // 3 * 3].reshape(-1, 3),
            material=look.material,
            uv=uv,
            colours=None if colours is None else rgba(colours, linear=self.linear),
        )

    def _draco(self, draco: dict[str, Any], attributes: dict[str, Any]) -> tuple[dict[str, Array], Array]:
        mesh = self.files.package("DracoPy", "reading its Draco compression").decode(self.view(draco["bufferView"]))
        unpacked = {}
        for name, number in draco["attributes"].items():
            accessor = self.json["accessors"][attributes[name]]
            values = np.asarray(mesh.get_attribute_by_unique_id(number)["data"])
            values = values.reshape(-1, _WIDTHS[accessor["type"]])
            unpacked[name] = _normalized(values) if accessor.get("normalized") else values
        return unpacked, np.asarray(mesh.faces).reshape(-1).astype(np.int64)

    def _posed(self, points: Array, index: int, get: Any) -> Array:
        """Return points moved by their joints [3.7.3]."""
        skin = self.json["skins"][index]
        joints = np.stack([self.world(joint) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            inverse = self.accessor(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
            joints = joints @ inverse[: len(joints)]
        total, moved = np.zeros((len(points), 1)), np.zeros_like(points)
        for number in range(8):
            which, weights = get(f"JOINTS_{number}"), get(f"WEIGHTS_{number}")
            if which is None or weights is None:
                break
            for joint, weight in zip(which.T.astype(int), weights.T.astype(float)[..., None], strict=True):
                matrix = joints[joint]
                moved += weight * (np.einsum("vij,vj->vi", matrix[:, :3, :3], points) + matrix[:, :3, 3])
                total += weight
        return np.where(total > 0, moved / np.maximum(total, 1e-12), points)

    # Materials [3.9]

    def _look(self, index: int | None) -> _Look:
        if index is None:
            return _Look(Material())
        stored: dict[str, Any] = self.json["materials"][index]
        factors: dict[str, Any] = stored.get("pbrMetallicRoughness", {})
        info = factors.get("baseColorTexture")
        colour = np.array(factors.get("baseColorFactor", [1, 1, 1, 1]), float)
        stated = (factors.get("metallicFactor"), factors.get("roughnessFactor"))
        metallic, roughness = (None if value is None else float(value) for value in stated)
        texture = self._texture(info)
        packed = self._texture(factors.get("metallicRoughnessTexture"))
        if packed is not None:  # green is roughness, blue is metalness
            roughness = (1.0 if roughness is None else roughness) * float(packed[..., 1].mean()) / 255
            metallic = (1.0 if metallic is None else metallic) * float(packed[..., 2].mean()) / 255
            varied = np.ptp(packed[..., 1:3], axis=(0, 1)).max() > 8
            self.files.leave_out("metalness and roughness maps (their means are drawn)", when=varied)
        if "KHR_materials_pbrSpecularGlossiness" in stored.get("extensions", {}):
            info, colour, texture, metallic, roughness = self._specular(stored)
        self._note_undrawn(stored)
        texcoord, transform = _coordinates(info)
        material = Material(
            colour=np.array([*srgb_from_linear(np.clip(colour[:3], 0, 1)), colour[3]]),
            texture=texture,
            wrap=self._wrap(info),
            alpha=stored.get("alphaMode", "OPAQUE").lower(),
            cutoff=float(stored.get("alphaCutoff", 0.5)),
            metallic=metallic,
            roughness=roughness,
        )
        strength = _extension(stored, "KHR_materials_emissive_strength").get("emissiveStrength", 1.0)
        emission = np.array(stored.get("emissiveFactor", [0, 0, 0]), float) * strength
        glow_info = stored.get("emissiveTexture")
        glow = self._texture(glow_info) if emission.any() else None
        if not emission.any() or (glow_info is not None and glow is None):
            return _Look(material, texcoord, transform)
        if glow is not None and material.texture is not None:
            set_, moved = _coordinates(glow_info)
            same = set_ == texcoord and np.array_equal(moved, transform)
            if not same and colour[:3].max() > 0.05:
                self.files.leave_out("an emissive texture with coordinates of its own")
                return _Look(material, texcoord, transform)
            if not same:
                material = replace(material, texture=None)
        if glow is not None and material.texture is None:
            (texcoord, transform), material = _coordinates(glow_info), replace(material, wrap=self._wrap(glow_info))
        return _Look(with_emission(material, emission, glow), texcoord, transform)

    def _note_undrawn(self, stored: dict[str, Any]) -> None:
        """Name what a material has beyond base colour, emission and the means of metalness and roughness."""
        maps = {"normalTexture": "normal maps", "occlusionTexture": "occlusion maps"}
        self.files.leave_out(*(name for key, name in maps.items() if key in stored))
        for extension, values in stored.get("extensions", {}).items():
            name = extension.removeprefix("KHR_materials_")
            strength = np.any(values.get(_UNDRAWN_MATERIALS[name], 0)) if name in _UNDRAWN_MATERIALS else True
            if strength and name not in _DRAWN_MATERIALS:
                self.files.leave_out(name if name == extension else name.replace("_", " "))

    def _specular(self, stored: dict[str, Any]) -> tuple[Any, Array, Pixels | None, float, float]:
        """Convert its specular and glossiness: texture reference, linear colour, texture, metallic, roughness."""
        # By the conversion that the extension's page links to: metalness is solved from diffuse and specular colour.
        values = _extension(stored, "KHR_materials_pbrSpecularGlossiness")
        info, other = values.get("diffuseTexture"), values.get("specularGlossinessTexture")
        texture, glossy = self._texture(info), self._texture(other)
        diffuse = np.array(values.get("diffuseFactor", [1, 1, 1, 1]), float)
        specular = np.array(values.get("specularFactor", [1, 1, 1]), float)
        gloss = values.get("glossinessFactor", 1.0)
        if glossy is not None:
            gloss *= float(glossy[..., 3].mean()) / 255
            specular = specular * linear_from_srgb(glossy[..., :3] / np.float32(255)).mean(axis=(0, 1))
        shown = diffuse[:3]
        if texture is not None:
            shown = shown * linear_from_srgb(texture[..., :3] / np.float32(255)).mean(axis=(0, 1))
        weights = np.array([0.299, 0.587, 0.114])
        bright, mirrored = (float(np.sqrt(weights @ colour**2)) for colour in (shown, specular))
        metallic = 0.0
        if mirrored > 0.04:
            b = bright * (1 - specular.max()) / 0.96 + mirrored - 0.08
            metallic = float(np.clip((-b + np.sqrt(max(b * b - 4 * 0.04 * (0.04 - mirrored), 0))) / 0.08, 0, 1))
        if metallic > 0.5 and glossy is not None:  # a metal is seen by what it mirrors
            colour = np.array([*values.get("specularFactor", [1, 1, 1]), diffuse[3]])
            return other, colour, solid(glossy), metallic, 1 - gloss
        if metallic <= 0.5 and texture is not None:
            return info, diffuse, texture, metallic, 1 - gloss
        if texture is not None and specular.max() < 0.9:  # what it mirrors lies over its texture
            light = linear_from_srgb(texture[..., :3] / np.float32(255)) * diffuse[:3] * (1 - specular.max()) + specular
            pixels = np.rint(255 * srgb_from_linear(np.clip(light, 0, 1))).astype(np.uint8)
            return info, np.array([1, 1, 1, diffuse[3]]), np.dstack([pixels, texture[..., 3]]), 0.0, 1 - gloss
        base = shown * (1 - specular.max()) / 0.96 / max(1 - metallic, 1e-6)
        metal = (specular - 0.04 * (1 - metallic)) / max(metallic, 1e-6)
        mixed = np.clip(base + (metal - base) * metallic**2, 0, 1)
        return info, np.array([*mixed, diffuse[3]]), None, metallic, 1 - gloss

    def _texture(self, info: dict[str, Any] | None) -> Pixels | None:
        if info is None:
            return None
        texture = self.json["textures"][info["index"]]
        source = texture.get("source")
        for name in _IMAGE_EXTENSIONS:
            if source is None:
                source = _extension(texture, name).get("source")
        if source is None:
            self.files.leave_out("a texture without an image")
            return None
        image = self.json["images"][source]
        uri = image.get("uri")
        name = image.get("name") or f"image {source}"
        if uri is None:
            return self.files.decode(self.view(image["bufferView"]), name)
        return self.files.decode(_embedded(uri), name) if uri.startswith("data:") else self.files.texture(uri)

    def _wrap(self, info: dict[str, Any] | None) -> tuple[str, str]:
        sampler: dict[str, Any] = {}
        if info is not None and "sampler" in (texture := self.json["textures"][info["index"]]):
            sampler = self.json["samplers"][texture["sampler"]]
        return _WRAPS.get(sampler.get("wrapS", 0), "repeat"), _WRAPS.get(sampler.get("wrapT", 0), "repeat")


def _embedded(uri: str) -> bytes:
    head, _, body = uri.partition(",")
    raw = unquote_to_bytes(body)
    return base64.b64decode(raw + b"=" * (-len(raw) % 4)) if head.endswith(";base64") else raw


def _normalized(values: Array) -> Array:
    if values.dtype.kind == "f":
        return values
    return np.maximum(values / np.float32(np.iinfo(values.dtype).max), -1)


def _local(node: dict[str, Any]) -> Array:
    """Return the transform (4, 4) of a node to its parent."""
    import trimesh

    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", [0, 0, 0, 1])
    matrix = np.asarray(trimesh.transformations.quaternion_matrix([w, x, y, z]))
    matrix[:3, :3] *= np.array(node.get("scale", [1, 1, 1]), float)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


def _coordinates(info: dict[str, Any] | None) -> tuple[int, Array]:
    """Return which texture coordinates a texture is drawn with, and KHR_texture_transform as (2, 3)."""
    moved = _extension(info or {}, "KHR_texture_transform")
    texcoord = int(moved.get("texCoord", (info or {}).get("texCoord", 0)))
    angle = moved.get("rotation", 0.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    (sx, sy), (x, y) = moved.get("scale", [1, 1]), moved.get("offset", [0, 0])
    return texcoord, np.array([[cosine * sx, sine * sy, x], [-sine * sx, cosine * sy, y]])
