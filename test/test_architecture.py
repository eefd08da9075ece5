"""Import rules: which package may use which, no circles, a light inference path; and the number of settings."""

import ast
import dataclasses
import subprocess
import sys
import typing
from pathlib import Path

from ocdit_core.inference.settings import InferenceSettings
from ocdit_core.models.ocdit import OCDiTConfig
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
# Each package, and the packages that it may use; files directly in ocdit_core are "base".
ALLOWED = {
    "base": {"base"},
    "diffusion": {"base"},
    "models": {"base", "diffusion"},
    "objects": {"base"},
    "inference": {"base", "diffusion", "models", "objects"},
    "data": {"base", "objects"},
    "synthesis": {"base", "objects", "data"},
    "training": {"base", "diffusion", "models", "objects", "data"},
    "evaluation": {"base", "models", "objects", "inference", "data"},
    "app": {"base", "objects", "inference", "commands"},
    "commands": {"base", "objects", "models", "training", "inference", "evaluation", "data", "synthesis", "app"},
}
# The facade's lazy names, the commands under the command line, and images of results.
EXCEPTIONS = {
    ("ocdit_core/__init__.py", "inference"),
    ("ocdit_core/__init__.py", "objects"),
    ("ocdit_core/cli.py", "commands"),
    ("ocdit_core/visualization.py", "inference"),
    ("ocdit_core/visualization.py", "objects"),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for folder in ("ocdit_core", "ocdit_ros") for path in (ROOT / folder).rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Return every module that a file imports: at the top, inside functions, and for type checking."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= below & MODULES.keys() or {node.module}
    return names


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "ocdit_core" / parts[1]).is_dir() else "base"


def test_arrows_run_one_way():
    wrong = []
    for module, path in MODULES.items():
        here, relative = room(module), str(path.relative_to(ROOT))
        for name in imported(path) if module.startswith("ocdit_core") else ():
            there = room(name)
            allowed = there in {here, *ALLOWED[here]} or (relative, there) in EXCEPTIONS
            if name.startswith("ocdit_core.") and not allowed:
                wrong.append(f"{relative} ({here}) must not import {name} ({there})")
    assert not wrong


def test_the_core_knows_no_ros():
    ros = {"rclpy", "ocdit_ros", "sensor_msgs", "vision_msgs", "std_msgs", "ocdit_interfaces", "launch", "launch_ros"}
    wrong = {
        module: found
        for module, path in MODULES.items()
        if module.startswith("ocdit_core") and (found := {name.split(".")[0] for name in imported(path)} & ros)
    }
    assert not wrong


def reached_from(start: str, graph: dict[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    new = graph[start]
    while new:
        reached |= new
        new = set().union(*(graph[module] for module in new)) - reached
    return reached


def test_no_import_circles():
    graph = {module: (imported(path) & MODULES.keys()) - {module} for module, path in MODULES.items()}
    reached = {module: reached_from(module, graph) for module in graph}
    circles = {
        frozenset(m for m in reached[start] if start in reached[m]) for start in graph if start in reached[start]
    }
    assert not [sorted(circle) for circle in circles]


def test_the_inference_path_is_light():
    heavy = ["ocdit_core.training", "ocdit_core.data", "trimesh", "moderngl", "tensorboard", "transformers", "scipy"]
    code = (
        "import sys; from ocdit_core import ObjectLibrary, Segmenter; Segmenter.from_pretrained('ocdit-small');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def settings_of(cls: type) -> set[tuple[str, str]]:
    """Return the fields of a settings class and of its sections: (class, field); sections themselves do not count."""
    found = set()
    for name, hint in typing.get_type_hints(cls).items():
        options = [one for part in (hint, *typing.get_args(hint)) for one in (part, *typing.get_args(part))]
        sections = [one for one in options if dataclasses.is_dataclass(one)]
        found |= {(cls.__name__, name)} if not sections else set().union(*map(settings_of, sections))
    return found


def test_there_are_at_most_143_settings():
    found = set().union(*map(settings_of, (InferenceSettings, TrainSettings, OCDiTConfig, SynthesisSettings)))
    tree = ast.parse((ROOT / "ocdit_ros" / "parameters.py").read_text(encoding="utf-8"))
    node = next(one for one in ast.walk(tree) if isinstance(one, ast.ClassDef) and one.name == "Settings")
    found |= {("node", one.target.id) for one in node.body if isinstance(one, ast.AnnAssign)}
    assert len(found) <= 143, sorted(found)
