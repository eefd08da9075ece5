"""What the package's several descriptions say must be one thing."""

import ast
import importlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

import ocdit_core
from ocdit_ros import parameters, share_folder

ROOT = Path(__file__).resolve().parents[2]


def metadata(*what):
    command = [sys.executable, "setup.py", "-q", *what]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")


def test_one_name_version_and_licence():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    name, version, licence = (package.findtext(tag) for tag in ("name", "version", "license"))
    assert metadata("--name", "--version", "--license")[:3] == [name, version, licence]
    assert version == ocdit_core.__version__
    assert (ROOT / "resource" / name).is_file()
    interfaces = ElementTree.parse(ROOT / "ocdit_interfaces" / "package.xml").getroot()
    assert interfaces.findtext("version") == version
    assert f'version = "{version}"' in (ROOT / "ocdit_interfaces" / "pyproject.toml").read_text()


def test_the_requirement_files_point_to_what_setup_declares():
    text = (ROOT / "setup.py").read_text()
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-c constraints.txt", "-e .[render,synthesize,train,report]"]
    assert {"render", "synthesize", "train", "report"} <= set(re.findall(r'^    "(\w+)": \[', text, re.MULTILINE))
    python, _, pip = yaml.safe_load((ROOT / "environment.yaml").read_text())["dependencies"]
    assert int(python.removeprefix("python=3.")) >= int(re.search(r'python_requires=">=3\.(\d+)"', text)[1])
    assert pip == {"pip": ["-r requirements.txt"]}


def test_every_executable_exists_for_ros2_run():
    text = (ROOT / "setup.py").read_text()
    entries = re.findall(r'"(\w+) = ([\w.]+):(\w+)"', text)
    assert len(entries) == 3
    for name, module, function in entries:
        assert callable(getattr(importlib.import_module(module), function))
        if module.startswith("ocdit_ros"):
            script = ROOT / "resource" / "lib" / name
            assert script.stat().st_mode & 0o111
            assert f"bin/{name}" in script.read_text()


def test_the_parameter_file_lists_every_parameter_with_its_default():
    content = yaml.safe_load((ROOT / "config" / "segment.yaml").read_text())
    values = content["/**"]["ros__parameters"]
    defaults = {name: spec.default for name, spec in parameters.SPECS.items() if name != "autostart"}
    assert values == defaults
    assert {name: type(value) for name, value in values.items()} == {k: type(v) for k, v in defaults.items()}


def test_every_package_that_is_imported_is_declared():
    declared = {
        element.text for element in ElementTree.parse(ROOT / "package.xml").getroot() if element.tag.endswith("depend")
    }
    ros = {"rclpy", "cv_bridge", "launch", "launch_ros", "ament_index_python"}
    for path in [*(ROOT / "ocdit_ros").glob("*.py"), *(ROOT / "launch").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.split(".")[0] for name in names}:
                if name in ros or (name.endswith(("_msgs", "_interfaces")) and name != "builtin_interfaces"):
                    assert name in declared, f"{path.name} imports {name}, package.xml does not declare it"


def test_what_apt_does_not_bring_is_named_for_pip():
    brought_by_rosdep = {
        "python3-numpy": "numpy",
        "python3-opencv": "opencv-python-headless",
        "python3-pil": "pillow",
        "python3-scipy": "scipy",
        "python3-tqdm": "tqdm",
        "python3-yaml": "pyyaml",
    }
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    keys = {element.text for element in package.iter("exec_depend") if element.text.startswith("python3-")}
    assert keys == set(brought_by_rosdep)
    install_requires = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    needed = set(re.findall(r'"([\w-]+)', install_requires)) - set(brought_by_rosdep.values())
    assert "torch" in needed
    for file in ("README.md", "Dockerfile", ".github/workflows/ros.yml"):
        (command,) = re.findall(r"pip3? install (?:--user )?(torch .*)", (ROOT / file).read_text())
        assert needed <= set(re.findall(r"[\w-]+", command)), file


@pytest.mark.parametrize("module", ["worker", "messages", "converter", "bag", "bag_files"])
def test_these_need_no_ros(module):
    program = f"import sys, ocdit_ros.{module}; print([name for name in sys.modules if name.startswith('rclpy')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_share_folder_holds_what_is_started_from_it():
    share = share_folder()
    for name in ("config/segment.yaml", "config/segment.rviz", "config/fastdds.xml", "launch/segment.launch.py"):
        assert (share / name).is_file()
    assert isinstance(yaml.safe_load((share / "config" / "segment.rviz").read_text()), dict)
    ElementTree.parse(share / "config" / "fastdds.xml")
