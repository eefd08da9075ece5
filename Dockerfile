# The node for a robot with an NVIDIA GPU. PyTorch's wheels bring CUDA's libraries, the host only its driver and the NVIDIA
# Container Toolkit: no CUDA base image is needed, and any ROS distribution can be chosen.
#
#   docker build --build-arg ROS_DISTRO=jazzy --tag ocdit .
#   docker run --rm --gpus all --network host --ipc host --user "$(id -u):$(id -g)" --volume ~/my_objects:/objects ocdit \
#       ros2 launch ocdit_ros segment.launch.py library:=/objects image:=/camera/color/image_raw
#
# --ipc host and the user of the other nodes: images between processes go through shared memory (config/fastdds.xml).
# Other builds of PyTorch, such as those for a Jetson: --build-arg PIP_EXTRA_INDEX_URL=...
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ubuntu 24.04 and later keep pip away from the system's Python, which is the container's own here.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility
WORKDIR /ws

# What changes seldom comes first. libegl1 and its companions render CAD files: `ros2 run ocdit_ros ocdit render`.
COPY package.xml src/ocdit_ros/
COPY ocdit_interfaces/package.xml src/ocdit_ros/ocdit_interfaces/
# hadolint ignore=DL3008
RUN apt-get update \
    && rosdep update --rosdistro "$ROS_DISTRO" \
    && rosdep install --from-paths src src/ocdit_ros/ocdit_interfaces --ignore-src -y \
    && apt-get install -y --no-install-recommends python3-pip libegl1 libgl1 libgles2 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
# The apt packages of OpenCV and cv_bridge are built for one major version of NumPy, and colcon wants setuptools below 80.
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3013
RUN numpy=$(python3 -c 'import numpy; print(int(numpy.__version__[0]) + 1)') \
    && printf 'numpy<%s\nsetuptools<80\n' "$numpy" > /tmp/constraints.txt \
    && pip3 install torch transformers einops safetensors pycocotools "numpy>=1.24" "pillow>=10" trimesh moderngl scipy \
        -c /tmp/constraints.txt

COPY . src/ocdit_ros
RUN . "/opt/ros/$ROS_DISTRO/setup.bash" \
    && colcon build --base-paths src src/ocdit_ros/ocdit_interfaces \
    && rm -rf build log

# Any user can run it: what ROS and the node write goes there.
ENV HOME=/tmp
# ros2 launch answers it by ending its nodes, as it does Ctrl-C.
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/bash", "-c", "source /ws/install/setup.bash && exec \"$@\"", "ocdit"]
CMD ["ros2", "launch", "ocdit_ros", "segment.launch.py", "library:=/objects"]
