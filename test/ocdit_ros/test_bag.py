"""`ocdit bag` from bag to bag, with an untrained network: what it finds is noise, how it is stored is not."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from assets import ROOT, make_library, make_untrained_model, python_path
from bags import COMPRESSED, IMAGE, SECOND, START, STORE, STRING, compressed, image, read_bag, string, write_bag
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.cli import main
from ocdit_core.inference.weights import recommended_settings
from ocdit_core.visualization import overlay
from ocdit_ros import bag
from ocdit_ros.bag_types import make

OURS = "/ocdit_segmentation"
TIMES = [START + number * SECOND // 10 for number in range(3)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A library of three objects, and an untrained model."""
    folder = tmp_path_factory.mktemp("bag")
    make_library(folder / "library")
    make_untrained_model(folder / "model")
    threads = torch.get_num_threads()
    # A network this small is slowed down by a second thread.
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


PICTURES = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)


def images(make_one=image, **changes):
    return [make_one(time, picture, **changes) for time, picture in zip(TIMES, PICTURES, strict=True)]


@pytest.fixture
def recorded(tmp_path):
    topics = {"/camera/image_raw": (IMAGE, images()), "/note": (STRING, [string("a"), string("b")])}
    return write_bag(tmp_path / "recorded.mcap", topics)


def run(place, recorded, out, *more):
    model = ["--objects", f"{place}/library", "--weights", f"{place}/model", "--preset", "fast"]
    more = more if "--targets" in more else ("--targets", "can", *more)
    return main(["bag", str(recorded), *model, "--out", str(out), *more])


@pytest.fixture(scope="module")
def expected(place):
    """What the library's way finds on the pictures."""
    settings = recommended_settings(place / "model", preset="fast")
    segmenter = Segmenter.from_pretrained(place / "model", settings=settings)
    segmenter.set_objects(ObjectLibrary(place / "library"), ["can", "box"])
    found = [segmenter.segment(picture) for picture in PICTURES]
    assert all(segmentation.instances for segmentation in found)
    return found


@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED])
@pytest.mark.parametrize("name", ["recorded", "recorded_sqlite3", "recorded.mcap", "recorded.db3"])
def test_every_kind_of_bag_gets_the_results_of_its_images(place, expected, tmp_path, name, kind):
    recorded = write_bag(tmp_path / name, {"/image": (kind, images(image if kind == IMAGE else compressed))})
    out = tmp_path / "made" / ("out.mcap" if name.endswith("mcap") else "out")
    storage = ["--storage", "sqlite3"] if "sqlite3" in name else []
    assert run(place, recorded, out, "--targets", "can", "box", *storage) == 0
    assert list(out.parent.iterdir()) == [out]
    assert out.is_dir() == (not name.endswith("mcap"))
    assert bool(list(out.glob("*.db3"))) == bool(storage)

    found, connections = read_bag(out)
    assert set(found) == {f"{OURS}/{topic}" for topic in ("detections", "instances", "overlay", "label_info")}
    ((time, info),) = found.pop(f"{OURS}/label_info")
    assert time == TIMES[0] + SECOND // 1000
    assert [(entry.class_id, entry.class_name) for entry in info.class_map] == [(1, "box"), (2, "can"), (3, "mug")]
    assert info.threshold == 0.5
    durability = {topic: connection.ext.offered_qos_profiles[0].durability for topic, connection in connections.items()}
    assert [topic for topic, kind in durability.items() if kind == QosDurability.TRANSIENT_LOCAL] == [
        f"{OURS}/label_info"
    ]
    for messages in found.values():
        assert [time for time, _ in messages] == [time + SECOND // 1000 for time in TIMES]
        headers = [message.header for _, message in messages]
        assert [header.stamp.sec * SECOND + header.stamp.nanosec for header in headers] == TIMES
        assert {header.frame_id for header in headers} == {"camera"}
    topics = [[message for _, message in found[f"{OURS}/{name}"]] for name in ("detections", "instances", "overlay")]
    ids = []
    for segmentation, picture, detections, label_image, drawn in zip(expected, PICTURES, *topics, strict=True):
        assert (label_image.encoding, drawn.encoding) == ("mono16", "rgb8")
        labels = label_image.data.view(np.uint16).reshape(90, 120)
        assert len(detections.detections) == len(segmentation.instances)
        for number, (instance, detection) in enumerate(
            zip(segmentation.instances, detections.detections, strict=True), start=1
        ):
            ids.append(int(detection.id))
            assert detection.results[0].hypothesis.class_id == instance.object_id
            assert detection.results[0].hypothesis.score == pytest.approx(instance.score, abs=1e-6)
            assert np.array_equal(labels == int(detection.id), segmentation.label_map() == number)
        assert np.array_equal(drawn.data.reshape(90, 120, 3), overlay(picture, segmentation))
    assert ids == list(range(1, len(ids) + 1))


def test_ros_reads_what_the_node_would_have_written(place, expected, recorded, tmp_path):
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import Image
    from vision_msgs.msg import Detection2DArray, LabelInfo

    from ocdit_ros import messages

    assert run(place, recorded, tmp_path / "out.mcap", "--targets", "can", "box") == 0
    read = {"detections": [], "instances": [], "label_info": [], "overlay": []}
    kinds = {"detections": Detection2DArray, "instances": Image, "label_info": LabelInfo, "overlay": Image}
    with Reader(tmp_path / "out.mcap") as reader:
        for connection, _, data in reader.messages():
            name = connection.topic.rpartition("/")[2]
            read[name].append(serialization.deserialize_message(bytes(data), kinds[name]))
    first = 1
    for number, (segmentation, picture) in enumerate(zip(expected, PICTURES, strict=True)):
        header = messages.Header(frame_id="camera")
        header.stamp.sec, header.stamp.nanosec = divmod(TIMES[number], SECOND)
        ids = list(range(first, first + len(segmentation.instances)))
        first = ids[-1] + 1
        assert read["detections"][number] == messages.to_detections(segmentation, ids, header)
        assert read["instances"][number] == messages.to_instances(segmentation, ids, header)
        assert read["overlay"][number] == messages.from_rgb(overlay(picture, segmentation), header)
        if number == 0:
            labels = {"box": 1, "can": 2, "mug": 3}
            assert read["label_info"] == [messages.to_label_info(labels, 0.5, header)]


def test_types_are_those_of_vision_msgs():
    get_prefix = pytest.importorskip("ament_index_python.packages").get_package_share_directory
    for name in ("Detection2DArray", "LabelInfo"):
        described = json.loads((Path(get_prefix("vision_msgs")) / "msg" / f"{name}.json").read_text())
        hashes = {entry["type_name"]: entry["hash_string"] for entry in described["type_hashes"]}
        assert STORE.hash_rihs01(f"vision_msgs/msg/{name}") == hashes[f"vision_msgs/msg/{name}"]


def test_fields_that_are_not_given_have_the_default_of_ros():
    fields = make(STORE, "vision_msgs/msg/ObjectHypothesisWithPose")
    assert (fields.hypothesis.class_id, fields.hypothesis.score) == ("", 0.0)
    assert (fields.pose.pose.orientation.x, fields.pose.pose.orientation.w) == (0.0, 1.0)
    assert fields.pose.covariance.tolist() == [0.0] * 36
    assert make(STORE, IMAGE).data.tolist() == []


def test_numbers_last_with_tracking_only(place, tmp_path):
    still = [image(time, PICTURES[0]) for time in TIMES]
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, still)})
    ids = {}
    for name, more in (("apart", []), ("tracked", ["--tracking"])):
        assert run(place, recorded, tmp_path / f"{name}.mcap", "--targets", "can", *more) == 0
        found = read_bag(tmp_path / f"{name}.mcap")[0][f"{OURS}/detections"]
        ids[name] = [[detection.id for detection in message.detections] for _, message in found]
    assert ids["apart"] == [["1"], ["2"], ["3"]]
    assert ids["tracked"] == [["1"], ["1"], ["1"]]


def test_the_prefix_and_the_overlay_are_a_choice(place, recorded, tmp_path):
    assert run(place, recorded, tmp_path / "out.mcap", "--prefix", "/left/", "--no-overlay") == 0
    assert set(read_bag(tmp_path / "out.mcap")[0]) == {"/left/detections", "/left/instances", "/left/label_info"}


# Copies of other topics.


@pytest.mark.parametrize("name", ["recorded.mcap", "recorded_sqlite3"])
def test_topics_are_copied_byte_for_byte(place, tmp_path, name):
    notes = [string(text) for text in ("a", "b", "c", "d")]
    topics = {"/image": (IMAGE, images()), "/map": (STRING, notes), "/other": (STRING, notes)}
    recorded = write_bag(tmp_path / name, topics)
    assert run(place, recorded, tmp_path / "some", "--copy", "/map") == 0
    assert run(place, recorded, tmp_path / "all", "--copy") == 0
    assert {"/map"} == set(read_bag(tmp_path / "some")[0]) & set(topics)
    with Reader(recorded) as before, Reader(tmp_path / "all") as after:
        for topic in topics:
            (old,), (new,) = ([c for c in reader.connections if c.topic == topic] for reader in (before, after))
            assert [(time, bytes(data)) for _, time, data in before.messages([old])] == [
                (time, bytes(data)) for _, time, data in after.messages([new])
            ]
            assert (old.msgdef, old.ext, new.msgcount) == (new.msgdef, new.ext, old.msgcount)
            assert new.digest == STORE.hash_rihs01(new.msgtype)


def test_bags_without_definitions_are_copied_as_far_as_types_are_known(place, tmp_path, capsys):
    # Humble's sqlite3 bags hold names of types only.
    notes = [string("a")]
    recorded = write_bag(tmp_path / "recorded_sqlite3", {"/image": (IMAGE, images()), "/a": (STRING, notes)})
    database = sqlite3.connect(recorded / "recorded_sqlite3.db3")
    database.execute("DELETE FROM message_definitions")
    database.execute(
        "INSERT INTO topics SELECT 9, '/b', 'own/msg/Thing', serialization_format, '', '' FROM topics LIMIT 1"
    )
    database.execute("INSERT INTO messages(topic_id, timestamp, data) SELECT 9, timestamp, data FROM messages LIMIT 1")
    database.commit()
    database.close()
    (recorded / "recorded_sqlite3.db3").rename(tmp_path / "recorded.db3")
    assert run(place, tmp_path / "recorded.db3", tmp_path / "out", "--copy") == 0
    found, _ = read_bag(tmp_path / "out")
    assert found["/a"][0][1].data == "a"
    assert "/b" not in found
    assert "not copied: /b: the definition of own/msg/Thing is not known" in capsys.readouterr().err


def test_another_version_of_a_type_that_is_written_is_not_copied(place, tmp_path, capsys):
    old = get_typestore(Stores.LATEST)
    del old.fielddefs[IMAGE], old.types[IMAGE]
    text = "std_msgs/Header header\nuint32 height\nuint32 width\n"
    old.register(get_types_from_msg(text, IMAGE))
    with Writer(tmp_path / "recorded", version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kept = writer.add_connection("/image", COMPRESSED, typestore=STORE)
        left = writer.add_connection("/old", IMAGE, typestore=old)
        writer.write(kept, START, STORE.serialize_cdr(compressed(START, PICTURES[0]), COMPRESSED))
        writer.write(left, START, b"\0\1\0\0")
    assert run(place, tmp_path / "recorded", tmp_path / "out", "--image-topic", "/image", "--copy") == 0
    assert "/old" not in read_bag(tmp_path / "out")[0]
    assert "not copied: /old: another version of sensor_msgs/msg/Image" in capsys.readouterr().err


# What is refused: one line, and nothing is left behind.


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
    assert "/image: the compressed image (format 'rgb8; png compressed bgr8') is truncated or damaged" in output.err
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


# Where the command is there.


def without(*modules):
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in modules)
    program = f"import sys; {hidden}from ocdit_core.cli import main; sys.exit(main())"

    def start(*arguments):
        command = [sys.executable, "-c", program, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)

    return start


def test_no_ros_is_needed(place, recorded, tmp_path):
    ros = ("rclpy", "sensor_msgs", "std_msgs", "vision_msgs", "builtin_interfaces", "ament_index_python")
    model = ["--objects", place / "library", "--weights", place / "model"]
    done = without(*ros)("bag", recorded, *model, "--out", tmp_path / "out.mcap")
    assert done.returncode == 0, done.stderr
    assert "3 images of /camera/image_raw" in done.stdout
    assert len(read_bag(tmp_path / "out.mcap")[0][f"{OURS}/detections"]) == 3


def test_without_rosbags_the_error_says_how_to_get_it(place, recorded, tmp_path):
    done = without("rosbags")("bag", recorded, "--objects", place / "library", "--out", tmp_path / "out.mcap")
    assert (done.returncode, done.stderr) == (
        2,
        "ocdit: error: recorded bags need the package rosbags: pip install rosbags\n",
    )


def test_the_core_alone_has_no_such_command():
    assert "bag" in without()("--help").stdout
    done = without("ocdit_ros")("--help")
    assert done.returncode == 0
    assert "bag" not in done.stdout
