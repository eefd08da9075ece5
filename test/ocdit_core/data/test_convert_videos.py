"""training/convert_videos.py on tiny folders in the layouts of DAVIS 2017, YouTube-VIS and MOVi."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from ocdit_core.cli import main
from ocdit_core.data.bop import BopFolder, read_targets
from ocdit_core.evaluation.targets import choose_targets, names_of_objects, require_templates
from ocdit_core.masks import encode_mask
from ocdit_core.objects.library import ObjectLibrary

SCRIPT = Path(__file__).parents[3] / "training" / "convert_videos.py"
SIZE = (64, 96)
COLOURS = ((90, 90, 90), (220, 40, 40), (40, 200, 40), (50, 60, 220))


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_videos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(script, monkeypatch, capsys):
    """Run the script; return its exit code and what it printed to either stream."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        code = script.main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def labels(frame):
    """Labels of a clip of three frames: 1 and 2 move, 3 enters in the second frame."""
    found = np.zeros(SIZE, np.uint8)
    found[4:28, 4 + 3 * frame : 28 + 3 * frame] = 1
    found[34:54, 60 - 3 * frame : 80 - 3 * frame] = 2
    if frame:
        found[4:24, 70:90] = 3
    return found


def write_image(path, pixels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.resize(COLOURS, 768).tolist())
    image.save(path, quality=95)


def write_davis(root, names=("car", "dog"), annotations="Annotations"):
    """Return the file of names; in the first video some pixels are void."""
    for name in names:
        for frame in range(3):
            here = labels(frame)
            write_image(root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg", np.array(COLOURS, np.uint8)[here])
            if name == names[0]:
                here[60:, :30] = 255
            write_image(root / annotations / "480p" / name / f"{frame:05d}.png", here, palette=True)
    listed = root / "ImageSets" / "2017" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(names) + "\n")
    return listed


def youtube(root):
    """Write images; return the content of the JSON file: instance 1 as plain, 2 as compressed runs, 3 as a polygon."""
    segmentations = ([], [], [])
    for frame in range(3):
        here = labels(frame)
        write_image(root / "JPEGImages" / "0a1b" / f"{frame * 5:05d}.jpg", np.array(COLOURS, np.uint8)[here])
        runs = [64 * (4 + 3 * frame) + 4, *[24, 40] * 23, 24]
        segmentations[0].append({"size": [*SIZE], "counts": [*runs, 64 * 96 - sum(runs)]})
        counts = coco.encode(np.asfortranarray(here == 2, np.uint8))["counts"].decode()
        segmentations[1].append({"size": [*SIZE], "counts": counts})
        segmentations[2].append([[70, 4, 90, 4, 90, 24, 70, 24]] if frame else None)
    annotations = [
        {"id": 7 + n, "video_id": 5, "category_id": 30 + n % 2, "iscrowd": 0, "segmentations": one, "length": 3}
        for n, one in enumerate(segmentations)
    ]
    files = [f"0a1b/{frame * 5:05d}.jpg" for frame in range(3)]
    return {
        "videos": [{"id": 5, "height": SIZE[0], "width": SIZE[1], "length": 3, "file_names": files}],
        "annotations": [*annotations, {**annotations[0], "id": 99, "iscrowd": 1}],
        "categories": [{"id": 30, "name": "person"}, {"id": 31, "name": "giant_panda"}],
    }


def write_youtube(root):
    content = youtube(root)
    (root / "instances.json").write_text(json.dumps(content))
    return root / "instances.json"


def write_movi(root):
    """Two scenes; instances 1 and 2 are of one asset, 3 is a painted cube of another colour in each scene."""
    for scene in range(2):
        for frame in range(3):
            folder, here = root / str(scene), labels(frame)
            rgba = np.dstack([np.array(COLOURS, np.uint8)[here] + np.uint8(scene), np.full(SIZE, 255, np.uint8)])
            write_image(folder / f"rgba_{frame:05d}.png", rgba)
            write_image(folder / f"segmentation_{frame:05d}.png", here, palette=True)
        cube = {"asset_id": "cube", "color": [scene, 0.5, 0], "material": "metal", "visibility": [400] * 3}
        instances = [{"asset_id": "Mug_x"}, {"asset_id": "Mug_x"}, cube]
        content = {"metadata": {"num_frames": 3, "resolution": [96, 64]}, "instances": instances}
        (folder / "metadata.json").write_text(json.dumps(content))
    return root


WRITERS = {"davis": write_davis, "youtube-vis": write_youtube, "movi": write_movi}
NAMES = {
    "davis": {"1": "car 1", "2": "car 2", "3": "car 3", "4": "dog 1", "5": "dog 2", "6": "dog 3"},
    "youtube-vis": {"1": "0a1b 1 person", "2": "0a1b 2 giant_panda", "3": "0a1b 3 person"},
    "movi": {"1": "Mug_x", "2": "cube 008000 metal", "3": "cube ff8000 metal"},
}
OBJECTS = {"davis": {0: [1, 2, 3], 1: [4, 5, 6]}, "youtube-vis": {0: [1, 2, 3]}, "movi": {0: [1, 1, 2], 1: [1, 1, 3]}}


@pytest.mark.parametrize("kind", WRITERS)
def test_scenes_templates_and_targets(convert, tmp_path, kind):
    out = tmp_path / "out"
    code, printed = convert(kind, WRITERS[kind](tmp_path / "in"), "--out", out)
    assert code == 0, printed
    dataset, objects = BopFolder(out, "test"), OBJECTS[kind]
    assert [(one.scene_id, one.image_id) for one in dataset] == [
        (scene, frame) for scene in objects for frame in range(3)
    ]
    for frame in dataset:
        here = labels(frame.image_id)
        assert [one.object_id for one in frame.annotations] == objects[frame.scene_id]
        assert [one.visible_fraction for one in frame.annotations] == [1, 1, float(frame.image_id > 0)]
        for index in range(3):
            np.testing.assert_array_equal(frame.mask(index), here == index + 1)
        assert np.abs(frame.image().astype(int) - np.array(COLOURS)[here]).mean() < 5
    assert json.loads((out / "objects.json").read_text()) == {"objects": NAMES[kind], "skipped": {}}
    library, targets = ObjectLibrary(out / "templates"), choose_targets(dataset, "targets.json")
    names = names_of_objects(library, out)
    require_templates(library, targets, names)
    assert targets == {(one.scene_id, one.image_id): tuple(sorted({*objects[one.scene_id]})) for one in dataset}
    shown = {number: number in objects[0][:2] for number in objects[0]}
    assert {number: bool(count) for number, count in read_targets(out / "targets.json")[0, 0].items()} == shown
    for number, place in ((1, 0), (2, 2)) if kind == "movi" else ((1, 0), (2, 1), (3, 2)):
        templates = library[names[number]]
        assert templates.origin == "photos"
        seen = np.median(templates.rgb[0][templates.mask[0]], axis=0)
        assert np.abs(seen - np.array(COLOURS[place + 1])).max() < 12
    if kind == "movi":  # of two instances in each scene
        assert len(library["obj_000001"]) == 4


@pytest.mark.parametrize("kind", WRITERS)
def test_ground_truth_as_results_is_tracked_perfectly(convert, tmp_path, kind):
    out = tmp_path / "out"
    assert convert(kind, WRITERS[kind](tmp_path / "in"), "--out", out)[0] == 0
    rows = [
        {"scene_id": frame.scene_id, "image_id": frame.image_id, "category_id": one.object_id, "score": 1, "time": -1}
        | {"segmentation": encode_mask(frame.mask(index))}
        for frame in BopFolder(out, "test")
        for index, one in enumerate(frame.annotations)
        if one.visible_fraction
    ]
    (tmp_path / "truth.json").write_text(json.dumps(rows))
    command = ["evaluate", "--dataset", out, "--split", "test", "--targets", "targets.json", "--tracking"]
    command += ["--results", tmp_path / "truth.json", "--out", tmp_path / "run"]
    assert main([str(one) for one in command]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    tracked = metrics["tracking"]["tracked"]
    assert tracked == pytest.approx(dict.fromkeys(set(tracked) - {"switches"}, 1.0) | {"switches": 0})
    assert metrics["tracking"]["videos"] == len(OBJECTS[kind])


def test_annotations_for_the_unsupervised_task(convert, tmp_path):
    listed = write_davis(tmp_path / "in", names=("car",), annotations="Annotations_unsupervised")
    assert convert("davis-unsupervised", listed, "--out", tmp_path / "out")[0] == 0
    code, printed = convert("davis", listed, "--out", tmp_path / "other")
    assert (code, printed.count("\n")) == (2, 1)
    assert "Annotations/480p/car/00000.png: no such file" in printed


def test_an_interrupted_conversion_continues(convert, tmp_path):
    listed, out = write_davis(tmp_path / "in"), tmp_path / "out"
    broken = tmp_path / "in" / "JPEGImages" / "480p" / "dog" / "00002.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:400])
    code, printed = convert("davis", listed, "--out", out)
    assert code == 2
    assert f"{broken}: truncated or damaged image" in printed
    assert sorted(path.name for path in (out / "test").iterdir()) == ["000000"]
    (out / "test" / ".part-000001-dead").mkdir()  # of a killed process
    done = (out / "test" / "000000").stat().st_mtime_ns
    broken.write_bytes(whole)
    for _ in range(2):  # once more changes nothing
        assert convert("davis", listed, "--out", out)[0] == 0
        assert sorted(path.name for path in (out / "test").iterdir()) == ["000000", "000001"]
        assert (out / "test" / "000000").stat().st_mtime_ns == done
    assert convert("davis", listed, "--out", tmp_path / "fresh")[0] == 0
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file() and path.suffix != ".jsonl"]
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "fresh" / file).read_bytes(), file
    code, printed = convert("movi", write_movi(tmp_path / "movi"), "--out", out)
    assert code == 2
    assert "was begun with kind davis, not movi" in printed


def test_files_of_others_stay_as_they_are(convert, tmp_path):
    listed, out = write_davis(tmp_path / "in"), tmp_path / "out"
    code, printed = convert("davis", listed, "--out", tmp_path / "in")
    assert code == 2
    assert "choose a new or an empty folder" in printed
    assert convert("davis", listed, "--out", out)[0] == 0
    (out / "targets.json").write_text("mine")
    code, printed = convert("davis", listed, "--out", out)
    assert code == 2
    assert "targets.json: exists and was not written by ocdit, or was changed since" in printed
    assert (out / "targets.json").read_text() == "mine"


def test_small_instances_are_no_targets(convert, tmp_path):
    listed, out = write_davis(tmp_path / "in", names=("car",)), tmp_path / "out"
    for frame in range(3):
        here = labels(frame)
        here[here == 2] = 0
        here[40:44, 40:44] = 2
        write_image(tmp_path / "in" / "Annotations" / "480p" / "car" / f"{frame:05d}.png", here, palette=True)
    code, printed = convert("davis", listed, "--out", out)
    assert code == 0
    assert "car 2: is no target: no frame shows 16 pixels of it" in printed
    assert {number for objects in read_targets(out / "targets.json").values() for number in objects} == {1, 3}
    assert json.loads((out / "objects.json").read_text())["skipped"] == {"2": "no frame shows 16 pixels of it"}


def davis_without(file):
    def damage(root):
        listed = write_davis(root)
        (root / file).unlink()
        return listed

    return damage


def davis_with(pixels, palette):
    def damage(root):
        listed = write_davis(root)
        write_image(root / "Annotations" / "480p" / "car" / "00001.png", pixels, palette=palette)
        return listed

    return damage


def davis_with_noise(root):
    listed = write_davis(root)
    (root / "Annotations" / "480p" / "car" / "00001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"noise" * 9)
    return listed


def davis_naming_another(root):
    listed = write_davis(root)
    listed.write_text("car\nhorse\n")
    return listed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (davis_without("JPEGImages/480p/car/00001.jpg"), "car/00001.jpg: no such file"),
        (davis_without("Annotations/480p/car/00001.png"), "car/00001.png: no such file"),
        (davis_without("ImageSets/2017/val.txt"), "val.txt: no such file"),
        (davis_with(np.zeros((32, 48), np.uint8), True), "is (64, 96) pixels high and wide, a mask of it (32, 48)"),
        (davis_with(np.zeros((*SIZE, 3), np.uint8), False), "car/00001.png: has no palette, whose indices are the ids"),
        (davis_with(np.zeros(SIZE, np.uint8), False), "car/00001.png: has no palette"),
        (davis_with_noise, "car/00001.png: truncated or damaged PNG"),
        (davis_naming_another, "horse: holds no frames (00000.jpg ...)"),
    ],
)
def test_damaged_davis_is_refused(convert, tmp_path, damage, message):
    code, printed = convert("davis", damage(tmp_path / "in"), "--out", tmp_path / "out")
    assert (code, printed.count("\n")) == (2, 1)
    assert message in printed


def without(key):
    return lambda content: content.pop(key)


def changed(key, number, **values):
    return lambda content: content[key][number].update(values)


def segmentation(number, value):
    return lambda content: content["annotations"][number]["segmentations"].__setitem__(1, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("videos"), "has no videos, or no annotations"),
        (without("annotations"), "or no annotations (only those for training are public)"),
        (without("categories"), "instances.json: damaged, lacks a key, or has an unknown id ('categories')"),
        (changed("videos", 0, file_names=["0a1b/00000.jpg", "0a1b/00003.jpg", "x"]), "0a1b/00003.jpg: no such file"),
        (changed("videos", 0, file_names=[5]), "instances.json: damaged, lacks a key"),
        (changed("videos", 0, height="high"), "instances.json: damaged, lacks a key"),
        (changed("videos", 0, height=float("inf")), "instances.json: damaged, lacks a key"),
        (changed("annotations", 1, video_id=6), "annotations[1]: damaged, lacks a key, or has an unknown id (6)"),
        (changed("annotations", 1, category_id=50), "annotations[1]: damaged, lacks a key, or has an unknown id (50)"),
        (changed("annotations", 2, segmentations=[None]), "annotations[2]: has 1 segmentations for 3 frames"),
        (
            segmentation(0, {"size": [64, 96], "counts": [5]}),
            "annotations[0], frame 1: run lengths of a mask are damaged",
        ),
        (
            segmentation(0, {"size": [2, 3], "counts": [6]}),
            "00005.jpg: is (64, 96) pixels high and wide, a mask of it (2, 3)",
        ),
        (segmentation(1, [[1, 2, 3, 4]]), "annotations[1], frame 1: a polygon of a mask is damaged: 4 values"),
        (segmentation(1, [["a"] * 6]), "annotations[1], frame 1: a polygon of a mask is damaged"),
    ],
)
def test_damaged_youtube_vis_is_refused(convert, tmp_path, change, message):
    content = youtube(tmp_path)
    change(content)
    (tmp_path / "instances.json").write_text(json.dumps(content))
    code, printed = convert("youtube-vis", tmp_path / "instances.json", "--out", tmp_path / "out")
    lines = [line for line in printed.splitlines() if "crowds" not in line]
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_crowds_are_counted_and_left_out(convert, tmp_path):
    path = write_youtube(tmp_path)
    images = (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    code, printed = convert("youtube-vis", path, "--images", images, "--out", tmp_path / "out")
    assert code == 0
    assert "annotations of crowds, left out: 1\n" in printed


def test_damaged_movi_is_refused(convert, tmp_path):
    root, out = write_movi(tmp_path / "in"), tmp_path / "out"
    path = root / "0" / "metadata.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"instances": content["instances"][:2]}, "metadata.json: has 2 instances, but a segmentation the id 3"),
        ({"instances": [{}] * 3}, "an instance is damaged, or lacks a key ('asset_id')"),
        ({"metadata": {"num_frames": 4}}, "segmentation_00003.png: no such file"),
        ({"metadata": {}}, "lacks a key ('num_frames')"),
        ({"metadata": {"num_frames": float("inf")}}, "num_frames or an instance is damaged"),
    ):
        path.write_text(json.dumps({**content, **change}))
        code, printed = convert("movi", root, "--out", out)
        assert (code, printed.count("\n")) == (2, 1)
        assert message in printed
        assert not out.exists()
    code, printed = convert("movi", tmp_path / "nothing", "--out", out)
    assert code == 2
    assert "lists no videos, or holds no scenes" in printed
