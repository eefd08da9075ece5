"""Formats that other packages read: STEP and IGES (cascadio), USD (usd-core), FBX and others (assimp-py)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ocdit_core.errors import MeshError
from ocdit_core.objects.gltf import read_gltf
from ocdit_core.objects.parts import Material, ParsedFile, Part, part_of, rgba, with_emission
from ocdit_core.objects.sources import BESIDE_TEXTURE, Array, SourceFiles
from ocdit_core.objects.surfaces import srgb_from_linear

# Distance of a triangle from a curved surface, as a fraction of its edges; angle to its neighbours in radians.
TOLERANCE, ANGLE = 0.005, 0.3
_USD_WRAPS = {"clamp": "clamp", "black": "clamp", "mirror": "mirror"}
# What shaders may have beyond what is drawn: a texture or, for some, a value above 0.
_USD_UNDRAWN = {
    "normal normalmap_texture": "normal maps", "occlusion ao_texture": "occlusion maps", "opacity": "opacity maps",
    "metallic metallic_texture roughness reflectionroughness_texture": "metalness and roughness maps",
    "emissiveColor emissive_color_texture": "emissive maps", "clearcoat": "clearcoat", "displacement": "displacement",
}  # fmt: skip
_USD_VALUES = ("clearcoat", "displacement")
_STEP, _IGES, _USD = (".step", ".stp"), (".iges", ".igs"), (".usd", ".usda", ".usdc", ".usdz")


def read_cad_format(files: SourceFiles, data: bytes) -> ParsedFile:
    """Read one of `formats.CAD_FORMATS`; raises MeshError if its package is missing or it cannot be read."""
    suffix = files.path.suffix.lower()
    if suffix in (*_STEP, *_IGES):
        return _read_brep(files, data, "step" if suffix in _STEP else "iges")
    if suffix in _USD:
        return _read_usd(files)
    # The package passes no bones on.
    skinned = {".x": rb"(?<!template )\bSkinWeights\b[ \w-]*\s*\{", ".fbx": rb"SubDeformer"}.get(suffix)
    files.leave_out("skins (drawn where they were bound)", when=skinned is not None and bool(re.search(skinned, data)))
    return _read_assimp(files)


# STEP and IGES: Open CASCADE tessellates them and writes glTF in metres
def _read_brep(files: SourceFiles, data: bytes, kind: str) -> ParsedFile:
    cascadio = files.package("cascadio", f"reading {files.path.suffix}")
    with _silenced():
        glb = cascadio.load(data, kind, tol_linear=TOLERANCE, tol_angular=ANGLE, tol_relative=True)
    if not glb:
        raise MeshError(f"{files.path}: damaged, or holds no surfaces (Open CASCADE makes nothing of it)")
    parsed = read_gltf(files, glb)
    # Open CASCADE keeps its own millimetres for IGES, whatever unit the file has.
    parsed.unit = 0.001 if kind == "iges" else 1.0
    return parsed


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep what a library in C++ prints away from the standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# USD: https://openusd.org/release/api/usd_geom_page_front.html
def _read_usd(files: SourceFiles) -> ParsedFile:
    reason, names = f"reading {files.path.suffix}", ("Usd", "UsdGeom", "UsdShade", "Ar", "Sdf")
    pxr = {name: files.package(f"pxr.{name}", reason, "usd-core") for name in names}
    return _UsdStage(files, pxr["Usd"].Stage.Open(str(files.path)), pxr).parsed()


class _UsdStage:
    """A composed USD stage."""

    def __init__(self, files: SourceFiles, stage: Any, pxr: dict[str, Any]) -> None:
        self.files, self.stage = files, stage
        self.usd, self.geom, self.shade, self.ar = (pxr[name] for name in ("Usd", "UsdGeom", "UsdShade", "Ar"))
        self._materials: dict[str, Material] = {}

    def parsed(self) -> ParsedFile:
        moving = self.stage.GetEndTimeCode() > self.stage.GetStartTimeCode()
        self.files.leave_out("animations (drawn at rest)", when=moving)
        parts = list(self._parts())
        unit = float(self.geom.GetStageMetersPerUnit(self.stage))
        for layer in self.stage.GetUsedLayers():
            if layer.realPath and not self.files.path.samefile(layer.realPath.split("[")[0]):
                found = self.files.find(layer.realPath) or self.files.find(layer.identifier)
                if found is not None:
                    self.files.add(found)
        return ParsedFile(parts=parts, unit=unit)

    def _parts(self) -> Iterator[Part]:
        cache = self.geom.XformCache()
        prims = iter(self.usd.PrimRange(self.stage.GetPseudoRoot(), self.usd.TraverseInstanceProxies()))
        for prim in prims:
            self.files.leave_out("variants (the selected ones are drawn)", when=prim.HasVariantSets())
            imageable = self.geom.Imageable(prim)
            if prim.IsA(self.geom.PointInstancer):
                self.files.leave_out("point instancers")
                prims.PruneChildren()
                continue
            if not imageable or imageable.ComputeVisibility() == "invisible":
                continue
            if imageable.ComputePurpose() not in ("default", "render") or not prim.IsA(self.geom.Gprim):
                continue
            matrix = np.array(cache.GetLocalToWorldTransform(prim))
            found = list(self._mesh(prim)) if prim.IsA(self.geom.Mesh) else self._primitive(prim)
            if "SkelBindingAPI" in prim.GetAppliedSchemas():
                self.files.leave_out("skeletons (drawn where they were bound)")
            yield from (part.moved(matrix.T) for part in found)

    def _primitive(self, prim: Any) -> list[Part]:
        """Return a cube, sphere, cylinder, cone or capsule as triangles."""
        import trimesh

        kind = prim.GetTypeName()

        def value(name: str) -> float:
            return float(prim.GetAttribute(name).Get())

        if kind == "Cube":
            mesh = trimesh.creation.box((value("size"),) * 3)
        elif kind == "Sphere":
            mesh = trimesh.creation.icosphere(4, value("radius"))
        elif kind in ("Cylinder", "Cone", "Capsule"):
            mesh = getattr(trimesh.creation, kind.lower())(radius=value("radius"), height=value("height"))
            mesh.apply_translation(-mesh.bounds.mean(axis=0))
        else:
            self.files.leave_out(f"{kind} prims")
            return []
        axis = "XYZ".index(prim.GetAttribute("axis").Get()) if prim.HasAttribute("axis") else 2
        points = np.roll(np.asarray(mesh.vertices), axis - 2, axis=1)
        colours = self._colours(prim)
        first = None if colours is None else np.resize(colours[0][:1], (len(points), 3))
        return [Part(vertices=points, faces=np.asarray(mesh.faces), material=self._material(prim), colours=first)]

    def _mesh(self, prim: Any) -> Iterator[Part]:
        mesh = self.geom.Mesh(prim)
        scheme = mesh.GetSubdivisionSchemeAttr()
        self.files.leave_out("subdivision of surfaces", when=scheme.HasAuthoredValue() and scheme.Get() != "none")
        points = np.array(mesh.GetPointsAttr().Get() or [], dtype=np.float64).reshape(-1, 3)
        sizes = np.array(mesh.GetFaceVertexCountsAttr().Get() or [], dtype=np.int64)
        corner = np.array(mesh.GetFaceVertexIndicesAttr().Get() or [], dtype=np.int64)
        if not len(sizes):
            return
        owner, number = np.repeat(np.arange(len(sizes)), sizes), np.arange(len(corner))
        index = {"constant": owner * 0, "uniform": owner, "vertex": corner, "varying": corner, "faceVarying": number}
        groups: list[tuple[Any, Array]] = []
        rest = np.ones(len(sizes), bool)
        for subset in self.shade.MaterialBindingAPI(prim).GetMaterialBindSubsets():
            which = np.array(subset.GetIndicesAttr().Get(), dtype=np.int64)
            rest[which] = False
            groups.append((subset.GetPrim(), which))
        groups.append((prim, np.flatnonzero(rest)))
        polygons = np.split(corner, np.cumsum(sizes)[:-1])
        flip = mesh.GetOrientationAttr().Get() == "leftHanded"
        for bound, which in groups:
            if not len(which):
                continue
            mine = np.isin(owner, which)
            material = self._material(bound)
            uv = colours = None
            if material.texture is None:
                colours = self._colours(prim)
            else:
                uv = self._primvar(prim, ("texCoord2f[]", "texCoord2d[]", "float2[]"))
            part = part_of(
                [polygons[i] for i in which],
                points,
                material if colours is None else Material(),
                uv=None if uv is None else (uv[0], index[uv[1]][mine]),
                colours=None if colours is None else (colours[0], index[colours[1]][mine]),
            )
            part.faces = part.faces[:, ::-1] if flip else part.faces
            yield part

    def _primvar(self, prim: Any, types: tuple[str, ...], name: str = "") -> tuple[Array, str] | None:
        """Return the values and the interpolation of the first primvar of some types, or of a name."""
        stored = self.geom.PrimvarsAPI(prim).FindPrimvarsWithInheritance()
        for primvar in sorted(stored, key=lambda item: item.GetPrimvarName() != "st"):
            if (name and primvar.GetPrimvarName() != name) or str(primvar.GetTypeName()) not in types:
                continue
            values = primvar.ComputeFlattened()
            if values is not None and len(values):
                return np.array(values, dtype=np.float64), str(primvar.GetInterpolation())
        return None

    def _colours(self, prim: Any) -> tuple[Array, str] | None:
        """Return the display colours of a prim without a material."""
        if self.shade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]:
            return None
        found = self._primvar(prim, ("color3f[]",), "displayColor")
        return None if found is None else (rgba(found[0], linear=True)[:, :3], found[1])

    def _material(self, prim: Any) -> Material:
        bound = self.shade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]
        if not bound:
            return Material()
        key = str(bound.GetPath())
        self._materials[key] = self._materials.get(key) or self._shaded(bound)
        return self._materials[key]

    def _shaded(self, material: Any) -> Material:
        """Return what UsdPreviewSurface, or Omniverse's OmniPBR, says of a surface."""
        surface = material.ComputeSurfaceSource("")[0] or material.ComputeSurfaceSource("mdl")[0]
        if not surface:
            self.files.warnings.append("a material without a surface shader is drawn in neutral grey")
            return Material()

        def value(*names: str) -> tuple[Any, Any]:
            """The value of the first input that has one, and the texture shader that feeds it."""
            for name in names:
                attribute = surface.GetInput(name)
                if attribute:
                    for source in attribute.GetValueProducingAttributes():
                        shader = self.shade.Shader(source.GetPrim())
                        if shader.GetInput("file"):
                            return None, shader
                        return source.Get(), None
            return None, None

        colour, sampler = value("diffuseColor", "diffuse_texture", "diffuse_color_constant")
        texture, wrap = None, ("repeat", "repeat")
        if sampler is not None:
            texture = self._image(sampler.GetInput("file").Get())
            modes = [sampler.GetInput(f"wrap{axis}") for axis in "ST"]
            named = [_USD_WRAPS.get(str(mode.Get()), "repeat") if mode else "clamp" for mode in modes]
            wrap, colour = (named[0], named[1]), None
        elif hasattr(colour, "resolvedPath"):  # OmniPBR names its texture itself
            texture, colour = self._image(colour), None
        opacity = value("opacity")[0]
        threshold = float(value("opacityThreshold")[0] or 0)
        alpha = 1.0 if opacity is None else float(opacity)
        metallic = value("metallic", "metallic_constant")[0]
        roughness = value("roughness", "reflection_roughness_constant")[0]
        shown = Material(
            colour=None if colour is None else np.array([*srgb_from_linear(np.clip(np.array(colour), 0, 1)), alpha]),
            texture=texture,
            wrap=wrap,
            alpha="mask" if threshold > 0 else "blend" if alpha < 1 else "opaque",
            cutoff=threshold or 0.5,
            metallic=None if metallic is None else float(metallic),
            roughness=None if roughness is None else float(roughness),
        )
        for names, feature in _USD_UNDRAWN.items():
            for found, fed in map(value, names.split()):
                own = fed is not None and (sampler is None or fed.GetPrim() != sampler.GetPrim())
                valued = getattr(found, "path", "") or (feature in _USD_VALUES and found)
                self.files.leave_out(feature, when=own or bool(valued))
        emission = value("emissiveColor")[0]
        return shown if emission is None or not any(emission) else with_emission(shown, np.array(emission))

    def _image(self, asset: Any) -> Any:
        if asset is None or not asset.path:
            return None
        if "[" not in asset.resolvedPath:  # a file of its own
            return self.files.texture(asset.path)
        opened = self.ar.GetResolver().OpenAsset(self.ar.ResolvedPath(asset.resolvedPath))
        return self.files.decode(bytes(opened.GetBuffer()), asset.path)


# FBX, 3DS and others: https://github.com/assimp/assimp
def _read_assimp(files: SourceFiles) -> ParsedFile:
    assimp = files.package("assimp_py", f"reading {files.path.suffix}", "assimp-py")
    flags = assimp.Process_Triangulate | assimp.Process_JoinIdenticalVertices | assimp.Process_SortByPType
    fbx = files.path.suffix.lower() == ".fbx"
    try:
        # The scale of FBX is in its header: with this flag the numbers are metres.
        scene = assimp.import_file(str(files.path), flags | (assimp.Process_GlobalScale if fbx else 0))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise MeshError(f"{files.path}: damaged, or not a {files.path.suffix} mesh ({reason})") from error
    materials = [_assimp_material(files, stored) for stored in scene.materials]
    parts: list[Part] = []
    pending = [(scene.root_node, np.eye(4))]
    while pending:
        node, parent = pending.pop()
        world = parent @ np.array(node.transformation, dtype=np.float64)
        pending += [(child, world) for child in node.children]
        for index in node.mesh_indices:
            mesh = scene.meshes[index]
            if not mesh.num_faces or mesh.num_indices != 3 * mesh.num_faces:
                files.leave_out("points and lines")
                continue
            points = np.array(mesh.vertices, dtype=np.float64).reshape(-1, 3)
            material = materials[mesh.material_index]
            uv = colours = None
            if mesh.texcoords and material.texture is not None:
                uv = np.array(mesh.texcoords[0], dtype=np.float64).reshape(len(points), -1)[:, :2]
            files.leave_out(BESIDE_TEXTURE, when=bool(mesh.colors) and material.texture is not None)
            if mesh.colors and material.texture is None:  # more exact than the material's one colour
                colours = np.array(mesh.colors[0], dtype=np.float64).reshape(len(points), -1)[:, :3]
                material = Material()
            faces = np.array(mesh.indices, dtype=np.int64).reshape(-1, 3)
            parts.append(Part(vertices=points, faces=faces, material=material, uv=uv, colours=colours).moved(world))
    return ParsedFile(parts=parts, unit=1.0 if fbx else None)


def _assimp_material(files: SourceFiles, stored: dict[str, Any]) -> Material:
    import assimp_py

    textures = stored.get("TEXTURES", {})
    for kind in ("NORMALS", "HEIGHT", "LIGHTMAP", "EMISSIVE", "SPECULAR", "OPACITY", "REFLECTION", "DISPLACEMENT"):
        files.leave_out(f"{kind.lower()} maps", when=bool(textures.get(getattr(assimp_py, f"TextureType_{kind}"))))
    named = [*textures.get(assimp_py.TextureType_DIFFUSE, []), ""][0]
    files.leave_out("embedded textures", when=named.startswith("*"))
    texture = files.texture(named) if named and not named.startswith("*") else None
    files.leave_out("transparency", when=np.ravel(stored.get("OPACITY", 1.0))[0] < 0.99)
    colour = stored.get("COLOR_DIFFUSE")
    return Material(colour=None if texture is not None or colour is None else np.array(colour)[:3], texture=texture)
