"""Bring the segmentation node to active, and open rviz when asked.

ros2 launch ocdit_ros segment.launch.py image:=/camera/color/image_raw library:=my_objects target_objects:="drill mug"
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
)
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

SHARE = get_package_share_directory("ocdit_ros")
YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

ARGUMENTS = {
    "image": ("image", "topic of the camera's images"),
    "camera_info": ("camera_info", "topic of its calibration, republished in step with the masks"),
    "cameras": (
        "",
        "several cameras instead, as NAME=TOPIC separated by spaces or commas; the calibration is expected beside each "
        "topic, as camera_info; results come under ~/NAME/",
    ),
    "params_file": (os.path.join(SHARE, "config", "segment.yaml"), "parameters of the node"),
    "library": ("", "folder made by `ocdit render`; overrides params_file"),
    "target_objects": ("", "names to look for, separated by spaces or commas; overrides params_file"),
    "device": ("", "auto, cpu, cuda or cuda:N; overrides params_file"),
    "rviz": ("false", "open rviz with the overlay"),
    "namespace": ("", "namespace of the node"),
    "autostart": ("true", "configure and activate the node"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def is_on(name: str, value: str) -> bool:
    """Return a switch's value; anything but true and false is refused."""
    if value.lower() not in YES + NO:
        raise RuntimeError(f"{name}:={value} is neither true nor false")
    return value.lower() in YES


def remap_cameras(text: str) -> dict[str, list[tuple[str, str]]]:
    """Return the remappings of each camera in "left=/left/image_raw right=/right/image_raw", by its name."""
    cameras = {}
    for item in text.replace(",", " ").split():
        name, _, topic = item.partition("=")
        if not name or not topic:
            raise RuntimeError(f"cameras:={item} is not NAME=TOPIC, such as left=/left/image_raw")
        info = f"{topic.rpartition('/')[0]}/camera_info" if "/" in topic else "camera_info"
        cameras[name] = [(f"{name}/image", topic), (f"{name}/camera_info", info)]
    return cameras


def set_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Make the actions once the arguments are known."""
    values = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    overrides: dict[str, object] = {name: values[name] for name in ("library", "device") if values[name]}
    if values["library"]:
        # The node's working directory is not the user's.
        overrides["library"] = os.path.abspath(os.path.expanduser(values["library"]))
    targets = values["target_objects"].replace(",", " ").split()
    if targets:
        overrides["target_objects"] = targets
    remappings = [("image", values["image"]), ("camera_info", values["camera_info"])]
    cameras = remap_cameras(values["cameras"])
    if cameras:
        overrides["cameras"] = list(cameras)
        remappings = [remapping for camera in cameras.values() for remapping in camera]
    node = LifecycleNode(
        package="ocdit_ros",
        executable="segmentation_node",
        name="ocdit_segmentation",
        namespace=values["namespace"],
        parameters=[values["params_file"], overrides],
        remappings=remappings,
        arguments=["--ros-args", "--log-level", values["log_level"]],
        output="screen",
    )
    actions: list[LaunchDescriptionEntity] = []
    if is_on("autostart", values["autostart"]):
        # The handler first: nothing may happen before somebody listens.
        actions.append(
            RegisterEventHandler(
                OnStateTransition(
                    target_lifecycle_node=node,
                    start_state="configuring",
                    goal_state="inactive",
                    entities=[change_state(node, Transition.TRANSITION_ACTIVATE)],
                )
            )
        )
    actions.append(node)
    if is_on("autostart", values["autostart"]):
        actions.append(change_state(node, Transition.TRANSITION_CONFIGURE))
    if is_on("rviz", values["rviz"]):
        actions.append(rviz(values["namespace"], values["image"]))
    return actions


def change_state(node: LifecycleNode, transition: int) -> EmitEvent:
    """Return the action that asks the node for a transition."""
    return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))


def rviz(namespace: str, image: str) -> LaunchDescriptionEntity:
    """Return rviz with our view, or a word on its absence."""
    try:
        get_package_share_directory("rviz2")
    except PackageNotFoundError:
        return LogInfo(msg="rviz2 is not installed: any image viewer can show ~/overlay instead")
    prefix = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    topic = image if image.startswith("/") else f"{prefix}/{image}"
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", os.path.join(SHARE, "config", "segment.rviz")],
        remappings=[
            ("/ocdit_segmentation/overlay", f"{prefix}/ocdit_segmentation/overlay"),
            ("/image", topic),
        ],
    )


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    actions: list[LaunchDescriptionEntity] = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    # Without it, best-effort images above 512 KiB hardly ever arrive: config/fastdds.xml says why. Humble's Fast DDS
    # knows the older name only; the newer ones warn about it.
    vendor = "FASTRTPS" if os.environ.get("ROS_DISTRO") == "humble" else "FASTDDS"
    variable = f"{vendor}_DEFAULT_PROFILES_FILE"
    if variable not in os.environ:
        actions.append(SetEnvironmentVariable(variable, os.path.join(SHARE, "config", "fastdds.xml")))
    return LaunchDescription([*actions, OpaqueFunction(function=set_up)])
