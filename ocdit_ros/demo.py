"""The whole pipeline on any machine: images -> camera node -> DDS -> segmentation node -> overlays and a table.

python -m ocdit_ros.demo --pictures examples/pictures --library demo_output/objects --out demo_output

Camera and segmentation run in processes of their own, as on a robot, on a ROS domain of the demo's own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ocdit_core.errors import OcditError
from ocdit_core.files import write_text
from ocdit_core.images import write_image
from ocdit_ros import share_folder

NODE_COMMAND = ("-m", "ocdit_ros.segmentation_node")


class Child:
    """A node in a process of its own; what it prints goes to a log file."""

    def __init__(self, name: str, command: Sequence[str], parameters: dict[str, Any], folder: Path):
        self.name = name
        self.log = folder / f"{name}.log"
        settings = folder / f"{name}.yaml"
        settings.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--ros-args", "--params-file", str(settings)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self) -> None:
        """Raise OcditError with its last line of output when the process has ended."""
        if self._process.poll() is not None:
            lines = self.log.read_text().strip().splitlines() or ["no output"]
            raise OcditError(f"the {self.name} ended with code {self._process.returncode}: {lines[-1]}")

    def stop(self) -> int:
        """End the process as Ctrl-C does; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def prepare_environment() -> None:
    """Set a ROS domain of the demo's own, limited to this machine, and (unless one is set) the Fast DDS profile."""
    # Not the user's domain: a robot's own topics may be called /image too.
    os.environ["ROS_DOMAIN_ID"] = str(60 + os.getpid() % 40)
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    # Humble's Fast DDS knows the older name only; the newer ones warn about it.
    variable = "FASTRTPS" if os.environ.get("ROS_DISTRO") == "humble" else "FASTDDS"
    profile = share_folder() / "config" / "fastdds.xml"
    os.environ.setdefault(f"{variable}_DEFAULT_PROFILES_FILE", str(profile))


def run(options: argparse.Namespace, node_command: Sequence[str] = NODE_COMMAND) -> None:
    """Show every image to the node, and print the tables.

    Args:
        options: options of the command line.
        node_command: what Python runs as the segmentation node.

    Raises:
        OcditError: invalid input, or something did not arrive in time.
    """
    prepare_environment()
    from ocdit_ros.demo_client import DemoClient, Seen, read_ground_truth, report
    from ocdit_ros.picture_camera import find_images

    images = find_images(options.pictures)
    truths = {name: read_ground_truth(path) for name, path in images.items()}
    by_targets: dict[tuple[str, ...], list[str]] = {}
    for name, truth in truths.items():
        by_targets.setdefault(truth.targets, []).append(name)
    options.out.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Seen] = {}
    with tempfile.TemporaryDirectory(prefix="ocdit_demo_") as scratch:
        children = start(options, Path(scratch), node_command)

        def check() -> None:
            for child in children:
                child.check()

        client = DemoClient(check=check, timeout=options.timeout)
        try:
            client.wait_until_active()
            show_all(client, by_targets, seen, options.out)
        finally:
            client.close()
            codes = {child.name: child.stop() for child in children}
        for name, code in codes.items():
            if code != 0:
                raise OcditError(f"the {name} ended with code {code}")
    results = report(truths, {name: seen[name] for name in images})
    write_text(options.out / "results.json", json.dumps(results, indent=2))


def start(options: argparse.Namespace, scratch: Path, node_command: Sequence[str]) -> list[Child]:
    """Start the node and the camera."""
    node = {
        "library": str(options.library),
        "model": options.model,
        "device": options.device,
        "autostart": True,
        "diagnostics_every_frame": True,
    }
    camera = {"folder": str(options.pictures), "rate": options.rate}
    return [
        Child("segmentation node", node_command, node, scratch),
        Child("picture camera", ("-m", "ocdit_ros.picture_camera"), camera, scratch),
    ]


def show_all(client: Any, by_targets: dict[tuple[str, ...], list[str]], seen: dict[str, Any], out: Path) -> None:
    """Go through the target sets; within one, the camera shows what has not been seen yet."""
    for targets, names in by_targets.items():
        pending = list(names)
        client.show(pending)
        since = client.set_targets(targets)
        while pending:
            name, result, overlay = client.collect(pending, since)
            seen[name] = result
            write_image(out / f"{name}_overlay.png", overlay)
            pending.remove(name)
            found = ", ".join(f"{object_id} {score:.2f}" for object_id, score, _ in result.instances) or "nothing"
            print(f"{name}: {found}", flush=True)
            if pending:
                client.show(pending)


def main(argv: list[str] | None = None, node_command: Sequence[str] = NODE_COMMAND) -> int:
    """Run the demo; return 0, or 2 after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m ocdit_ros.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of images; <stem>.json: ground truth")
    parser.add_argument("--library", type=Path, required=True, help="folder made by `ocdit render`")
    parser.add_argument("--out", type=Path, required=True, help="folder for overlays and results.json")
    parser.add_argument("--model", default="ocdit-small", help="an embedded model, or a folder (default: ocdit-small)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--rate", type=float, default=5.0, help="images per second (default: 5)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for any one event (default: 120)")
    options = parser.parse_args(argv)
    try:
        run(options, node_command)
    except (OcditError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"demo: error: ROS 2 is incomplete here ({error}); see pip_home/README.md", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"overlays and results.json are in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
