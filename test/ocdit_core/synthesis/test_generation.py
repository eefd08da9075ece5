"""Synthesised datasets: the same whoever makes them and however often they are killed, and true to what they show."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.shards import ShardDataset
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.files import OWN_FILES
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.meshes import read_cad
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings, tasks_of, views_of_scenes
from ocdit_core.synthesis.sources import write_split
from ocdit_core.workers import LocalEngine

SMALL = {
    "images": 9,
    "objects": 6,
    "size": (96, 128),
    "targets": (2, 4),
    "distractors": (0, 1),
    "views": (2, 3),
    "scenes_a_shard": 2,
}
COMMAND = [sys.executable, "-m", "ocdit_core.cli", "synthesize", "--images", "9", "--objects", "6"]
COMMAND += ["--size", "96", "128", "--targets", "2", "4", "--distractors", "0", "1", "--views-per-scene", "2", "3"]
COMMAND += ["--scenes-per-shard", "2"]


def small(**changes):
    return SynthesisSettings(**{**SMALL, **changes})


def files_of(folder):
    """Digest of every file by its path, locks aside."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "lock" not in path.name and path.name != OWN_FILES
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small dataset in both layouts, made by one process."""
    out = tmp_path_factory.mktemp("synthesised") / "made"
    synthesize(out, small(format="both"), jobs=1)
    return out


def test_the_plan_makes_exactly_the_images_asked_for():
    for images in (1, 2, 9, 10, 57, 1000):
        settings = small(images=images)
        views = views_of_scenes(settings)
        assert sum(views) == images
        assert all(2 <= count <= 3 for count in views[:-1])
        for name in ("bop", "shards"):
            tasks = tasks_of(small(images=images, format=name))
            assert [scene for task in tasks for scene in task.scenes] == list(range(len(views)))
            assert [count for task in tasks for count in task.views] == list(views)
    assert views_of_scenes(small(images=1000)) != views_of_scenes(small(images=1000, seed=1))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": 0}, "images: 0"),
        ({"objects": 0}, "--objects"),
        ({"targets": (4, 2)}, "targets: 4 2"),
        ({"views": (0, 2)}, "views: 0 2"),
        ({"format": "tfrecord"}, "bop, shards, both"),
        ({"part": "test"}, "split file"),
        ({"path_traced": 1.5}, "path_traced: 1.5"),
        ({"repeats": -0.1}, "repeats: -0.1"),
        ({"bop_split": "../test"}, "bop_split: '../test'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        small(**changes)


def test_a_folder_keeps_its_plan(made):
    for changes, said in (
        ({"targets": (2, 3)}, "begun with settings.targets.1 4, not 3"),
        ({"seed": 5}, "begun with settings.seed 0, not 5"),
        ({"objects": 7}, "settings.objects 6, not 7"),
    ):
        with pytest.raises(DataError, match=said):
            synthesize(made, small(format="both", **changes), jobs=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"thesis\.txt but no plan\.json"):
        synthesize(tmp_path, small(), jobs=1)
    assert not (tmp_path / "plan.json").exists()


def test_both_layouts_hold_the_same(made):
    folder, shards = BopFolder(made, "train_pbr"), list(ShardDataset(made / "train_pbr_web").frames())
    assert len(folder) == len(shards) == 9
    for frame, other in zip((folder[i] for i in range(9)), shards, strict=True):
        assert other.key == frame.key.replace("/", "_")
        np.testing.assert_array_equal(frame.image(), other.image())
        np.testing.assert_array_equal(frame.depth(), other.depth())
        assert len(frame.annotations) == len(other.annotations) >= 2
        for index, (mine, its) in enumerate(zip(frame.annotations, other.annotations, strict=True)):
            assert (mine.object_id, mine.box_visible, mine.box_object) == (
                its.object_id,
                its.box_visible,
                its.box_object,
            )
            for visible in (True, False):
                np.testing.assert_array_equal(frame.mask(index, visible=visible), other.mask(index, visible=visible))
    keys = json.loads((made / "train_pbr_web" / "key_to_shard.json").read_text())
    assert sorted(keys) == [frame.key for frame in shards]


def test_models_in_their_poses_lie_where_masks_and_depth_say(made):
    """The model that was written, through the pose that was written, is what the image shows."""
    frames = BopFolder(made, "train_pbr")
    checked = 0
    for frame in (frames[i] for i in range(len(frames))):
        depth = frame.depth()
        for index, item in enumerate(frame.annotations):
            if not item.visible_fraction > 0.6 or frame.mask(index).sum() < 60:
                continue
            mesh = read_cad(made / "models" / f"obj_{item.object_id:06d}.ply", "mm").mesh
            points, _ = trimesh.sample.sample_surface(mesh, 4000, seed=0)
            points = points @ item.rotation.T + item.translation
            uv = points @ frame.K.T
            columns, rows = np.floor(uv[:, :2] / uv[:, 2:]).astype(int).T
            inside = (columns >= 0) & (rows >= 0) & (columns < 128) & (rows < 96)
            columns, rows, points = columns[inside], rows[inside], points[inside]
            # Each is within the other; a point on the rim may be a pixel beside.
            whole = frame.mask(index, visible=False).astype(np.uint8)
            assert cv2.dilate(whole, np.ones((3, 3)))[rows, columns].mean() > 0.995
            drawn = np.zeros_like(whole)
            drawn[rows, columns] = 1
            assert cv2.dilate(drawn, np.ones((3, 3)))[whole > 0].mean() > 0.995
            # Where it is seen, it is as far away as the depth map says, or it is the object's far side.
            seen = frame.mask(index)[rows, columns]
            behind = points[seen, 2] - depth[rows[seen], columns[seen]]
            assert (behind > -0.012).mean() > 0.93
            assert (np.abs(behind) < 0.012).mean() > 0.2
            checked += 1
    assert checked >= 8


def test_ids_name_models_and_templates(made):
    objects = json.loads((made / "objects.json").read_text())
    assert objects == {"objects": {str(i + 1): f"procedural_{i:09d}" for i in range(6)}, "skipped": {}}
    library = ObjectLibrary(made / "templates")
    assert {name: entry.id for name, entry in library.manifest.items()} == {f"obj_{i:06d}": i for i in range(1, 7)}
    info = json.loads((made / "models" / "models_info.json").read_text())
    assert sorted(info, key=int) == [str(i) for i in range(1, 7)]
    used = {item.object_id for i in range(9) for item in BopFolder(made, "train_pbr")[i].annotations}
    assert used <= set(range(1, 7))
    assert len(used) >= 4


def test_the_description_tells_what_is_there(made):
    text = (made / "README.md").read_text()
    assert "| images | 9 of 128 x 96, 0% of them path-traced |" in text
    assert "| objects | 6: procedural ones; 0 left out |" in text


def test_several_processes_make_the_same_files(made, tmp_path):
    done = synthesize(tmp_path / "two", small(format="both"), jobs=2)
    assert (done.images, done.there, done.missing) == (9, 0, 0)
    assert files_of(tmp_path / "two") == files_of(made)
    again = synthesize(tmp_path / "two", small(format="both"), jobs=2)
    assert (again.images, again.there, again.missing) == (0, 9, 0)
    assert files_of(tmp_path / "two") == files_of(made)


def test_another_seed_makes_other_scenes(made, tmp_path):
    synthesize(tmp_path / "other", small(format="bop", seed=1), jobs=1)
    ours, others = BopFolder(made, "train_pbr")[0], BopFolder(tmp_path / "other", "train_pbr")[0]
    assert not np.array_equal(ours.image(), others.image())


def test_shares_make_one_dataset(made, tmp_path):
    out = tmp_path / "shared"
    first = synthesize(out, small(format="both"), jobs=1, shard=(1, 2))
    assert first.missing == 9 - first.images > 0
    assert not (out / "README.md").exists()
    second = synthesize(out, small(format="both"), jobs=1, shard=(0, 2))
    assert second.missing == 0
    assert files_of(out) == files_of(made)
    with pytest.raises(ConfigError, match="0/2 to 1/2"):
        synthesize(out, small(format="both"), jobs=1, shard=(2, 2))


def test_what_was_lost_is_made_again_and_the_rest_stays(made, tmp_path):
    """A shard and a scene that vanished, and the litter of a killed process."""
    out = tmp_path / "damaged"
    synthesize(out, small(format="both"), jobs=1)
    shards = sorted((out / "train_pbr_web").glob("*.tar"))
    kept = shards[1].stat().st_mtime_ns, shards[1].stat().st_ino
    shards[0].unlink()
    (out / "train_pbr_web" / ".0123456789abcdef.part.tar").write_bytes(b"half a shard")
    (out / "train_pbr" / ".part-000001-abcd" / "rgb").mkdir(parents=True)
    synthesize(out, small(format="both"), jobs=1)
    assert files_of(out) == files_of(made)
    assert (shards[1].stat().st_mtime_ns, shards[1].stat().st_ino) == kept


def test_two_runs_do_not_write_one_folder(tmp_path):
    out = tmp_path / "busy"
    running = subprocess.Popen([*COMMAND, "--out", str(out), "--jobs", "1"], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (out / "plan.json").exists(), running)
        with pytest.raises(DataError, match="written by another run"):
            synthesize(out, small(), jobs=1)
    finally:
        running.kill()
        running.wait()


def test_killed_at_any_instant_it_ends_with_the_same_files(made, tmp_path):
    """Real processes, killed by SIGKILL after ever other times, until one comes to the end."""
    out = tmp_path / "killed"
    command = [*COMMAND, "--format", "both", "--out", str(out), "--jobs", "2"]
    instants = random.Random(5)
    states = []
    for attempt in range(40):
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            # Something new first, so that every run comes further, then anywhere.
            before = count_files(out)
            wait_for(lambda before=before: count_files(out) > before, running)
            running.wait(timeout=instants.uniform(0.0, 0.8) if attempt < 4 else 300)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
        errors = running.communicate()[1]
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, errors
        states.append(count_files(out))
    assert running.returncode == 0
    assert len(states) >= 2, "it was never broken off"
    assert files_of(out) == files_of(made)


def test_a_worker_that_is_killed_costs_its_task_only(made, tmp_path, caplog):
    out = tmp_path / "worker"

    class Killing(LocalEngine):
        def __call__(self, opener, tasks):
            yield from super().__call__(partial(killed_once, opener, tmp_path / "killed"), tasks)

    synthesize(out, small(format="bop"), jobs=2, engine=Killing(2))
    assert (tmp_path / "killed").exists()
    assert "scene 1: its process was killed by signal 9" in caplog.text
    assert files_of(out / "train_pbr") == files_of(made / "train_pbr")


@contextmanager
def killed_once(opener, mark):
    """Work whose process ends in the middle of scene 1, the first time."""
    with opener() as work:

        def do(task):
            if getattr(task, "scenes", None) == (1,) and not mark.exists():
                mark.touch()
                threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return work(task)

        yield do


def test_unreadable_meshes_are_named_and_left_out(tmp_path, caplog):
    meshes = tmp_path / "cad"
    (meshes / "sub").mkdir(parents=True)
    for number, size in enumerate((0.05, 0.08, 0.1, 0.12)):
        trimesh.creation.box((size, 0.08, 0.06)).export(meshes / f"box_{number}.ply")
    trimesh.creation.icosphere(radius=0.05).export(meshes / "sub" / "ball.stl")
    (meshes / "cut.glb").write_bytes(b"glTF\x02\x00\x00\x00")
    (meshes / "empty.off").write_text("OFF\n0 0 0\n")
    done = synthesize(tmp_path / "out", small(images=3, objects=0, meshes=str(meshes)), jobs=1)
    assert (done.objects, done.skipped, done.images) == (5, 2, 3)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 2
    assert "cut.glb" in lines[0]
    assert "empty.off" in lines[1]
    objects = json.loads((tmp_path / "out" / "objects.json").read_text())
    # Numbers are places among all of them, so that they stay when a file is mended in another dataset.
    assert objects["objects"] == {"1": "box_0", "2": "box_1", "3": "box_2", "4": "box_3", "7": "sub/ball"}
    assert sorted(objects["skipped"]) == ["cut", "empty"]


def test_objects_for_test_never_enter_training(tmp_path):
    names = [f"procedural_{i:09d}" for i in range(10)]
    write_split(tmp_path / "split.json", {"train": names[:6], "test": names[6:]})
    split = {"objects": 10, "images": 4, "split": str(tmp_path / "split.json")}
    synthesize(tmp_path / "train", small(**split), jobs=1)
    synthesize(tmp_path / "test", small(**split, part="test", targets=(2, 3)), jobs=1)
    used = {}
    for part in ("train", "test"):
        objects = json.loads((tmp_path / part / "objects.json").read_text())["objects"]
        frames = BopFolder(tmp_path / part, "train_pbr")
        used[part] = {objects[str(i.object_id)] for n in range(len(frames)) for i in frames[n].annotations}
    assert used["train"] <= set(names[:6])
    assert used["test"] <= set(names[6:])


def test_too_few_objects_are_noticed_before_the_first_scene(tmp_path):
    with pytest.raises(ConfigError, match="4 targets and 1 distractors, and there are 4"):
        synthesize(tmp_path, small(objects=4), jobs=1)


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def count_files(folder):
    return sum(path.is_file() and path.name != OWN_FILES for path in Path(folder).rglob("*"))
