"""What the commands that segment share: which objects to look for, and with which model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocdit_core.commands.common import fraction

if TYPE_CHECKING:
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.objects.library import ObjectLibrary


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--objects", required=True, type=Path, metavar="LIBRARY", help="made by `ocdit render`")
    parser.add_argument("--targets", nargs="+", metavar="NAME", help="the objects to look for; default: all of them")
    parser.add_argument("--weights", default="ocdit-tiny", help="an embedded model's name or a folder (ocdit-tiny)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument(
        "--threshold", type=fraction, help="leave out instances that score less (0 to 1; default: the model's)"
    )
    parser.add_argument("--preset", metavar="NAME", help="fast (as the model recommends; default) or paper")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the inference: ensemble=4 crops=5 ..."
    )


def open_library(arguments: argparse.Namespace) -> tuple[ObjectLibrary, list[str]]:
    """Return the library and the names to look for; raises LibraryError for what is wrong with either."""
    from ocdit_core.objects.library import ObjectLibrary

    library = ObjectLibrary(arguments.objects)
    targets = list(dict.fromkeys(arguments.targets or library.object_ids))
    library.select(targets)
    return library, targets


def load_segmenter(
    arguments: argparse.Namespace, library: ObjectLibrary, targets: list[str], *, uncertainty: bool = False
) -> Segmenter:
    """Return the model with its targets set; raises WeightsError or ConfigError for what is wrong with it."""
    from ocdit_core.inference.segmenter import Segmenter
    from ocdit_core.inference.weights import recommended_settings

    settings = recommended_settings(arguments.weights, preset=arguments.preset, overrides=arguments.set)
    if uncertainty:
        settings = replace(settings, uncertainty=True)
    if arguments.threshold is not None:
        settings = replace(settings, score_threshold=arguments.threshold)
    segmenter = Segmenter.from_pretrained(arguments.weights, device=arguments.device, settings=settings)
    segmenter.set_objects(library, targets)
    return segmenter
