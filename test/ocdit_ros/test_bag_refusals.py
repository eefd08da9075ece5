"""What `ocdit bag` refuses: one line, and nothing is left behind."""

import pytest
from bags import (
    COMPRESSED,
    IMAGE,
    OURS,
    PICTURES,
    SECOND,
    START,
    STRING,
    TIMES,
    compressed,
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
    "encoding": (bag_of(image=(IMAGE, images(encoding="8UC3"))), [], "/image: image encoding '8UC3' is not supported"),
    "damaged": (bag_of(a=(COMPRESSED, [compressed(START, PICTURES[0], damaged=True)])), [], "truncated or damaged"),
    "copy": (bag_of(image=(IMAGE, images())), ["--copy", "/tf"], "no topic '/tf' to copy; there are /image"),
    "own": (
        bag_of(image=(IMAGE, images()), **{"ocdit_segmentation/overlay": (STRING, [])}),
        ["--copy"],
        "holds /ocdit_segmentation/overlay already: choose another --prefix",
    ),
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


def test_a_damaged_image_among_good_ones_is_named_and_left_out(place, tmp_path, capsys):
    messages = images(compressed)
    messages[1] = compressed(TIMES[1], PICTURES[1], damaged=True)
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (COMPRESSED, messages)})
    assert run(place, recorded, tmp_path / "out.mcap") == 2
    output = capsys.readouterr()
    assert "/image: compressed image (format 'rgb8; png compressed bgr8'): truncated or damaged" in output.err
    assert "2 images of /image" in output.out
    stamps = [message.header.stamp.nanosec for _, message in read_bag(tmp_path / "out.mcap")[0][f"{OURS}/detections"]]
    assert stamps == [TIMES[0] % SECOND, TIMES[2] % SECOND]


@pytest.mark.parametrize("name", ["out.mcap", "out"])
def test_an_interruption_leaves_nothing_behind(place, recorded, tmp_path, monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bag.Results, "write", interrupted)
    assert run(place, recorded, tmp_path / "results" / name) == 130
    assert not list((tmp_path / "results").iterdir())
