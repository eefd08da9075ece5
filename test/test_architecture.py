"""The rules of the house: who may import whom, and what the inference path stays free of."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each room, and the rooms that it may use; files directly in ocdit_core are "base".
ALLOWED = {
    "base": {"base"},
    "diffusion": {"base"},
    "models": {"base", "diffusion"},
    "objects": {"base"},
    "inference": {"base", "diffusion", "models", "objects"},
    "data": {"base", "objects"},
    "training": {"base", "diffusion", "models", "objects", "data"},
    "evaluation": {"base", "models", "objects", "inference", "data"},
    "commands": {"base", "objects", "models", "training", "inference", "evaluation", "data"},
}
# The facade's lazy names, the commands under the command line, and pictures of results.
EXCEPTIONS = {
    ("ocdit_core/__init__.py", "inference"),
    ("ocdit_core/__init__.py", "objects"),
    ("ocdit_core/cli.py", "commands"),
    ("ocdit_core/visualization.py", "inference"),
    ("ocdit_core/visualization.py", "objects"),
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(parts: tuple[str, ...]) -> str:
    return parts[1] if (ROOT / "ocdit_core" / parts[1]).is_dir() else "base"


@pytest.mark.parametrize("path", sorted((ROOT / "ocdit_core").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    relative = path.relative_to(ROOT)
    here = room(relative.parts)
    for name in imported(path):
        if name.split(".")[0] != "ocdit_core" or name == "ocdit_core":
            continue
        there = room(tuple(name.split(".")))
        allowed = there == here or there in ALLOWED[here] or (str(relative), there) in EXCEPTIONS
        assert allowed, f"{relative} ({here}) must not import {name} ({there})"


@pytest.mark.parametrize("path", sorted((ROOT / "ocdit_core").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_no_ros(path):
    ros = {"rclpy", "ocdit_ros", "sensor_msgs", "vision_msgs", "std_msgs", "ocdit_interfaces", "launch", "launch_ros"}
    assert not {name.split(".")[0] for name in imported(path)} & ros


def test_the_inference_path_is_light():
    heavy = ["ocdit_core.training", "ocdit_core.data", "trimesh", "moderngl", "tensorboard", "transformers", "scipy"]
    code = (
        "import sys; from ocdit_core import ObjectLibrary, Segmenter; Segmenter.from_pretrained('ocdit-tiny');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"
