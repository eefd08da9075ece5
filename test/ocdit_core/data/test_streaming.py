import gc
import hashlib
import itertools
import multiprocessing
import shutil
import time
from collections import Counter

import pytest
from painted import paint, write_library

from ocdit_core.data import streaming
from ocdit_core.data.bop import BopFolder
from ocdit_core.data.sampling import SampleSettings
from ocdit_core.data.shards import ShardDataset
from ocdit_core.data.streaming import Source, TrainingSamples, load_batches
from ocdit_core.data.templates import TemplateCache
from ocdit_core.data.writers import shard_path, write_scene, write_shard
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.library import ObjectLibrary

SETTINGS = SampleSettings(objects=2, views=2)
FRAMES = 10  # of the folder; three shards hold 4 each


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """folder/: a BOP folder; shards/: other images; objects/: their library."""
    path = tmp_path_factory.mktemp("mixing")
    write_library(path / "objects", views=3)
    write_scene(path / "folder", "train", 0, [paint(seed) for seed in range(FRAMES)])
    for number in range(3):
        keyed = [(f"{number:06d}_{i:06d}", paint(100 + 10 * number + i)) for i in range(4)]
        write_shard(shard_path(path / "shards", number), keyed)
    return path


def make_samples(data, *, settings=SETTINGS, weights=(1.0, 2.0), **options):
    templates = TemplateCache(ObjectLibrary(data / "objects"), size=16)
    frames = (BopFolder(data / "folder", "train"), ShardDataset(data / "shards"))
    sources = [Source(frames=f, templates=templates, weight=w) for f, w in zip(frames, weights, strict=True) if w]
    return TrainingSamples(sources, settings, mode="coarse", image_size=(48, 64), **{"seed": 3, **options})


def digest(batch):
    content = hashlib.sha256()
    for name in sorted(batch):
        content.update(batch[name].numpy().tobytes())
    return content.hexdigest()


def digests(batches, count):
    return [digest(batch) for batch in itertools.islice(batches, count)]


def test_each_epoch_of_a_folder_has_every_frame_once(data):
    frames = BopFolder(data / "folder", "train")
    first, second = ([frames.draw([3], FRAMES * epoch + i).key for i in range(FRAMES)] for epoch in range(2))
    assert sorted(first) == sorted(second) == sorted(frame.key for frame in frames)
    assert first != second
    assert [BopFolder(data / "folder", "train").draw([3], i).key for i in range(FRAMES)] == first
    assert [frames.draw([4], i).key for i in range(FRAMES)] != first


def test_each_shard_is_drawn_from_in_turn_and_all_its_frames_come(data):
    dataset = ShardDataset(data / "shards")
    keys = [dataset.draw([3], number).key for number in range(90)]
    assert all(len({key[:6] for key in keys[i : i + 3]}) == 3 for i in range(0, 90, 3))
    assert set(keys) == {f"{n:06d}_{i:06d}" for n in range(3) for i in range(4)}
    assert [ShardDataset(data / "shards").draw([3], number).key for number in (0, 50)] == [keys[0], keys[50]]


def test_a_drawn_frame_of_a_shard_is_whole(data):
    dataset = ShardDataset(data / "shards")
    expected = {frame.key: frame for frame in dataset}
    for number in range(12):
        frame = dataset.draw([3], number)
        assert (frame.image() == expected[frame.key].image()).all()
        assert (frame.mask(0) == expected[frame.key].mask(0)).all()


def test_of_a_truncated_shard_the_complete_frames_are_used(data, tmp_path, caplog):
    shutil.copytree(data / "shards", tmp_path / "shards")
    damaged = shard_path(tmp_path / "shards", 1)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    dataset = ShardDataset(tmp_path / "shards")
    drawn = [dataset.draw([3], number) for number in range(60)]
    assert 4 + 4 < len({frame.key for frame in drawn}) < 12
    assert all(frame.image().shape == (240, 320, 3) for frame in drawn)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [str(damaged)]


def test_a_shard_without_a_frame_is_an_error(data, tmp_path):
    (tmp_path / "shard-000000.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="holds no complete frame"):
        ShardDataset(tmp_path).draw([3], 0)


def test_datasets_are_mixed_by_their_weights(data, monkeypatch):
    counts = Counter()
    for dataset in (BopFolder, ShardDataset):
        draw = dataset.draw
        monkeypatch.setattr(
            dataset, "draw", lambda self, *a, draw=draw: counts.update([type(self).__name__]) or draw(self, *a)
        )
    samples = make_samples(data)
    for number in range(240):
        samples[number]
    assert counts["BopFolder"] / counts.total() == pytest.approx(1 / 3, abs=0.08)


def test_a_sample_depends_on_the_seed_and_its_number_alone(data):
    samples = make_samples(data)
    first = [digest(samples[number]) for number in range(6)]
    assert len(set(first)) == 6
    assert [digest(make_samples(data)[number]) for number in (5, 0)] == [first[5], first[0]]
    assert not {digest(make_samples(data, seed=4)[number]) for number in range(6)} & set(first)


def test_batches_do_not_depend_on_workers_and_processes_and_continue_anywhere(data):
    whole = digests(load_batches(make_samples(data), 2), 8)
    assert digests(load_batches(make_samples(data), 2, workers=2), 8) == whole
    assert digests(load_batches(make_samples(data), 2, start=5), 3) == whole[5:]
    parts = [digests(load_batches(make_samples(data), 2, rank=rank, world=2, start=1), 3) for rank in (0, 1)]
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole[2:]
    assert digests(load_batches(make_samples(data), 4), 2) != whole[:2]
    large = list(itertools.islice(load_batches(make_samples(data), 4), 2))
    assert digest({name: value[2:] for name, value in large[1].items()}) == whole[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_frames_are_replaced_and_logged(data, tmp_path, workers, caplog, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_SKIPPED", 0.3)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    scene = tmp_path / "folder" / "train" / "000000"
    (scene / "rgb" / "000003.jpg").write_bytes((scene / "rgb" / "000003.jpg").read_bytes()[:900])
    samples = make_samples(tmp_path)
    changed = digests(load_batches(samples, 2, workers=workers), 40)
    whole = digests(load_batches(make_samples(data), 2), 40)
    assert 1 <= sum(one != other for one, other in zip(changed, whole, strict=True)) <= 10
    if workers == 0:
        assert samples.skipped.total() >= 1
        assert caplog.text.count("000003.jpg") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_frames_stop_with_one_line(data, tmp_path, workers):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "folder" / "train" / "000000" / "mask_visib").glob("*.png"):
        path.unlink()
    batches = load_batches(make_samples(tmp_path), 2, workers=workers)
    with pytest.raises(DataError, match=r"^\d+ of \d+ samples cannot be used \(missing mask \d+\)") as caught:
        digests(batches, 300)
    assert "\n" not in str(caught.value)


def test_damaged_templates_are_skipped_with_their_name(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_SKIPPED", 1.0)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "objects" / "obj_000002.npz").write_bytes(b"PK nothing")
    samples = make_samples(tmp_path)
    for number in range(30):
        assert 2 not in samples[number]["object_ids"]
    assert samples.skipped["damaged templates"] > 0
    assert "obj_000002.npz" in caplog.text


def test_frames_that_show_nothing_end_the_run(data, tmp_path):
    path = tmp_path / "folder"
    write_scene(path, "train", 0, [paint(0, [])])
    shutil.copytree(data / "objects", tmp_path / "objects")
    shutil.copytree(data / "shards", tmp_path / "shards")
    with pytest.raises(DataError, match="1000 frames in a row show no object"):
        make_samples(tmp_path, weights=(1, 0))[0]


def test_what_does_not_fit_together_is_refused_at_once(data):
    with pytest.raises(ConfigError, match="weights"):
        make_samples(data, weights=(0, 0))
    with pytest.raises(ConfigError, match="weights"):
        make_samples(data, weights=(1, -1))
    with pytest.raises(ConfigError, match="objects: samples ask for 11"):
        make_samples(data, settings=SampleSettings(objects=11))


def test_worker_processes_leave_with_the_loop(data):
    batches = load_batches(make_samples(data), 2, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) >= 2
    batches.close()
    deadline = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < deadline:
        gc.collect()  # a traceback of an earlier test may hold the loader
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_few_skips_are_counted_and_many_stop(data, caplog):
    samples = make_samples(data)
    samples.used += 97
    for number in range(4):
        samples._skip(DataError(f"file {number}", kind="missing mask"))
    assert samples.skipped == {"missing mask": 4}
    assert caplog.text.count("skipped") == 1
    assert "file 0" in caplog.text
    samples._skip(DataError("other", kind="depth scale"))
    assert "other" in caplog.text
    with pytest.raises(DataError, match=r"6 of 103 .*missing mask 4, depth scale 2\), more than the 5%.*: last"):
        samples._skip(DataError("last", kind="depth scale"))
