"""`ocdit bag` from bag to bag, with an untrained network: what it finds is noise, how it is stored is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from assets import ROOT, python_path
from bags import (
    COMPRESSED,
    IMAGE,
    OURS,
    PIXELS,
    SECOND,
    STORE,
    STRING,
    TIMES,
    compressed,
    image,
    images,
    read_bag,
    run,
    string,
    write_bag,
)
from rosbags.interfaces import QosDurability
from rosbags.rosbag2 import Reader

from ocdit_core import ObjectLibrary, Segmenter
from ocdit_core.inference.settings import recommended_settings
from ocdit_core.visualization import overlay
from ocdit_ros.bag_files import make
from ocdit_ros.messages import POINT


@pytest.fixture(scope="module")
def expected(place):
    """What the library's way finds on the images."""
    settings = recommended_settings(place / "model", preset="fast")
    segmenter = Segmenter.from_pretrained(place / "model", settings=settings)
    segmenter.set_objects(ObjectLibrary(place / "library"), ["can", "box"])
    found = [segmenter.segment(pixels) for pixels in PIXELS]
    assert all(segmentation.instances for segmentation in found)
    return found


@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED])
@pytest.mark.parametrize("name", ["recorded", "recorded_sqlite3", "recorded.mcap", "recorded.db3"])
def test_every_kind_of_bag_gets_the_results_of_its_images(place, expected, tmp_path, name, kind):
    notes = [string("a"), string("b")]
    topics = {"/image": (kind, images(image if kind == IMAGE else compressed)), "/note": (STRING, notes)}
    recorded = write_bag(tmp_path / name, topics)
    out = tmp_path / "made" / ("out.mcap" if name.endswith("mcap") else "out")
    assert run(place, recorded, out, "--targets", "can", "box") == 0
    assert list(out.parent.iterdir()) == [out]
    assert out.is_dir() == (not name.endswith("mcap"))
    assert bool(list(out.glob("*.db3"))) == out.is_dir()

    found, connections = read_bag(out)
    assert set(found) == {
        f"{OURS}/{topic}" for topic in ("detections", "instances", "classes", "overlay", "label_info")
    }
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
    topics = [
        [message for _, message in found[f"{OURS}/{name}"]]
        for name in ("detections", "instances", "overlay", "classes")
    ]
    ids = []
    for segmentation, pixels, detections, label_image, drawn, classes in zip(expected, PIXELS, *topics, strict=True):
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
        assert np.array_equal(drawn.data.reshape(90, 120, 3), overlay(pixels, segmentation))
        numbers = [
            info.class_map[["box", "can", "mug"].index(one.object_id)].class_id for one in segmentation.instances
        ]
        assert np.array_equal(classes.data.view(np.uint16).reshape(90, 120), segmentation.label_map(numbers))
    assert ids == list(range(1, len(ids) + 1))


def test_ros_reads_what_the_node_would_have_written(place, expected, recorded, tmp_path):
    serialization = pytest.importorskip("rclpy.serialization")
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection2DArray, LabelInfo

    from ocdit_ros.topics import maker

    assert run(place, recorded, tmp_path / "out.mcap", "--targets", "can", "box") == 0
    kinds = {"detections": Detection2DArray, "instances": Image, "classes": Image, "label_info": LabelInfo}
    kinds["overlay"] = Image
    read = {name: [] for name in kinds}
    with Reader(tmp_path / "out.mcap") as reader:
        for connection, _, data in reader.messages():
            name = connection.topic.rpartition("/")[2]
            read[name].append(serialization.deserialize_message(bytes(data), kinds[name]))
    first = 1
    for number, (segmentation, pixels) in enumerate(zip(expected, PIXELS, strict=True)):
        header = Header(frame_id="camera")
        header.stamp.sec, header.stamp.nanosec = divmod(TIMES[number], SECOND)
        ids = list(range(first, first + len(segmentation.instances)))
        first = ids[-1] + 1
        assert read["detections"][number] == maker.to_detections(segmentation, ids, header)
        assert read["instances"][number] == maker.to_instances(segmentation, ids, header)
        assert read["classes"][number] == maker.to_classes(segmentation, {"box": 1, "can": 2, "mug": 3}, header)
        assert read["overlay"][number] == maker.from_rgb(overlay(pixels, segmentation), header)
        if number == 0:
            labels = {"box": 1, "can": 2, "mug": 3}
            assert read["label_info"] == [maker.to_label_info(labels, 0.5, header)]


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
    still = [image(time, PIXELS[0]) for time in TIMES]
    recorded = write_bag(tmp_path / "recorded.mcap", {"/image": (IMAGE, still)})
    ids = {}
    for name, more in (("apart", []), ("tracked", ["--tracking"])):
        assert run(place, recorded, tmp_path / f"{name}.mcap", "--targets", "can", *more) == 0
        found = read_bag(tmp_path / f"{name}.mcap")[0][f"{OURS}/detections"]
        ids[name] = [[detection.id for detection in message.detections] for _, message in found]
    assert ids["apart"] == [["1"], ["2"], ["3"]]
    assert ids["tracked"] == [["1"], ["1"], ["1"]]


def test_the_overlay_is_a_choice(place, recorded, tmp_path):
    assert run(place, recorded, tmp_path / "out.mcap", "--no-overlay") == 0
    assert set(read_bag(tmp_path / "out.mcap")[0]) == {
        f"{OURS}/{name}" for name in ("detections", "instances", "classes", "label_info")
    }


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


INFO = "sensor_msgs/msg/CameraInfo"


def depths(encoding="16UC1", shift=0):
    """A plane at 0.7 m, recorded with the images, with stamps that differ by `shift` ns."""
    values = np.full((90, 120), 700, np.uint16) if encoding == "16UC1" else np.full((90, 120), 0.7, np.float32)
    return [image(time + shift, values, encoding) for time in TIMES]


def calibrations(width=120):
    k = np.array([100.0, 0, 59.5, 0, 100, 44.5, 0, 0, 1])
    return [make(STORE, INFO, header=image(time, PIXELS[0]).header, height=90, width=width, k=k) for time in TIMES]


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_recordings_with_depth_get_results_in_3d(place, tmp_path, encoding):
    topics = {
        "/color/image": (IMAGE, images()),
        "/depth/image": (IMAGE, depths(encoding, 10**7)),
        "/color/camera_info": (INFO, calibrations()),
    }
    recorded = write_bag(tmp_path / "recorded.mcap", topics)
    # The depth topic is none of images to be segmented: nothing has to be named. What the untrained network finds has
    # not the size of the objects, which lowers the scores.
    assert run(place, recorded, tmp_path / "out.mcap", "--targets", "can", "box", "--set", "score_threshold=0") == 0
    found, _ = read_bag(tmp_path / "out.mcap")
    clouds = [message for _, message in found[f"{OURS}/points"]]
    boxes = [message for _, message in found[f"{OURS}/detections_3d"]]
    assert len(clouds) == len(boxes) == len(TIMES)
    assert sum(len(message.detections) for message in boxes) > 0
    for (_, flat), cloud, array in zip(found[f"{OURS}/detections"], clouds, boxes, strict=True):
        assert cloud.header == array.header == flat.header
        points = cloud.data.view(POINT)
        assert points["z"] == pytest.approx(0.7, abs=1e-6)
        assert {str(number) for number in set(points["instance_id"])} <= {one.id for one in flat.detections}
        for one in array.detections:
            assert one.bbox.center.position.z == pytest.approx(0.7, abs=1e-3)
            assert one.id in {other.id for other in flat.detections}


@pytest.mark.parametrize(
    ("changes", "more", "needle"),
    [
        ({"/depth/image": (IMAGE, depths(shift=5 * 10**7))}, (), ""),
        ({"/color/camera_info": (STRING, [])}, (), ""),
        ({}, ("--depth-topic", "/none"), "no topic of depth images '/none'; there are /depth/image"),
        ({"/color/camera_info": (STRING, [])}, ("--depth-topic", "/depth/image"), "depth needs a calibration"),
        ({"/depth/other": (IMAGE, depths())}, (), "name one: /depth/image, /depth/other"),
        ({"/color/camera_info": (INFO, calibrations(width=60))}, (), "the calibration is for 60 x 90 pixels"),
    ],
)
def test_depth_that_does_not_fit_is_left_out_or_named(place, tmp_path, capfd, changes, more, needle):
    topics = {
        "/color/image": (IMAGE, images()),
        "/depth/image": (IMAGE, depths()),
        "/color/camera_info": (INFO, calibrations()),
    }
    recorded = write_bag(tmp_path / "recorded.mcap", topics | changes)
    code = run(place, recorded, tmp_path / "out.mcap", *more)
    assert needle in capfd.readouterr().err
    if "topic" in needle or "calibration," in needle or "name one" in needle or more:
        assert (code, (tmp_path / "out.mcap").exists()) == (2, False)
        return
    assert code == 0
    found, _ = read_bag(tmp_path / "out.mcap")
    assert len(found[f"{OURS}/detections"]) == len(TIMES)
    assert not found.get(f"{OURS}/detections_3d")
