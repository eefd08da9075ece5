"""Bring the segmentation node to active, and open rviz when asked.

ros2 launch ocdit_ros segment.launch.py image:=/camera/color/image_raw library:=my_objects target_objects:="melon lamp"
"""

import os

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
    UnregisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import matches_action
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from ocdit_ros import profiles_variable

SHARE = get_package_share_directory("ocdit_ros")
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

ARGUMENTS = {
    "image": ("image", "topic of the images; with image_transport:=compressed, without /compressed"),
    "camera_info": (
        "",
        "topic of the calibration, republished with the masks; by default camera_info beside the images",
    ),
    "depth": (
        "",
        "topic of the depth images, registered to the images, for results in 3D; with cameras:= as NAME=TOPIC, too",
    ),
    "image_transport": ("", "raw or compressed; overrides params_file"),
    "cameras": (
        "",
        "several cameras instead, as NAME=TOPIC separated by spaces or commas; the calibration is expected beside each "
        "topic, as camera_info; results are published under ~/NAME/",
    ),
    "params_file": (os.path.join(SHARE, "config", "segment.yaml"), "parameters of the node"),
    "model": ("", "name of an embedded model, or a folder with config and weights; overrides params_file"),
    "library": ("", "folder made by `ocdit render`; overrides params_file"),
    "target_objects": ("", "names to look for, separated by spaces or commas; overrides params_file"),
    "device": ("", "auto, cpu, cuda or cuda:N; overrides params_file"),
    "rviz": ("false", "open rviz with the overlay"),
    "namespace": ("", "namespace of the node"),
    "autostart": ("true", "configure and activate the node"),
    "respawn": ("false", "restart the node when it has died"),
    "on_failure": (
        "shutdown",
        "when the node cannot be configured or activated, or dies: shutdown (end the launch with an error) or stay",
    ),
    "use_sim_time": ("", "true: time comes from /clock, as from a simulator or a bag; overrides params_file"),
    "log_level": ("info", "log level of the node"),
}
# glibc's allocator keeps the memory of an image for the next one. Returning it to the kernel and back took three
# quarters of the time of a 1080p image from process to process; two heaps instead of one per thread leave fewer holes.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
CHOICES = {"log_level": ["debug", "info", "warn", "error", "fatal"], "on_failure": ["shutdown", "stay"]}


def is_on(name: str, value: str) -> bool:
    """Return the value of a switch.

    Raises:
        RuntimeError: it is neither true nor false.
    """
    if value.lower() not in YES + NO:
        raise RuntimeError(f"{name}:={value} is neither true nor false")
    return value.lower() in YES


def remap_cameras(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return the remappings of each camera in "left=/left/image_raw right=/right/image_raw", by its name.

    Raises:
        RuntimeError: an item has another form, or a name occurs twice.
    """
    topics = topics_by_camera("cameras", text)
    return {name: [(f"{name}/image", topic), (f"{name}/camera_info", beside(topic))] for name, topic in topics.items()}


def topics_by_camera(argument: str, text: str) -> dict[str, str]:
    """Return the topics in "left=/left/image_raw right=/right/image_raw" by the names; raises RuntimeError."""
    topics: dict[str, str] = {}
    for item in text.replace(",", " ").split():
        name, _, topic = item.partition("=")
        if not name or not topic:
            raise RuntimeError(f"{argument}:={item} is not NAME=TOPIC, such as left=/left/image_raw")
        if name in topics:
            raise RuntimeError(f"{argument}:={text}: {name} is named twice")
        topics[name] = topic
    return topics


def beside(topic: str) -> str:
    """Return the topic of the calibration for that of the images, as camera drivers name it."""
    return f"{topic.rpartition('/')[0]}/camera_info" if "/" in topic else "camera_info"


def read_parameters(values: dict[str, str]) -> list[str | dict[str, object]]:
    """Return the node's parameters: the file, then what the arguments override.

    Raises:
        RuntimeError: the file does not exist; launch_ros would start the node without it.
    """
    path = os.path.abspath(os.path.expanduser(values["params_file"]))
    if not os.path.isfile(path):
        raise RuntimeError(f"params_file:={values['params_file']}: there is no such file")
    overrides: dict[str, object] = {name: values[name] for name in ("device", "image_transport") if values[name]}
    # The shell does not expand the ~ of library:=~/objects. A model may be a name instead of a path.
    if values["model"]:
        overrides["model"] = os.path.expanduser(values["model"])
    if values["library"]:
        overrides["library"] = os.path.abspath(os.path.expanduser(values["library"]))
    targets = values["target_objects"].replace(",", " ").split()
    if targets:
        overrides["target_objects"] = targets
    if values["use_sim_time"]:
        overrides["use_sim_time"] = is_on("use_sim_time", values["use_sim_time"])
    return [path, overrides]


def set_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the actions, once the arguments are known."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters = read_parameters(values)
    autostart, respawn = is_on("autostart", values["autostart"]), is_on("respawn", values["respawn"])
    if autostart and respawn:
        # A request would go to the dead process, which DDS believes alive for 20 s: the node configures itself.
        parameters.append({"autostart": True})
    cameras = remap_cameras(values["cameras"])
    if cameras:
        parameters.append({"cameras": list(cameras)})
    else:
        calibration = values["camera_info"] or beside(values["image"])
        cameras = {"": [("image", values["image"]), ("camera_info", calibration)]}
    depths = topics_by_camera("depth", values["depth"]) if values["cameras"] else {"": values["depth"]}
    for name, topic in depths.items():
        if name not in cameras:
            raise RuntimeError(f"depth:={name}={topic}: no camera has this name; there are {', '.join(cameras)}")
        if topic:
            cameras[name].append((f"{name}/depth" if name else "depth", topic))
    node = LifecycleNode(
        package="ocdit_ros",
        executable="segmentation_node",
        name="ocdit_segmentation",
        namespace=values["namespace"],
        parameters=parameters,
        remappings=[remapping for camera in cameras.values() for remapping in camera],
        arguments=["--ros-args", "--log-level", values["log_level"]],
        respawn=respawn,
        respawn_delay=2.0,
        output="screen",
    )
    actions: list[LaunchDescriptionEntity] = [node]
    fatal = values["on_failure"] == "shutdown" and not respawn
    if fatal:
        # The handlers first: nothing may happen before somebody listens.
        actions.insert(0, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=node_has_died)))
    if autostart and not respawn:
        activate = OnStateTransition(
            target_lifecycle_node=node,
            start_state="configuring",
            goal_state="inactive",
            entities=[change_state(node, Transition.TRANSITION_ACTIVATE)],
            # Later transitions are the user's: a node that somebody configures again waits to be activated.
            handle_once=True,
        )
        failures = [
            OnStateTransition(
                target_lifecycle_node=node,
                start_state=start_state,
                goal_state=goal_state,
                entities=[fail(f"the node could not be {what}: the reason stands above")],
                handle_once=True,
            )
            for start_state, goal_state, what in (
                ("configuring", "unconfigured", "configured"),
                ("activating", "inactive", "activated"),
            )
        ]
        started = OnStateTransition(
            target_lifecycle_node=node,
            goal_state="active",
            # What somebody does to the node afterwards may fail.
            entities=[UnregisterEventHandler(failure) for failure in failures],
            handle_once=True,
        )
        handlers = [activate, started, *failures] if fatal else [activate]
        configure = change_state(node, Transition.TRANSITION_CONFIGURE)
        actions = [*(RegisterEventHandler(handler) for handler in handlers), *actions, configure]
    if is_on("rviz", values["rviz"]):
        name, ((_, image), *_) = next(iter(cameras.items()))
        actions.append(rviz(values["namespace"], name, image))
    return actions


def fail(text: str) -> OpaqueFunction:
    """Return the action that ends the launch with an error; `ros2 launch` returns 0 unless an action raises."""

    def end(context: LaunchContext) -> None:
        raise RuntimeError(text)

    return OpaqueFunction(function=end)


def node_has_died(event: ProcessExited, context: LaunchContext) -> OpaqueFunction | None:
    """Return the action for the end of the node: none where it ended in order."""
    return fail(f"the node died with exit code {event.returncode}") if event.returncode else None


def change_state(node: LifecycleNode, transition: int) -> EmitEvent:
    """Return the action that asks the node for a transition."""
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))


def rviz(namespace: str, camera: str, image: str) -> LaunchDescriptionEntity:
    """Return rviz with our view of one camera, or a word on its absence."""
    try:
        get_package_share_directory("rviz2")
    except PackageNotFoundError:
        return LogInfo(msg="rviz2 is not installed: any image viewer can show ~/overlay instead")
    prefix = "".join(f"/{part}" for part in namespace.split("/") if part)
    outputs = "/".join(part for part in (f"{prefix}/ocdit_segmentation", camera) if part)
    shown = {
        f"/ocdit_segmentation/{name}": f"{outputs}/{name}"
        for name in ("overlay", "instances", "points", "detections_3d")
    }
    shown["/image"] = image if image.startswith("/") else f"{prefix}/{image}"
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", os.path.join(SHARE, "config", "segment.rviz")],
        remappings=list(shown.items()),
    )


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    actions: list[LaunchDescriptionEntity] = [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=CHOICES.get(name))
        for name, (default, text) in ARGUMENTS.items()
    ]
    # Without it, best-effort images above 512 KiB hardly ever arrive: config/fastdds.xml says why.
    environment = {profiles_variable(): os.path.join(SHARE, "config", "fastdds.xml"), **ALLOCATOR}
    actions += [SetEnvironmentVariable(name, value) for name, value in environment.items() if name not in os.environ]
    return LaunchDescription([*actions, OpaqueFunction(function=set_up)])
