import json
import math
import subprocess
import sys

import numpy as np
import pytest
from made_up import made_up

from ocdit_core import ObjectLibrary
from ocdit_core.errors import LibraryError, UnknownObjectError
from ocdit_core.objects.archive import save_templates
from ocdit_core.objects.library import remove_objects, update_manifest


def fill(folder, *names, **changes):
    for name in names:
        save_templates(folder, made_up(name, views=1, **changes))


def ids(folder):
    return {name: entry.id for name, entry in ObjectLibrary(folder).manifest.items()}


def test_objects_are_numbered_and_stay_so(tmp_path):
    fill(tmp_path, "mug", "drill", sources=("x.ply",))
    update_manifest(tmp_path)
    assert ids(tmp_path) == {"drill": 1, "mug": 2}
    colours = {entry.colour for entry in ObjectLibrary(tmp_path).manifest.values()}
    assert len(colours) == 2
    fill(tmp_path, "anvil")
    fill(tmp_path, "mug", diameter=0.5)
    after = update_manifest(tmp_path, ["anvil", "mug"])
    assert {name: entry.id for name, entry in after.items()} == {"anvil": 3, "drill": 1, "mug": 2}
    assert after["mug"].diameter == 0.5
    assert after["drill"].source == "x.ply"
    stored = json.loads((tmp_path / "manifest.json").read_text())
    assert stored["schema_version"] == 1
    assert list(stored["objects"]) == ["drill", "mug", "anvil"]
    assert stored["objects"]["mug"] == {
        "id": 2,
        "colour": list(after["mug"].colour),
        "origin": "cad",
        "diameter": 0.5,
        "source": "",
    }


def test_bop_models_keep_their_numbers_where_free(tmp_path):
    fill(tmp_path, "obj_000002", "obj_000015", "apple", "obj_000000", "bell")
    update_manifest(tmp_path)
    assert ids(tmp_path) == {"apple": 3, "bell": 4, "obj_000000": 1, "obj_000002": 2, "obj_000015": 15}
    fill(tmp_path, "obj_000003")
    update_manifest(tmp_path)
    assert ids(tmp_path)["obj_000003"] == 5


def test_numbers_of_removed_objects_are_not_given_to_others(tmp_path):
    fill(tmp_path, "a", "b", "c")
    update_manifest(tmp_path)
    remove_objects(tmp_path, ["b"])
    assert not (tmp_path / "b.npz").exists()
    fill(tmp_path, "d")
    update_manifest(tmp_path)
    assert ids(tmp_path) == {"a": 1, "c": 3, "d": 4}
    # An archive that was deleted by hand counts as removed; the same name gets its own number again.
    (tmp_path / "a.npz").unlink()
    update_manifest(tmp_path)
    fill(tmp_path, "e", "b", "a")
    update_manifest(tmp_path)
    assert ids(tmp_path) == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}


def test_removing_a_stranger_removes_nothing(tmp_path):
    fill(tmp_path, "a", "b")
    with pytest.raises(UnknownObjectError, match=r"'x'.*a, b"):
        remove_objects(tmp_path, ["a", "x"])
    assert ObjectLibrary(tmp_path).object_ids == ("a", "b")


def test_reading_numbers_what_is_not_listed_without_writing(tmp_path):
    fill(tmp_path, "mug")
    update_manifest(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    fill(tmp_path, "axe", origin="photos", diameter=math.nan)
    read = ObjectLibrary(tmp_path).manifest
    assert (read["axe"].id, read["axe"].origin) == (2, "photos")
    assert math.isnan(read["axe"].diameter)
    assert (tmp_path / "manifest.json").read_bytes() == before
    written = update_manifest(tmp_path)
    assert (written["axe"].id, written["axe"].colour) == (2, read["axe"].colour)
    assert json.loads((tmp_path / "manifest.json").read_text())["objects"]["axe"]["diameter"] is None
    assert math.isnan(ObjectLibrary(tmp_path).manifest["axe"].diameter)


def test_a_library_without_manifest_is_numbered_by_name(tmp_path):
    fill(tmp_path, "b", "a", "obj_000007")
    assert ids(tmp_path) == {"a": 1, "b": 2, "obj_000007": 7}
    assert not (tmp_path / "manifest.json").exists()


def test_a_damaged_archive_keeps_its_number(tmp_path):
    fill(tmp_path, "a", "b")
    update_manifest(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"junk")
    after = update_manifest(tmp_path, ["a"])
    assert (after["a"].id, after["a"].origin) == (1, "")
    assert math.isnan(after["a"].diameter)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ('{"schema_version": 9, "objects": {}}', "schema version 9, not 1"),
        ('{"schema_version": 1, "objects": {"a": {"id": 1}}}', "KeyError: 'colour'"),
        ('{"schema_version": 1, "objects": {}, "retired": {"a": 1, "b": 1}}', "number 1 is given twice"),
        ('{"schema_version": 1, "objects": {}, "retired": {"a": 0}}', "number 0 is below 1"),
        (
            '{"schema_version": 1, "objects": {"a": {"id": 1, "colour": [0, 0, 256], "origin": "cad", '
            '"diameter": 1, "source": ""}}}',
            "not within 0 to 255",
        ),
        (
            '{"schema_version": 1, "objects": {"a": {"id": 1, "colour": [0, 0, Infinity], "origin": "cad", '
            '"diameter": 1, "source": ""}}}',
            "OverflowError",
        ),
    ],
)
def test_a_damaged_manifest_is_an_error_and_is_left_alone(tmp_path, content, reason):
    fill(tmp_path, "a")
    (tmp_path / "manifest.json").write_text(content)
    library = ObjectLibrary(tmp_path)
    assert len(library["a"]) == 1
    with pytest.raises(LibraryError, match=reason) as caught:
        _ = library.manifest
    assert "manifest.json" in str(caught.value)
    with pytest.raises(LibraryError, match=r"damaged|schema version"):
        update_manifest(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == content


def test_an_open_library_follows_the_folder(tmp_path):
    fill(tmp_path, "a", "b")
    library = ObjectLibrary(tmp_path)
    assert library.refresh() == ()
    assert [library.manifest[name].id for name in library] == [1, 2]
    # Without a manifest, and by another process.
    (tmp_path / "a.npz").unlink()
    fill(tmp_path, "c")
    assert library.object_ids == ("a", "b")
    assert library.refresh() == ("a", "c")
    assert library.object_ids == tuple(library) == ("b", "c")
    assert {name: entry.id for name, entry in library.manifest.items()} == {"b": 2, "c": 3}
    assert "a" not in library
    fill(tmp_path, "a", "b", diameter=0.5)
    assert library.refresh() == ("a", "b")
    assert {name: entry.id for name, entry in library.manifest.items()} == {"a": 1, "b": 2, "c": 3}
    assert library.manifest["b"].diameter == library["b"].diameter == 0.5
    update_manifest(tmp_path)
    remove_objects(tmp_path, ["c"])
    fill(tmp_path, "d")
    assert library.refresh() == ("c", "d")
    assert library.manifest["d"].id == 4


def test_a_library_that_cannot_be_refreshed_stays_as_it_was(tmp_path):
    fill(tmp_path, "a")
    library = ObjectLibrary(tmp_path)
    before = library.manifest
    fill(tmp_path, "b")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LibraryError, match=r"manifest\.json: damaged"):
        library.refresh()
    (tmp_path / "manifest.json").unlink()
    for name in "ab":
        (tmp_path / f"{name}.npz").unlink()
    with pytest.raises(LibraryError, match="holds no object"):
        library.refresh()
    assert library.object_ids == ("a",)
    assert library.manifest is before


def test_forty_objects_have_forty_colours(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02d}.npz").write_bytes(b"not read")
    entries = ObjectLibrary(tmp_path).manifest
    colours = np.array([entry.colour for entry in entries.values()], float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2) + 1e3 * np.eye(40)
    assert apart.min() > 12


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """Each of three processes adds archives and updates the manifest after each one."""
    fill(tmp_path, "seed")
    script = (
        "import sys, shutil\nfrom pathlib import Path\nfrom ocdit_core.objects.library import update_manifest\n"
        "folder, letter = Path(sys.argv[1]), sys.argv[2]\n"
        "for number in range(25):\n"
        "    shutil.copy(folder / 'seed.npz', folder / f'{letter}{number:02d}.npz')\n"
        "    update_manifest(folder, [f'{letter}{number:02d}'])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), letter]) for letter in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    stored = json.loads((tmp_path / "manifest.json").read_text())["objects"]
    assert set(stored) == {"seed", *(f"{letter}{number:02d}" for letter in "abc" for number in range(25))}
    assert len({entry["id"] for entry in stored.values()}) == 76
    assert all(entry["origin"] == "cad" for entry in stored.values())
