"""Damaged files of every kind: the right result or one line, never a traceback, a hang or a Python warning.

The seed is fixed: the same few hundred files each time. Longer searches change SEED and COUNT.
"""

import io
import json
import random
import re
import shutil
import signal
import struct
import warnings
import zipfile

import cv2
import numpy as np
import pytest
import trimesh
from PIL import Image

from ocdit_core.config import build, read_yaml
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.bop_results import read_results
from ocdit_core.evaluation.records import read_records
from ocdit_core.images import read_image
from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.ocdit import OCDiTConfig
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.meshes import read_cad
from ocdit_core.training.settings import TrainSettings

SEED, COUNT = 1, 25
SECONDS = 10
ODD = (None, -1, 0, 2.5, 1e30, float("nan"), "x", "", [], {}, [[]], True, 2**31, 2**63, 10**30, [0] * 20, {"index": 99})
ODD_WORDS = (b"nan", b"inf", b"-1", b"1e999", b"99999999999999999999", b"", b"\xff\xfe", b'"', b"{", b"</a>", b"\0")
PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), (32, 24))


def damaged(data, rng, text=False):
    """Return bytes with a few of them changed, removed or repeated, or cut off."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))
        kind = rng.randrange(7)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 255, 127, 128, 32, 10])
        elif kind == 2:
            del data[at : at + rng.choice([1, 4, 30, 300])]
        elif kind == 3:
            data[at:at] = data[max(0, at - rng.randint(1, 60)) : at]
        elif kind == 4:
            del data[at:]
        elif kind == 5 and text:
            words = list(re.finditer(rb"[-\d.eE+]+|\w+", bytes(data[at : at + 60])))
            if words:
                word = rng.choice(words)
                data[at + word.start() : at + word.end()] = rng.choice(ODD_WORDS)
        else:
            data[at : at + 4] = struct.pack("<I", rng.choice([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 65535]))
    return bytes(data)


def odd_json(values, rng):
    """Return JSON text with one value replaced or removed."""
    values = json.loads(values)
    places = []

    def collect(value):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            places.append((value, key))
            collect(inner)

    collect(values)
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.25:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(values).encode()


def odd_glb(data, rng):
    (length,) = struct.unpack_from("<I", data, 12)
    text = odd_json(data[20 : 20 + length], rng)
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + data[20 + length :]
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def odd_zip(data, rng):
    source, written = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    chosen = rng.choice(source.namelist())
    with zipfile.ZipFile(written, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, damaged(content, rng, text=True) if name == chosen else content)
    return written.getvalue()


def variants(name, data):
    """Yield damaged versions of a file: cut off at five places, and COUNT others."""
    rng = random.Random(f"{SEED} {name}")
    structured = {".glb": odd_glb, ".gltf": odd_json, ".json": odd_json, ".3mf": odd_zip, ".npz": odd_zip}
    suffix = name[name.rindex(".") :]
    text = suffix in (".obj", ".off", ".dae", ".mtl", ".yaml", ".jsonl", ".gltf") or name.startswith("text")
    for part in range(5):
        yield data[: (2 * part + 1) * len(data) // 10]
    for number in range(COUNT):
        if number % 2 and suffix in structured:
            yield structured[suffix](data, rng)
        else:
            yield damaged(data, rng, text)


@pytest.fixture(autouse=True)
def time_limit():
    """Fail instead of hanging; processor time, so that a busy machine does not matter."""

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def try_all(path, read):
    """Read all variants of a file."""
    data = path.read_bytes()
    for number, content in enumerate(variants(path.name, data)):
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read()
        except OcditError as error:
            message = str(error)
            assert "\n" not in message, f"{path.name} {number}: {message}"
            assert len(message) < 600, f"{path.name} {number}: {message}"
            assert " at 0x" not in message, f"{path.name} {number}: {message}"
        except Exception as error:
            raise AssertionError(f"{path.name}, variant {number} of seed {SEED}: {error!r}") from error
    path.write_bytes(data)


def encoded(kind, image, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


DAE = b"""<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit name="centimetre" meter="0.01"/><up_axis>Z_UP</up_axis></asset>
<library_effects><effect id="fx"><profile_COMMON><technique sid="t"><lambert>
<diffuse><color>0.8 0.2 0.1 1</color></diffuse></lambert></technique></profile_COMMON></effect></library_effects>
<library_materials><material id="mat"><instance_effect url="#fx"/></material></library_materials>
<library_geometries><geometry id="geo"><mesh>
<source id="p"><float_array id="pa" count="12">0 0 0 10 0 0 10 10 0 0 10 5</float_array><technique_common>
<accessor source="#pa" count="4" stride="3"><param name="X" type="float"/><param name="Y" type="float"/>
<param name="Z" type="float"/></accessor></technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<triangles count="2" material="m"><input semantic="VERTEX" source="#v" offset="0"/><p>0 1 2 0 2 3</p></triangles>
</mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="s"><node id="n"><matrix>1 0 0 5 0 1 0 0 0 0 1 0 0 0 0 1</matrix>
<instance_geometry url="#geo"><bind_material><technique_common><instance_material symbol="m" target="#mat"/>
</technique_common></bind_material></instance_geometry></node></visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#s"/></scene></COLLADA>
"""


def threemf(mesh):
    vertices = "".join(f'<vertex x="{x:g}" y="{y:g}" z="{z:g}"/>' for x, y, z in 1000 * mesh.vertices)
    triangles = "".join(f'<triangle v1="{a}" v2="{b}" v3="{c}"/>' for a, b, c in mesh.faces)
    space = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r" '
            'Target="/3D/3dmodel.model" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>'
            "</Relationships>",
        )
        archive.writestr(
            "3D/3dmodel.model",
            f'<model unit="millimeter" xmlns="{space}"><resources><object id="1" type="model"><mesh>'
            f"<vertices>{vertices}</vertices><triangles>{triangles}</triangles></mesh></object></resources>"
            '<build><item objectid="1"/></build></model>',
        )
    return packed.getvalue()


def meshes():
    box = trimesh.creation.box((0.1, 0.06, 0.04))
    coloured = box.copy()
    coloured.visual.vertex_colors = np.random.default_rng(1).integers(0, 255, (8, 4), np.uint8)
    visual = trimesh.visual.TextureVisuals(uv=np.random.default_rng(2).random((8, 2)), image=Image.fromarray(PIXELS))
    textured = trimesh.Trimesh(box.vertices, box.faces, visual=visual, process=False)
    scene = trimesh.Scene([coloured, textured])
    points = b"".join(b"v %g %g %g\n" % tuple(point) for point in box.vertices)
    faces = b"".join(b"f %d/1 %d/2 %d/3\n" % tuple(face + 1) for face in box.faces)
    return {
        "scene.glb": scene.export(file_type="glb"),
        "text.gltf": scene.export(file_type="gltf", embed_buffers=True)["model.gltf"],
        "a.obj": b"mtllib m.mtl\n" + points + b"vt 0 0\nvt 1 0\nvt 1 1\nusemtl a\n" + faces,
        "m.mtl": b"newmtl a\nKd 0.5 0.2 0.1\nmap_Kd -s 1 1 1 t.png\nd 1\n",
        "t.png": encoded("PNG", Image.fromarray(PIXELS)),
        "a.ply": coloured.export(file_type="ply"),
        "text.ply": coloured.export(file_type="ply", encoding="ascii"),
        "a.stl": box.export(file_type="stl"),
        "text.stl": box.export(file_type="stl_ascii").encode(),
        "a.off": box.export(file_type="off").encode(),
        "a.dae": DAE,
        "a.3mf": threemf(box),
    }


def test_meshes(tmp_path):
    files = meshes()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in files:
        main = tmp_path / ("a.obj" if name in ("m.mtl", "t.png") else name)
        whole = read_cad(main)

        def read(main=main, whole=whole):
            model = read_cad(main)
            assert np.isfinite(model.mesh.vertices).all()
            assert model.diameter > 0
            assert not any("\n" in line for line in model.warnings)
            if not whole.warnings and main.suffix in (".glb", ".stl", ".ply", ".off", ".3mf", ".dae"):
                assert len(model.mesh.faces) <= len(whole.mesh.faces) or model.warnings

        try_all(tmp_path / name, read)


def images():
    image, deep = Image.fromarray(PIXELS), PIXELS[..., 0].astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "a.png": encoded("PNG", image),
        "palette.png": encoded("PNG", image.quantize(16)),
        "a.jpg": encoded("JPEG", image, exif=exif),
        "a.bmp": encoded("BMP", image),
        "a.webp": encoded("WEBP", image),
        "a.gif": encoded("GIF", image),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "colour.png": cv2.imencode(".png", np.dstack([deep] * 3))[1].tobytes(),
        "float.tif": cv2.imencode(".tif", (PIXELS / 255).astype(np.float32))[1].tobytes(),
        "colour.tif": cv2.imencode(".tif", np.dstack([deep] * 3))[1].tobytes(),
    }
    return files | {f"{way}.tif": encoded("TIFF", image, compression=way) for way in ("raw", "packbits", "tiff_lzw")}


def test_images(tmp_path):
    for name, data in images().items():
        path = tmp_path / name
        path.write_bytes(data)
        shape = read_image(path).shape

        def read(path=path):
            image = read_image(path)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3

        assert shape[2] == 3
        try_all(path, read)


def test_libraries(tmp_path, rendered_library):
    folder = tmp_path / "library"
    shutil.copytree(rendered_library, folder)

    def read():
        library = ObjectLibrary(folder)
        assert library.manifest
        for name in library:
            templates = library[name]
            assert templates.mask.any(axis=(1, 2)).any()
            assert templates.points.ndim == 2

    for name in ("box.npz", "manifest.json"):
        try_all(folder / name, read)


@pytest.mark.parametrize("name", ["config/train/paper_coarse.yaml", "weights config.yaml", "weights inference.yaml"])
def test_settings(tmp_path, request, name):
    root = request.config.rootpath
    kind = {"paper_coarse.yaml": TrainSettings, "config.yaml": OCDiTConfig, "inference.yaml": InferenceSettings}
    last = name.replace(" ", "/").rsplit("/", 1)[1]
    source = root / name
    if name.startswith("weights"):
        source = root / "ocdit_core" / "weights" / "ocdit-small" / last
    path = tmp_path / last
    shutil.copy(source, path)
    try_all(path, lambda: build(kind[last], read_yaml(path)))


def test_results(tmp_path):
    row = {
        "scene_id": 1, "image_id": 2, "category_id": 3, "score": 0.5, "bbox": [1, 2, 3, 4], "time": 0.1,
        "segmentation": {"size": [4, 6], "counts": [5, 3, 16]},
    }  # fmt: skip
    path = tmp_path / "results.json"
    path.write_text(json.dumps([row, {**row, "image_id": 3}]))
    read_results(path)
    try_all(path, lambda: read_results(path))
    path = tmp_path / "records.json"  # one line, so that single values are replaced
    target = {"obj_id": 1, "asked": True, "scores": [0.5], "areas": [10], "truth_areas": [12], "visibility": [None]}
    record = {"scene_id": 0, "image_id": 1, "size": [60, 80], "time": 0.1, "timings": {"sampling": 0.1}}
    path.write_text(json.dumps({**record, "targets": [{**target, "overlaps": [[0.7]]}]}))
    assert len(read_records(path)) == 1
    try_all(path, lambda: read_records(path))
