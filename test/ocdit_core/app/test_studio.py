"""What the page of `ocdit app` does, without the page."""

import json
import zipfile

import cv2
import numpy as np
import pytest
from builders import make_mesh

from ocdit_core.app.studio import MAX_FRAMES, STEPS, Studio, Visitor
from ocdit_core.errors import ConfigError, ImageError, OcditError, UnknownObjectError
from ocdit_core.images import write_image
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.objects.archive import stored_names
from ocdit_core.objects.library import ObjectLibrary


@pytest.fixture(scope="module")
def studio(untrained_model, rendered_library):
    studio = Studio(Segmenter.from_pretrained(untrained_model), ObjectLibrary(rendered_library))
    yield studio
    studio.close()


@pytest.fixture
def visitor(studio):
    visitor = Visitor(library=studio.library)
    yield visitor
    studio.leave(visitor)


@pytest.fixture
def photo(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    write_image(tmp_path / "photo.png", image)
    return tmp_path / "photo.png"


def textured_mesh(folder):
    """Write an OBJ file, its material and its texture, each into a folder of its own; return the files."""
    contents = {
        "tile.obj": b"mtllib tile.mtl\nusemtl m\nv 0 0 0\nv 0.1 0 0\nv 0.1 0.1 0\nv 0 0.1 0.05\n"
        b"vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n",
        "tile.mtl": b"newmtl m\nmap_Kd tile.png\n",
        "tile.png": cv2.imencode(".png", np.full((8, 8, 3), (10, 200, 30), np.uint8))[1].tobytes(),
    }
    for name, content in contents.items():
        (folder / name[-3:]).mkdir()
        (folder / name[-3:] / name).write_bytes(content)
    return [folder / name[-3:] / name for name in contents]


def test_an_opened_image_has_neither_prompts_nor_a_result(studio, visitor, photo):
    visitor.open(str(photo))
    studio.segment(visitor, ["box"], 0.0)
    visitor.click((20, 30), "not on it", "box")
    visitor.open(str(photo))
    assert visitor.image.shape == (96, 128, 3)
    assert (visitor.prompts, visitor.result) == ([], None)


def test_an_image_that_cannot_be_read_leaves_the_old_one(visitor, photo, tmp_path):
    visitor.open(str(photo))
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"broken\.png"):
        visitor.open(str(tmp_path / "broken.png"))
    assert visitor.path == str(photo)
    assert visitor.image is not None


def test_a_large_image_is_reduced(visitor, tmp_path):
    write_image(tmp_path / "large.png", np.zeros((1000, 4000, 3), np.uint8))
    visitor.open(str(tmp_path / "large.png"))
    assert visitor.image.shape == (480, 1920, 3)


def test_the_denoising_steps_are_a_strip(studio, visitor, photo):
    with pytest.raises(OcditError, match="segment an image first"):
        studio.steps(visitor)
    visitor.open(str(photo))
    studio.segment(visitor, ["box"], 0.0)
    strip = studio.steps(visitor)
    columns = STEPS + 1  # the image, then the masks
    width = strip.shape[1] // columns
    assert strip.shape[1] == columns * width
    assert strip.dtype == np.uint8
    first, last = (strip[24:, column * width : (column + 1) * width] for column in (1, STEPS))
    assert (first != last).any()


def test_clicks_become_prompts(visitor):
    assert visitor.click((5, 6), "on it", "box")
    assert visitor.click((9, 9), "not on it", "box")
    assert visitor.click((1, 1), "not on it", "mug")
    assert not visitor.click((50, 60), "box", "can")
    assert visitor.click((20, 90), "box", "can")
    point, other, box = visitor.prompts
    assert (point.object_id, point.points, point.negative) == ("box", ((5, 6),), ((9, 9),))
    assert (other.object_id, other.points, other.negative) == ("mug", (), ((1, 1),))
    assert (box.object_id, box.box) == ("can", (20, 60, 30, 30))


def test_the_drawing_shows_masks_and_clicks(studio, visitor, photo):
    assert visitor.drawing() is None
    visitor.open(str(photo))
    np.testing.assert_array_equal(visitor.drawing(), visitor.image)
    visitor.click((64, 48), "not on it", "box")
    assert tuple(visitor.drawing()[48, 64]) == (230, 30, 30)


def test_segmenting_needs_an_image_and_an_object(studio, visitor, photo):
    with pytest.raises(ImageError, match="image first"):
        studio.segment(visitor, ["box"], 0.5)
    visitor.open(str(photo))
    with pytest.raises(ConfigError, match="at least one object"):
        studio.segment(visitor, [], 0.5)
    with pytest.raises(UnknownObjectError):
        studio.segment(visitor, ["plate"], 0.5)
    assert studio.segment(visitor, ["box", "can"], 0.0).target_ids == ("box", "can")


def test_a_cad_file_with_its_texture_becomes_an_object_of_this_visitor_alone(studio, visitor, photo, tmp_path):
    before = stored_names(studio.library.path)
    assert studio.add_object(visitor, textured_mesh(tmp_path), "") == "tile"
    assert stored_names(studio.library.path) == before
    assert "tile" in visitor.library
    assert "tile" not in Visitor(library=studio.library).library
    views = visitor.library["tile"]
    green = views.rgb[views.mask > 0].astype(int)
    assert (green[:, 1] > green[:, 0] + 20).mean() > 0.9
    visitor.open(str(photo))
    assert studio.segment(visitor, ["tile", "box"], 0.0).target_ids == ("tile", "box")
    folder = visitor.folder
    studio.leave(visitor)
    assert not folder.exists()
    assert stored_names(studio.library.path) == before


def test_photographs_become_an_object(studio, visitor, tmp_path):
    photos = []
    for number in range(2):
        image = np.full((120, 120, 3), 230, np.uint8)
        cv2.circle(image, (60, 60), 30 + 5 * number, (200, 40, 90), -1)
        photos.append(tmp_path / f"ball_{number}.png")
        write_image(photos[-1], image)
    assert studio.add_object(visitor, photos, " ball ") == "ball"
    assert len(visitor.library["ball"]) == 2


def test_what_cannot_become_an_object_changes_nothing(studio, visitor, tmp_path):
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"nonsense")
    note = tmp_path / "note.txt"
    note.write_text("no mesh")
    meshes = [make_mesh(tmp_path / "a.ply"), make_mesh(tmp_path / "b.ply")]
    cases = [
        ([], "", "choose files"),
        ([note], "", r"note\.txt is neither"),
        ([broken], "", r"broken\.glb"),
        (meshes, "", "2 CAD files"),
        (meshes[:1], "box", "already"),
        (meshes[:1], "a/b", "name"),
    ]
    for files, name, message in cases:
        with pytest.raises(OcditError, match=message):
            studio.add_object(visitor, files, name)
    assert visitor.library is studio.library
    assert visitor.folder is None


def test_a_video_is_followed(studio, visitor, tmp_path):
    path, done = tmp_path / "clip.avi", []
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (128, 96))
    for shade in range(MAX_FRAMES + 20):
        writer.write(np.full((96, 128, 3), shade, np.uint8))
    writer.release()
    tracked = studio.track(visitor, path, ["box"], done.append)
    capture = cv2.VideoCapture(str(tracked))
    # Every second frame, at half the rate.
    assert (len(done), done[-1]) == (60, (60, 60))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 60
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_what_is_no_video_is_refused(studio, visitor, photo, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"clip\.mp4: cannot be read as a video"):
        studio.track(visitor, tmp_path / "clip.mp4", ["box"])


def test_the_download_holds_masks_and_json(studio, visitor, photo):
    with pytest.raises(OcditError, match="segment an image first"):
        studio.download(visitor)
    visitor.open(str(photo))
    found = studio.segment(visitor, ["box"], 0.0)
    with zipfile.ZipFile(studio.download(visitor)) as file:
        names = file.namelist()
        content = json.loads(file.read("photo.json"))
    assert {"photo_overlay.png", "photo_uncertainty.png"} <= set(names)
    assert [one["object_id"] for one in content["instances"]] == [one.object_id for one in found.instances]
