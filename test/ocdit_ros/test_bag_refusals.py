"""What `ocdit bag` refuses: one line, and nothing is left behind."""

import numpy as np
import pytest
from bags import (
    COMPRESSED,
    IMAGE,
    OURS,
    PIXELS,
    SECOND,
    STRING,
    TIMES,
    compressed,
    image,
    images,
    read_bag,
    run,
    write_bag,
)

from ocdit_ros import bag


def no_bag(folder):
    (folder / "notes.txt").write_text("no bag")
    return folder / "notes.txt"


def killed_folder(folder):
    write_bag(folder / "killed", {"/image": (IMAGE, images())})
    (folder / "killed" / "metadata.yaml").unlink()
    return folder / "killed"


def cut(name, share):
    def make_it(folder):
        path = write_bag(folder / name, {"/image": (IMAGE, images())})
        file = next(path.glob("*.[dm][bc]*")) if path.is_dir() else path
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])
        return path

    return make_it


def flipped(folder):
    path = write_bag(folder / "flipped.mcap", {"/image": (IMAGE, images())})
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd")] ^= 0xFF  # where the compressed chunk begins
    path.write_bytes(data)
    return path


def fewer(folder):
    path = write_bag(folder / "fewer", {"/image": (IMAGE, images())})
    text = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.replace("message_count: 3", "message_count: 4"))
    return path


def unmerged(folder):
    path = write_bag(folder / "unmerged_sqlite3", {"/image": (IMAGE, images())})
    (path / "unmerged_sqlite3.db3-wal").write_bytes(b"messages")
    return path


def bag_of(**topics):
    return lambda folder: write_bag(folder / "bag.mcap", {f"/{name}": content for name, content in topics.items()})


REFUSED = {
    "missing": (lambda folder: folder / "missing.mcap", [], "missing.mcap: no such bag"),
    "text": (no_bag, [], "no bag of ROS 2 (Unrecognized storage format '.txt')"),
    "killed": (killed_folder, [], "holds no metadata.yaml; after a recording that was killed, `ros2 bag reindex`"),
    "cut": (cut("cut.mcap", 0.7), [], "cut.mcap: damaged, cut off, or no bag of ROS 2 (File end magic is invalid.)"),
    "cut by little": (cut("cut.mcap", 0.9999), [], "`mcap recover` saves what is left"),
    "empty": (cut("cut.mcap", 0), [], "seems to be empty"),
    "cut folder": (cut("cut", 0.7), [], "cut: damaged, cut off"),
    "cut database": (cut("cut.db3", 0.7), [], "cut.db3: cut off: "),
    "cut database by little": (cut("cut_sqlite3", 0.9999), [], "cut_sqlite3.db3: cut off: "),
    "empty database": (cut("cut.db3", 0), [], "cut.db3: damaged, cut off"),
    "flipped": (flipped, [], "flipped.mcap: damaged, cut off"),
    "fewer": (fewer, [], "damaged or cut off: 3 of 4 messages are there"),
    "unmerged": (unmerged, [], "messages are left in unmerged_sqlite3.db3-wal; `sqlite3 unmerged_sqlite3.db3 'PRAGMA"),
    "no image": (bag_of(b=(STRING, []), a=(STRING, [])), [], "no topic of images; the topics are /a, /b"),
    "nothing": (bag_of(), [], "no topic of images; the topics are none at all"),
    "two": (bag_of(b=(IMAGE, images()), a=(COMPRESSED, [])), [], "has several topics of images, name one: /a, /b"),
    "wrong": (bag_of(a=(IMAGE, images()), b=(STRING, [])), ["--image-topic", "/b"], "images '/b'; there are /a"),
    "silent": (bag_of(a=(IMAGE, []), b=(IMAGE, images())), ["--image-topic", "/a"], "no image was recorded on /a"),
    "encoding": (bag_of(image=(IMAGE, images(encoding="nv24"))), [], "/image: image encoding 'nv24' is not supported"),
    "depth": (bag_of(image=(IMAGE, images(encoding="16UC1"))), [], "holds depth images only, on /image"),
    "target": (bag_of(image=(IMAGE, images())), ["--targets", "cup"], "unknown object 'cup': the library holds box"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused(place, tmp_path, capsys, case):
    make_it, more, needle = REFUSED[case]
    recorded = make_it(tmp_path)
    assert run(place, recorded, tmp_path / "results" / "out.mcap", *more) == 2
    output = capsys.readouterr()
    assert needle in output.err
    assert len(output.err.splitlines()) == 1
    assert output.err.startswith("ocdit: error: ")
    assert not list(tmp_path.glob("results/*")) + list(tmp_path.glob("results/.*"))


def test_an_earlier_result_is_not_overwritten(place, recorded, tmp_path, capsys):
    (tmp_path / "out.mcap").write_text("precious")
    assert run(place, recorded, tmp_path / "out.mcap") == 2
    assert run(place, recorded, recorded) == 2
    assert capsys.readouterr().err.count("exists already; remove it, or choose another name") == 2
    assert (tmp_path / "out.mcap").read_text() == "precious"


def test_a_folder_that_cannot_be_written_to(place, recorded, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(place, recorded, tmp_path / "file" / "out.mcap") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED])
@pytest.mark.parametrize("bad", [[0], [1], [0, 1]])
def test_damaged_images_are_named_and_counted_and_the_others_are_done(place, tmp_path, capsys, kind, bad):
    messages = images(compressed if kind == COMPRESSED else image)
    for number in bad:
        messages[number].data = messages[number].data[:-100]
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (kind, messages)})
    assert run(place, recorded, tmp_path / "out.mcap") == 2
    output = capsys.readouterr()
    reason = "truncated or damaged" if kind == COMPRESSED else "but 90 rows of step 360 take 32400"
    for line, number in zip(output.err.splitlines(), bad, strict=True):
        assert f"/image: image {number + 1} of 3, recorded at 1700000000.{number}01: " in line
        assert reason in line
    assert f"{3 - len(bad)} images of /image" in output.out
    assert f"; {len(bad)} of 3 left out" in output.out
    stamps = [message.header.stamp.nanosec for _, message in read_bag(tmp_path / "out.mcap")[0][f"{OURS}/detections"]]
    assert stamps == [time % SECOND for number, time in enumerate(TIMES) if number not in bad]


def test_where_no_image_can_be_read_nothing_is_written(place, tmp_path, capsys):
    damaged = [compressed(time, PIXELS[0], damaged=True) for time in TIMES]
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (COMPRESSED, damaged)})
    assert run(place, recorded, tmp_path / "out.mcap") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[-1].endswith("/image: none of the 3 images can be read; nothing is written")
    assert not (tmp_path / "out.mcap").exists()


def test_an_unsupported_encoding_after_good_images_is_left_out(place, tmp_path, capsys):
    messages = images()
    messages[2].encoding = "nonsense"
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, messages)})
    assert run(place, recorded, tmp_path / "out.mcap") == 2
    output = capsys.readouterr()
    assert "image 3 of 3" in output.err
    assert "2 images of /image" in output.out


def test_dark_images_are_warned_about_once(place, tmp_path, capsys):
    dark = [image(time, np.full((90, 120), 3000, np.uint16), "mono16") for time in TIMES]
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, dark)})
    assert run(place, recorded, tmp_path / "out.mcap") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ocdit: warning: image 1: the mono16 image is nearly black")


@pytest.mark.parametrize("compressed_chunks", [True, False])
def test_one_flipped_byte_in_a_chunk_is_noticed(place, tmp_path, capsys, compressed_chunks):
    recorded = write_bag(tmp_path / ("a.mcap" if compressed_chunks else "a"), {"/image": (IMAGE, images())})
    file = recorded if recorded.is_file() else next(recorded.glob("*.mcap"))
    good = file.read_bytes()
    start = good.index(b"(\xb5/\xfd" if compressed_chunks else PIXELS[0][..., ::-1].tobytes()[:64]) + 20
    rng = np.random.default_rng(0)
    for place_of_flip in start + rng.integers(0, 30_000, 12):
        data = bytearray(good)
        data[place_of_flip] ^= 1 << rng.integers(0, 8)
        file.write_bytes(data)
        assert run(place, recorded, tmp_path / "out.mcap") == 2, place_of_flip
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{recorded}: damaged, cut off" in line
        assert not (tmp_path / "out.mcap").exists()


@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_an_interruption_leaves_nothing_behind(place, recorded, tmp_path, monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bag.Results, "write", interrupted)
    assert run(place, recorded, tmp_path / "results" / name) == 130
    assert not list((tmp_path / "results").iterdir())


@pytest.mark.parametrize("kind", ["file", "folder", "a folder of a bag", "link into nothing", "input"])
@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_nothing_of_others_is_replaced(place, tmp_path, capfd, kind, name):
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, images())})
    out = recorded if kind == "input" else tmp_path / name
    if kind == "file":
        out.write_text("mine")
    elif kind == "link into nothing":
        out.symlink_to(tmp_path / "nowhere")
    elif kind != "input":
        out.mkdir()
        (out / "metadata.yaml").write_text("mine")
        (out / f"{out.stem}.mcap").write_text("mine")
    for beside in ("out_0.mcap", "out.mcap.part", "metadata.yaml"):
        (tmp_path / beside).write_text("mine")

    def state():
        return {
            path: (path.lstat().st_mtime_ns, path.is_symlink(), path.is_file() and path.read_bytes())
            for path in tmp_path.rglob("*")
        }

    before = state()
    assert run(place, recorded, out) == 2
    assert "exists already" in capfd.readouterr().err
    assert state() == before


def test_what_lies_beside_a_new_bag_stays(place, tmp_path, capfd):
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, images())})
    (tmp_path / "here").mkdir()
    beside = [tmp_path / "here" / name for name in ("metadata.yaml", "r_0.mcap", "r.db3", "r.json", ".r.part")]
    for path in beside:
        path.write_text("mine")
    for name in ("r.mcap", "r"):
        assert run(place, recorded, tmp_path / "here" / name) == 0
    assert all(path.read_text() == "mine" for path in beside)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {path.name for path in beside} | {"r.mcap", "r"}
