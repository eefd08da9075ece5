"""Small glTF files, built in code, and the colours that the renderer gives to their surfaces."""

import base64
import io
import json
import struct

import numpy as np
import trimesh
from PIL import Image

from ocdit_core.objects.surfaces import surface_of

SQUARE = np.array([[0, 0, 0], [0.1, 0, 0], [0.1, 0.1, 0], [0, 0.1, 0]], np.float32)
SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)  # v counts downwards
SQUARE_FACES = np.array([0, 1, 2, 0, 2, 3], np.uint16)
_COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
_KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class GltfFile:
    """A file under construction: `add` gives an array, `mesh` a mesh and its node, their numbers."""

    def __init__(self):
        self.json = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}], "nodes": [], "meshes": []}
        self.json |= {"accessors": [], "bufferViews": [], "materials": [], "textures": [], "images": [], "samplers": []}
        self.blob = b""

    def view(self, data, **extra):
        self.blob += b"\0" * (-len(self.blob) % 4)
        self.json["bufferViews"].append({"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data), **extra})
        self.blob += data
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values, view=None, **extra):
        """The number of an accessor for (N,) or (N, width) values."""
        values = np.asarray(values)
        width = values.shape[1] if values.ndim > 1 else 1
        entry = {"componentType": _COMPONENTS[values.dtype.str[1:]], "count": len(values), "type": _KINDS[width]}
        if view is None:
            view = self.view(values.tobytes())
        self.json["accessors"].append({"bufferView": view, **entry, **extra})
        return len(self.json["accessors"]) - 1

    def image(self, pixels, **texture):
        """The number of a texture with these pixels (H, W, 3 or 4)."""
        stream = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, "PNG")
        self.json["images"].append({"bufferView": self.view(stream.getvalue()), "mimeType": "image/png"})
        self.json["textures"].append({"source": len(self.json["images"]) - 1, **texture})
        return len(self.json["textures"]) - 1

    def material(self, **values):
        self.json["materials"].append(values)
        return len(self.json["materials"]) - 1

    def primitive(
        self, points=SQUARE, indices=SQUARE_FACES, *, uv=None, material=None, mode=None, targets=None, **attributes
    ):
        values = {"attributes": {"POSITION": self.accessor(points)}}
        if uv is not None:
            values["attributes"]["TEXCOORD_0"] = self.accessor(np.asarray(uv, np.float32))
        for name, number in attributes.items():
            values["attributes"][name] = number
        for name, value in (("material", material), ("mode", mode), ("targets", targets)):
            if value is not None:
                values[name] = value
        if indices is not None:
            values["indices"] = self.accessor(indices)
        return values

    def node(self, *primitives, mesh=None, root=True, **node):
        """Put a mesh of these primitives into the scene; returns the node's number."""
        if primitives:
            self.json["meshes"].append({"primitives": list(primitives), **(mesh or {})})
            node["mesh"] = len(self.json["meshes"]) - 1
        self.json["nodes"].append(node)
        number = len(self.json["nodes"]) - 1
        if root:
            self.json["scenes"][0]["nodes"].append(number)
        return number

    def write(self, path, **changes):
        """Write a .glb, or a .gltf with its buffer inside."""
        content = {key: value for key, value in {**self.json, **changes}.items() if value not in ([], None)}
        buffer = {"byteLength": len(self.blob)}
        if path.suffix == ".gltf":
            buffer["uri"] = "data:application/octet-stream;base64," + base64.b64encode(self.blob).decode()
        content.setdefault("buffers", [buffer])
        text = json.dumps(content).encode()
        if path.suffix == ".gltf":
            path.write_bytes(text)
            return path
        text += b" " * (-len(text) % 4)
        blob = self.blob + b"\0" * (-len(self.blob) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(blob), b"BIN\0") + blob
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path


def colour_at(mesh, x, y):
    """The sRGB colour 0..255 of the face over a point of the xy plane, None in a hole: texel times vertex colour."""
    surface = surface_of(mesh)
    for triangle in surface.corners.reshape(-1, 3, 12):
        flat = triangle[:, :3] * [1, 1, 0]
        if np.linalg.norm(np.cross(flat[1] - flat[0], flat[2] - flat[0])) < 1e-12:
            continue
        weights = trimesh.triangles.points_to_barycentric(flat[None], [[x, y, 0.0]])[0]
        if (weights < -1e-6).any():
            continue
        colour = weights @ triangle[:, 8:11] * 255
        if surface.texture is not None:
            u, v = weights @ triangle[:, 6:8]
            height, width = surface.texture.shape[:2]
            texel = surface.texture[int((1 - v) % 1 * height), int(u % 1 * width)]
            if texel[3] < 255 * surface.alpha_cutoff:
                return None
            colour = colour * texel[:3] / 255
        return np.rint(colour)
    raise AssertionError(f"no face at {x}, {y}")
