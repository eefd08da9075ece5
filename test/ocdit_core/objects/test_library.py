import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from made_up import made_up

from ocdit_core import ObjectLibrary
from ocdit_core.errors import ConfigError, LibraryError, OutputError, UnknownObjectError
from ocdit_core.objects.archive import save_templates


def test_what_is_saved_is_read_again(tmp_path):
    saved = made_up()
    save_templates(tmp_path / "lib", saved)
    library = ObjectLibrary(tmp_path / "lib")
    read = library["mug"]
    for key in ("rgb", "mask", "box", "K", "pose", "points"):
        np.testing.assert_array_equal(getattr(read, key), getattr(saved, key))
        assert getattr(read, key).dtype == getattr(saved, key).dtype
    assert (read.name, read.diameter, read.source_sha256, read.unit) == ("mug", 0.12, "ab" * 32, "mm")
    assert len(read) == 12
    assert [path.name for path in (tmp_path / "lib").glob("[!.]*")] == ["mug.npz"]


def test_names_are_sorted_and_strangers_are_refused(tmp_path):
    for name in ("mug", "drill", "Ölkanne 2"):
        save_templates(tmp_path, made_up(name))
    library = ObjectLibrary(str(tmp_path))
    assert library.object_ids == ("drill", "mug", "Ölkanne 2")
    assert len(library) == 3
    assert "drill" in library
    assert "kettle" not in library
    assert [templates.name for templates in library.select(["mug", "drill"])] == ["mug", "drill"]
    with pytest.raises(UnknownObjectError) as caught:
        library.select(["kettle", "mug", "cup"])
    assert caught.value.unknown == ["kettle", "cup"]
    assert caught.value.known == ["drill", "mug", "Ölkanne 2"]
    with pytest.raises(UnknownObjectError, match=r"kettle.*drill, mug"):
        library["kettle"]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a\nb", "x" * 101, " blank", "-flag"])
def test_names_that_no_file_should_have_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="object name"):
        save_templates(tmp_path, made_up(name))
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_library_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "void").mkdir()
    for name, reason in {"missing": "no such folder", "file": "is a file", "void": "holds no object"}.items():
        with pytest.raises(LibraryError, match=reason) as caught:
            ObjectLibrary(tmp_path / name)
        assert name in str(caught.value)


def rewritten(path, **changes):
    with np.load(path) as archive:
        fields = {key: archive[key] for key in archive.files}
    fields.update(changes)
    np.savez_compressed(path, **{key: value for key, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pose": None, "points": None}, "lacks pose, points"),
        ({"schema_version": np.int64(1)}, "schema version 1"),
        ({"schema_version": None}, "schema version None"),
        ({"rgb": np.zeros((12, 64, 64, 3), np.uint8)}, "rgb has the shape"),
        ({"rgb": np.zeros((0, 128, 128, 3), np.uint8)}, "rgb has the shape"),
        ({"K": np.zeros((11, 3, 3))}, "K has the shape"),
        ({"mask": np.zeros((12, 128, 128), np.uint8)}, "mask is uint8, not bool"),
        ({"mask": np.zeros((12, 128, 128), bool)}, "no pixel of view 0"),
        ({"pose": np.full((12, 4, 4), np.nan)}, "not finite"),
        ({"diameter": np.float64(-1)}, "diameter"),
        ({"points": np.array([object()])}, "damaged"),
    ],
)
def test_damaged_archives_are_refused_when_read(tmp_path, changes, reason):
    rewritten(save_templates(tmp_path, made_up()), **changes)
    library = ObjectLibrary(tmp_path)
    with pytest.raises(LibraryError, match=reason) as caught:
        library["mug"]
    assert "mug.npz" in str(caught.value)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    path = save_templates(tmp_path, made_up())
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    np.save(tmp_path / "array.npy", np.zeros(3))
    for damaged in (
        b"",
        data[:100],
        data[: len(data) // 2],
        bytes(flipped),
        b"text",
        (tmp_path / "array.npy").read_bytes(),
    ):
        path.write_bytes(damaged)
        with pytest.raises(LibraryError, match=r"mug\.npz"):
            ObjectLibrary(tmp_path)["mug"]
    library = ObjectLibrary(tmp_path)
    path.unlink()
    with pytest.raises(LibraryError, match="removed"):
        library["mug"]


def test_wrong_templates_are_not_saved_over_good_ones(tmp_path):
    path = save_templates(tmp_path, made_up())
    before = path.read_bytes()
    with pytest.raises(LibraryError, match="pose"):
        save_templates(tmp_path, replace(made_up(), pose=np.zeros((3, 4, 4))))
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="cannot be written"):
        save_templates(path, made_up())


def test_the_best_views_are_spread_out():
    every = made_up(views=42, seed=3)
    best = every.best_views(12)
    assert len(best) == 12
    assert every.best_views(42) is every

    def closest(templates):
        directions = templates.directions()
        return np.sort(directions @ directions.T, axis=1)[:, -2].max()

    assert closest(best) < closest(replace(every, rgb=every.rgb[:12], pose=every.pose[:12]))


def test_one_library_serves_several_threads(tmp_path):
    for name in ("a", "b"):
        save_templates(tmp_path, made_up(name, seed=ord(name)))
    library = ObjectLibrary(tmp_path)
    expected = {name: library[name].rgb.sum() for name in library}
    wrong = []

    def read(name):
        wrong.extend(name for _ in range(5) if library[name].rgb.sum() != expected[name])

    threads = [threading.Thread(target=read, args=(name,)) for name in ("a", "b") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_opening_a_library_loads_no_rendering_package():
    script = (
        "import sys, ocdit_core.objects.library; "
        "print([m for m in ('trimesh', 'moderngl', 'torch', 'scipy', 'PIL', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_opening_reads_no_archive(tmp_path):
    # Nothing in these files can be read: only the one that is asked for is missed.
    for number in range(50):
        (tmp_path / f"object_{number}.npz").write_bytes(b"junk")
    good = save_templates(tmp_path, made_up("good"))
    library = ObjectLibrary(tmp_path)
    assert len(library) == 51
    assert library["good"].diameter == 0.12
    with pytest.raises(LibraryError, match="object_7"):
        library["object_7"]
    with pytest.raises(UnknownObjectError) as caught:
        library["cup"]
    assert "and 31 more" in str(caught.value)
    assert len(caught.value.known) == 51
    good.unlink()
    assert "good" in library


def test_too_few_views_are_repeated_in_turn():
    templates = made_up(views=5)
    twelve = templates.exactly(12)
    assert len(twelve) == 12
    np.testing.assert_array_equal(twelve.rgb, templates.rgb[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]])
    np.testing.assert_array_equal(twelve.pose[5:10], templates.pose)
    assert templates.exactly(5) is templates
    np.testing.assert_array_equal(templates.exactly(3).rgb, templates.best_views(3).rgb)


def test_a_library_without_some_objects_leaves_the_folder_alone(rendered_library):
    library = ObjectLibrary(rendered_library)
    rest = library.without(["can"])
    assert (library.object_ids, rest.object_ids) == (("box", "can", "mug"), ("box", "mug"))
    assert rest.manifest == {name: entry for name, entry in library.manifest.items() if name != "can"}
    with pytest.raises(UnknownObjectError, match="'can'"):
        rest["can"]
    assert ObjectLibrary(rendered_library).object_ids == library.object_ids
