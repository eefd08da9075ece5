"""See masks without a camera: the example images, published as by a camera, through the segmentation node.

ocdit render examples/meshes/*.glb --unit m --out my_objects
ros2 launch ocdit_ros demo.launch.py library:=my_objects target_objects:="melon striped_mug"
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchDescription

SHARE = get_package_share_directory("ocdit_ros")
ARGUMENTS = {
    "images": (os.path.join(SHARE, "examples", "images"), "folder of images to publish"),
    "rate": ("1.0", "images per second"),
    "params_file": (os.path.join(SHARE, "config", "segment.yaml"), "parameters of the node"),
    "model": ("", "name of an embedded model, or a folder with config and weights"),
    "library": (None, "folder made by `ocdit render`"),
    "target_objects": ("", "names to look for, separated by spaces or commas; by default all objects of the library"),
    "device": ("", "auto, cpu, cuda or cuda:N"),
    "rviz": ("true", "open rviz with the overlay"),
    "log_level": ("info", "log level of the node: debug, info, warn, error or fatal"),
}


def generate_launch_description() -> LaunchDescription:
    """Return what `ros2 launch` runs."""
    forwarded = ("params_file", "model", "library", "target_objects", "device", "rviz", "log_level")
    # First: the Fast DDS profile that it sets is the camera's too, and the sender's profile is the one that counts.
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "segment.launch.py")),
        launch_arguments=[("image", "/image"), *((name, LaunchConfiguration(name)) for name in forwarded)],
    )
    camera = Node(
        package="ocdit_ros",
        executable="image_player",
        name="image_player",
        parameters=[
            {
                "folder": ParameterValue(LaunchConfiguration("images"), value_type=str),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
            }
        ],
        remappings=[("image", "/image")],
        output="screen",
    )
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text)
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, node, camera])
