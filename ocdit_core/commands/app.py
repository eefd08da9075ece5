"""`ocdit app`: a local web page that segments images."""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from pathlib import Path

from ocdit_core.commands.options import add_command, add_model
from ocdit_core.errors import ConfigError
from ocdit_core.files import reason

EXAMPLES = """\
  ocdit app
  ocdit app --objects my_objects/ --port 8000
"""
_SOURCE = Path(__file__).parents[2] / "examples"
_INSTALLED = Path(sys.prefix) / "share" / "ocdit_ros" / "examples"


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "app", "segment images on a local web page", EXAMPLES)
    text = "object library, made by `ocdit render` (default: the example objects)"
    parser.add_argument("--objects", type=Path, metavar="LIBRARY", help=text)
    add_model(parser)
    text = "address to listen on; 0.0.0.0: other machines can use the page, too (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl+C."""
    try:
        from ocdit_core.app.page import server_of
    except ModuleNotFoundError as error:
        raise ConfigError(f"ocdit app needs {error.name}: pip install 'ocdit_ros[app]'") from error
    from ocdit_core.app.studio import Studio
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.settings import recommended_settings
    from ocdit_core.objects.library import ObjectLibrary

    examples = next((folder for folder in (_SOURCE, _INSTALLED) if folder.is_dir()), _SOURCE)
    library = ObjectLibrary(arguments.objects or _example_objects(examples / "meshes"))
    settings = recommended_settings(arguments.weights, preset=arguments.preset, overrides=arguments.settings)
    segmenter = Segmenter.from_pretrained(arguments.weights, device=arguments.device, settings=settings)
    studio = Studio(segmenter, library)
    images = sorted((examples / "images").glob("*.jpg")) if arguments.objects is None else []
    try:
        listening = socket.create_server((arguments.host, arguments.port))
    except OSError as error:
        where = f"{arguments.host}:{arguments.port}"
        raise ConfigError(f"{where}: cannot be listened on ({reason(error)}); choose another --port") from error
    print(f"http://{arguments.host}:{arguments.port} shows the page; Ctrl+C ends it", flush=True)
    try:
        server_of(studio, images).run(sockets=[listening])
    finally:
        studio.close()
    return 0


def _example_objects(meshes: Path) -> Path:
    """Return a library of the example objects in the cache folder, rendered when it is used first."""
    from ocdit_core.inference.targets import default_cache
    from ocdit_core.objects.onboarding import add_objects

    files = sorted(meshes.glob("*.glb"))
    if not files:
        raise ConfigError("the example objects are not installed: name a library with --objects")
    cache = default_cache()
    folder = Path(tempfile.gettempdir()) / "ocdit_examples" if cache is None else cache.with_name("examples")
    add_objects(folder, files, unit="m", jobs=0, progress=True)
    return folder
