import hashlib
import itertools
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from painted import paint, write_library

from ocdit_core.data import shards, streaming
from ocdit_core.data.bop import BopFolder, FolderStream
from ocdit_core.data.sampling import SampleSettings
from ocdit_core.data.shards import ShardDataset, ShardStream
from ocdit_core.data.streaming import SkipCounter, Source, TrainingLoader, TrainingStream
from ocdit_core.data.templates import TemplateCache
from ocdit_core.data.writers import shard_path, write_scene, write_shard
from ocdit_core.errors import ConfigError, DataError
from ocdit_core.objects.library import ObjectLibrary

SETTINGS = SampleSettings(objects=2, views=2, image_size=(48, 64), template_size=16)
FRAMES = 10  # of the folder; three shards hold 4 each
BLOCK = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """folder/: a BOP folder; shards/: other pictures; objects/: their library."""
    path = tmp_path_factory.mktemp("mixing")
    write_library(path / "objects", views=3)
    write_scene(path / "folder", "train", 0, [paint(seed) for seed in range(FRAMES)])
    for number in range(3):
        keyed = [(f"{number:06d}_{i:06d}", paint(100 + 10 * number + i)) for i in range(4)]
        write_shard(shard_path(path / "shards", number), keyed)
    return path


def make_stream(data, **options):
    templates = TemplateCache(ObjectLibrary(data / "objects"), size=SETTINGS.template_size)
    sources = [
        Source(frames=BopFolder(data / "folder", "train"), templates=templates, weight=1.0),
        Source(frames=ShardDataset(data / "shards"), templates=templates, weight=2.0),
    ]
    return TrainingStream(sources, SETTINGS, **{"seed": 3, **options})


def digest(batch):
    content = hashlib.sha256()
    for name in sorted(batch):
        content.update(batch[name].numpy().tobytes())
    return content.hexdigest()


def digests(loader, count):
    return [digest(batch) for batch in itertools.islice(loader, count)]


def keys(stream, count):
    return [stream.take().key for _ in range(count)]


def never(error):
    raise AssertionError(error)


def shard_stream(data, index, streams, on_error=never):
    dataset = ShardDataset(data / "shards")
    return ShardStream(dataset, on_error=on_error, seed=[3], index=index, streams=streams)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_streams_share_a_folder_and_each_epoch_has_every_frame_once(data, streams):
    frames = BopFolder(data / "folder", "train")
    parts = [FolderStream(frames, seed=[3], index=i, streams=streams) for i in range(streams)]
    sizes = [len(range(i, FRAMES, streams)) for i in range(streams)]
    first, second = ([keys(p, n) for p, n in zip(parts, sizes, strict=True)] for _ in range(2))
    everything = sorted(frame.key for frame in frames)
    assert sorted(key for part in first for key in part) == everything
    assert sorted(key for part in second for key in part) == everything
    assert first != second


def test_more_streams_than_frames_share_them(data):
    frames = BopFolder(data / "folder", "train")
    parts = [FolderStream(frames, seed=[3], index=i, streams=25) for i in range(25)]
    assert len({keys(part, 3)[0] for part in parts}) == FRAMES


@pytest.mark.parametrize("streams", [1, 2, 3, 5])
def test_streams_share_shards_and_each_epoch_has_every_frame_once(data, streams, monkeypatch):
    """With blocks of one frame the position tells the epoch, up to a frame: a shard's end is known when it is read."""
    monkeypatch.setattr(shards, "BLOCK", 1)
    parts = [shard_stream(data, i, streams) for i in range(streams)]
    counts = Counter()
    for part in parts:
        while part.position[0] == 0:
            counts[part.take().key] += 1
    assert set(counts) == {f"{n:06d}_{i:06d}" for n in range(3) for i in range(4)}
    assert sum(counts.values()) - 12 <= streams


def test_blocks_mix_the_shards_neighbours(data, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 12)
    order = keys(shard_stream(data, 0, 1), 12)
    assert len(set(order)) == 12
    neighbours = [a[:6] == b[:6] for a, b in itertools.pairwise(order)]
    assert sum(neighbours) < 8  # unshuffled shards have 9


@pytest.mark.parametrize("taken", [0, 1, 4, 5, 6, 11, 12, 13, 17, 40])
def test_a_shard_stream_goes_on_at_any_place(data, taken):
    stream = shard_stream(data, 1, 2)
    keys(stream, taken)
    other = shard_stream(data, 1, 2)
    other.position = stream.position
    assert keys(other, 20) == keys(stream, 20)


def test_a_truncated_shard_is_reported_once_and_the_rest_is_read(data, tmp_path):
    shutil.copytree(data / "shards", tmp_path / "shards")
    damaged = shard_path(tmp_path / "shards", 1)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    errors = []
    stream = shard_stream(tmp_path, 0, 1, errors.append)
    seen, positions = [], []
    while stream.position[0] < 2:
        positions.append(stream.position)
        seen.append(stream.take().key)
    assert {key[:6] for key in seen} == {"000000", "000001", "000002"}
    assert 4 + 4 < len(set(seen)) < 12
    assert 2 <= len(errors) <= 3  # each epoch, and a block may reach into the third
    assert all("shard-000001.tar" in str(error) for error in errors)
    for number, position in enumerate(positions):
        again = shard_stream(tmp_path, 0, 1, lambda error: None)
        again.position = position
        assert keys(again, len(seen) - number) == seen[number:]


def test_shards_without_a_frame_end_the_stream(data, tmp_path):
    (tmp_path / "shards").mkdir()
    for number in range(2):
        shard_path(tmp_path / "shards", number).write_bytes(b"no tar")
    shutil.copytree(data / "objects", tmp_path / "objects")
    templates = TemplateCache(ObjectLibrary(tmp_path / "objects"), size=16)
    stream = TrainingStream([Source(frames=ShardDataset(tmp_path / "shards"), templates=templates)], SETTINGS)
    with pytest.raises(DataError, match="none of the shards holds a complete frame"):
        next(iter(stream))


def test_data_sets_are_mixed_by_their_weights(data):
    """The position of each says how many frames were taken of it."""
    loader = TrainingLoader(make_stream(data), batch_size=4)
    digests(loader, 60)
    draws, skipped, *numbers = loader.state_dict()["positions"][0]
    epoch, at = numbers[:2]
    assert (draws, skipped) == (240, 0)
    assert (epoch * FRAMES + at) / draws == pytest.approx(1 / 3, abs=0.08)


def test_the_seed_the_rank_and_the_worker_decide_what_is_drawn(data):
    def first(**options):
        return [digest(sample) for sample in itertools.islice(make_stream(data, **options), 4)]

    assert first() == first()
    assert not set(first()) & set(first(seed=4))
    assert not set(first(rank=0, world=2)) & set(first(rank=1, world=2))
    batches = digests(TrainingLoader(make_stream(data), batch_size=1, workers=2), 8)
    assert len(set(batches)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_same_remaining_samples(data, workers):
    """At any batch, whatever the workers have read ahead; epochs of both data sets end in between."""
    whole = digests(TrainingLoader(make_stream(data), batch_size=2, workers=workers), 24)
    for stop in [1, 2, 7, 12]:
        interrupted = TrainingLoader(
            make_stream(data), batch_size=2, workers=workers, prefetch_factor=4 if workers else None
        )
        assert digests(interrupted, stop) == whole[:stop]
        # What a checkpoint keeps.
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = TrainingLoader(make_stream(data), batch_size=2, workers=workers)
        resumed.load_state_dict(state)
        assert digests(resumed, 24 - stop) == whole[stop:]


def test_a_loader_goes_on_where_its_last_loop_ended(data):
    whole = digests(TrainingLoader(make_stream(data), batch_size=2, workers=2), 9)
    loader = TrainingLoader(make_stream(data), batch_size=2, workers=2)
    assert digests(loader, 4) + digests(loader, 5) == whole


RUN = """
import itertools, sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_streaming import BLOCK, digest, make_stream
from ocdit_core.data import shards
from ocdit_core.data.streaming import TrainingLoader
from ocdit_core.files import replacing

if __name__ == "__main__":
    shards.BLOCK = BLOCK
    data, checkpoint, count = Path({data!r}), Path({checkpoint!r}), {count}
    loader = TrainingLoader(make_stream(data), batch_size=2, workers={workers})
    if checkpoint.exists():
        loader.load_state_dict(torch.load(checkpoint, weights_only=True))
    for batch in itertools.islice(loader, count):
        print(digest(batch), flush=True)
        with replacing(checkpoint) as temporary:
            torch.save(loader.state_dict(), temporary)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_process_leaves_a_state_that_goes_on_exactly(data, tmp_path, workers):
    """SIGKILL in the middle of its loop: after the batch of the last checkpoint, the very next one follows."""

    def run(count):
        values = {"tests": str(Path(__file__).parent), "data": str(data), "checkpoint": str(tmp_path / "state.pt")}
        code = RUN.format(count=count, workers=workers, **values)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    whole = digests(TrainingLoader(make_stream(data), batch_size=2, workers=workers), 40)
    process = run(10**6)
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    consumed = torch.load(tmp_path / "state.pt", weights_only=True)["batches"]
    assert 4 <= consumed < 30
    resumed = run(8)
    out, _ = resumed.communicate(timeout=60)
    assert resumed.returncode == 0
    assert out.split() == whole[consumed : consumed + 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_frames_are_skipped_and_counted(data, tmp_path, workers, caplog, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_SKIPPED", 0.3)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    scene = tmp_path / "folder" / "train" / "000000"
    (scene / "rgb" / "000003.jpg").write_bytes((scene / "rgb" / "000003.jpg").read_bytes()[:900])
    loader = TrainingLoader(make_stream(tmp_path), batch_size=2, workers=workers)
    digests(loader, 60)
    assert 1 <= loader.skipped <= 12
    resumed = TrainingLoader(make_stream(tmp_path), batch_size=2, workers=workers)
    resumed.load_state_dict(loader.state_dict())
    assert digests(resumed, 6) == digests(loader, 6)
    assert resumed.skipped == loader.skipped
    if workers == 0:
        assert "000003.jpg" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_frames_stop_with_one_line(data, tmp_path, workers):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "folder" / "train" / "000000" / "mask_visib").glob("*.png"):
        path.unlink()
    loader = TrainingLoader(make_stream(tmp_path), batch_size=2, workers=workers)
    with pytest.raises(DataError, match=r"^\d+ of \d+ samples cannot be used \(missing mask \d+\)") as caught:
        digests(loader, 300)
    assert "\n" not in str(caught.value)


def test_damaged_templates_are_skipped_with_their_name(data, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_SKIPPED", 1.0)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    (tmp_path / "objects" / "obj_000002.npz").write_bytes(b"PK nothing")
    loader = TrainingLoader(make_stream(tmp_path), batch_size=2)
    for batch in itertools.islice(loader, 30):
        assert not (batch["object_ids"] == 2).any()
    assert loader.skipped > 0
    assert "obj_000002.npz" in caplog.text


def test_frames_that_show_nothing_end_the_stream(data, tmp_path):
    path = tmp_path / "folder"
    write_scene(path, "train", 0, [paint(0, [])])
    templates = TemplateCache(ObjectLibrary(data / "objects"), size=16)
    stream = TrainingStream([Source(frames=BopFolder(path, "train"), templates=templates)], SETTINGS)
    with pytest.raises(DataError, match="1000 frames in a row show no object"):
        next(iter(stream))


def test_a_state_of_another_run_is_refused(data):
    loader = TrainingLoader(make_stream(data), batch_size=2)
    digests(loader, 2)
    with pytest.raises(ConfigError, match="seed: the data was saved with 3, now it is 9"):
        TrainingLoader(make_stream(data, seed=9), batch_size=2).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (1, 2)])
def test_another_division_continues_in_a_new_order_and_resumes_exactly(data, world, workers):
    loader = TrainingLoader(make_stream(data), batch_size=2)
    old = digests(loader, 8)

    def continued(state):
        other = TrainingLoader(make_stream(data, world=world), batch_size=2, workers=workers)
        other.load_state_dict(state)
        return other

    first = continued(loader.state_dict())
    begin = digests(first, 3)
    assert not set(begin) & set(old)
    resumed = continued(first.state_dict())
    assert digests(first, 2) == digests(resumed, 2)


def test_what_does_not_fit_together_is_refused_at_once(data):
    library = ObjectLibrary(data / "objects")
    frames = BopFolder(data / "folder", "train")
    with pytest.raises(ConfigError, match="weights"):
        TrainingStream([], SETTINGS)
    with pytest.raises(ConfigError, match="weights"):
        TrainingStream([Source(frames=frames, templates=TemplateCache(library, size=16), weight=0)], SETTINGS)
    with pytest.raises(ConfigError, match="template_size: 16 wanted"):
        TrainingStream([Source(frames=frames, templates=TemplateCache(library, size=32))], SETTINGS)
    many = SampleSettings(objects=11, image_size=(48, 64), template_size=16)
    with pytest.raises(ConfigError, match="objects: samples ask for 11"):
        TrainingStream([Source(frames=frames, templates=TemplateCache(library, size=16))], many)
    with pytest.raises(ConfigError, match="rank: 2"):
        make_stream(data, rank=2, world=2)


def test_worker_processes_leave_with_the_loop(data):
    batches = iter(TrainingLoader(make_stream(data), batch_size=2, workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) >= 2
    batches.close()
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_few_skips_are_counted_and_many_stop(caplog):
    counter = SkipCounter()
    counter.used += 97
    for number in range(4):
        counter.skip(DataError(f"file {number}", kind="missing mask"))
    assert counter.skipped == {"missing mask": 4}
    assert caplog.text.count("skipped") == 1
    assert "file 0" in caplog.text
    counter.skip(DataError("other", kind="depth scale"))
    assert "other" in caplog.text
    with pytest.raises(DataError, match=r"6 of 103 .*missing mask 4, depth scale 2\), more than the 5%.*: last"):
        counter.skip(DataError("last", kind="depth scale"))


def test_few_samples_are_not_judged():
    counter = SkipCounter()
    for _ in range(99):
        counter.skip(DataError("x"))
    with pytest.raises(DataError, match="100 of 100"):
        counter.skip(DataError("x"))
