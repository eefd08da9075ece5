"""`ocdit segment`: masks of the target objects in images."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocdit_core.commands.options import (
    add_command,
    add_model,
    add_targets,
    load_segmenter,
    open_library,
    print_table,
    report,
)
from ocdit_core.errors import ConfigError, ImageError, OutputError

if TYPE_CHECKING:
    import numpy as np

    from ocdit_core.inference.results import Segmentation

EXAMPLES = """\
  ocdit segment table.jpg --objects my_objects/ --targets drill mug --out out/
  ocdit segment table.jpg --objects my_objects/ --prompt mug@320,240 --prompt "drill@box:40,60,200,120" --out out/
  ocdit segment photos/*.png --objects my_objects/ --out out/ --threshold 0.5 --set ensemble=4 --device cuda

For each image, OUT holds STEM_overlay.png, STEM.json (COCO run lengths, scores, boxes) and STEM/mask_N_OBJECT.png.
"""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "segment", "segment the objects of a library in images", EXAMPLES)
    parser.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="PNG, JPEG, BMP, TIFF or WebP file")
    add_targets(parser)
    add_model(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="output folder")
    parser.add_argument(
        "--uncertainty", action="store_true", help="also write STEM_uncertainty.png: white where a pixel is undecided"
    )
    text = "also write STEM_steps.png: masks of each crop and member of the ensemble at each noise level"
    parser.add_argument("--steps", action="store_true", help=text)
    group = parser.add_argument_group(
        "prompts",
        "where objects are in the one IMAGE, in pixels; these objects are targets, without --targets the only ones",
    )
    text = "OBJECT@X,Y, a point on it, or OBJECT@box:X,Y,WIDTH,HEIGHT; may be given several times"
    group.add_argument("--prompt", action="append", default=[], metavar="PROMPT", help=text)
    group.add_argument("--prompts", type=Path, metavar="FILE", help="JSON file of prompts of any kind")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment; return 2 if an image could not be used (the others are done), else 0."""
    from tqdm import tqdm

    from ocdit_core.files import check_output
    from ocdit_core.images import read_image, write_image
    from ocdit_core.inference.prompts import parse_prompt, read_prompts
    from ocdit_core.visualization import denoising_strips

    twice = [stem for stem, count in Counter(path.stem for path in arguments.images).items() if count > 1]
    if twice:
        raise ConfigError(f"two images are called {twice[0]!r}: their results would have the same names")
    check_output(*(file for path in arguments.images for file in _outputs(arguments.out, path)))
    prompts = [parse_prompt(text) for text in arguments.prompt]
    prompts += read_prompts(arguments.prompts) if arguments.prompts else []
    if prompts and len(arguments.images) > 1:
        raise ConfigError("prompts are pixels of one image: give one IMAGE")
    if prompts:
        arguments.targets = [*(arguments.targets or ()), *(prompt.object_id for prompt in prompts)]
    library, targets = open_library(arguments)
    # Last, as loading torch and the model takes seconds.
    segmenter = load_segmenter(arguments, library, targets)
    rows: list[list[str]] = []
    failed = 0
    # disable=None: a progress bar on a terminal only, so that log files stay readable.
    hidden = None if len(arguments.images) > 1 else True
    for path in tqdm(arguments.images, desc="segmenting", unit="image", disable=hidden):
        try:
            image = read_image(path)
            result = segmenter.segment(image, uncertainty=arguments.uncertainty, prompts=prompts)
            write_result(arguments.out, path, image, result, model=segmenter.model_name)
            if arguments.steps:
                strips = denoising_strips(*segmenter.steps(image), result.target_ids)
                write_image(_outputs(arguments.out, path)[3], strips)
        except (ImageError, OutputError) as error:
            failed += 1
            report(error)
            continue
        rows += table_rows(path, result)
    if rows:
        print_table(["image", "object", "score", "box", "seconds"], rows)
    return 2 if failed else 0


def table_rows(path: Path, result: Segmentation) -> list[list[str]]:
    """Return a row for each instance, and one for each target that was not found."""
    seconds = f"{result.timings['total']:.2f}" if "total" in result.timings else ""
    rows = []
    for instance in result.instances:
        box = ",".join(str(value) for value in instance.box)
        rows.append([path.name, instance.object_id, f"{instance.score:.2f}", box, seconds])
    found = {instance.object_id for instance in result.instances}
    rows += [[path.name, name, "not found", "", seconds] for name in result.target_ids if name not in found]
    return rows


def write_result(out: Path, path: Path, image: np.ndarray, result: Segmentation, *, model: str) -> None:
    """Write the masks, JSON, overlay and (if the result has one) uncertainty map of an image to `out`.

    Masks of an earlier run for the same image are removed; files that ocdit did not write are never replaced.

    Args:
        out: output folder.
        path: image file; its stem names the results.
        image: (H, W, 3) uint8 RGB.
        result: result for this image.
        model: model name for the JSON.

    Raises:
        OutputError: a result cannot be written, or a file that is not ours has its name; nothing was written then.
    """
    from ocdit_core.files import check_output, own_files, write_text
    from ocdit_core.images import write_image
    from ocdit_core.visualization import overlay

    data, drawing, uncertainty, _ = _outputs(out, path)
    masks = {
        out / path.stem / f"mask_{number}_{instance.object_id}.png": instance.mask
        for number, instance in enumerate(result.instances, start=1)
    }
    check_output(data, drawing, uncertainty, *masks)
    for old in own_files(out / path.stem):
        if old not in masks and old.match("mask_*.png"):
            old.unlink()
    write_text(data, json.dumps(as_json(path, result, model=model), indent=1) + "\n")
    for file, mask in masks.items():
        write_image(file, mask)
    write_image(drawing, overlay(image, result))
    if result.uncertainty is not None:
        write_image(uncertainty, (255 * result.uncertainty).round().astype("uint8"))


def _outputs(out: Path, path: Path) -> tuple[Path, ...]:
    names = (".json", "_overlay.png", "_uncertainty.png", "_steps.png")
    return tuple(out / f"{path.stem}{name}" for name in names)


def as_json(path: Path, result: Segmentation, *, model: str) -> dict[str, Any]:
    """Return the result of one image for JSON: masks as COCO run lengths, boxes as x, y, width, height."""
    from ocdit_core.masks import encode_mask

    height, width = result.image_size
    return {
        "image": path.name,
        "width": width,
        "height": height,
        "model": model,
        "targets": list(result.target_ids),
        "timings": {stage: round(seconds, 4) for stage, seconds in result.timings.items()},
        "instances": [
            {
                "number": number,
                "object_id": instance.object_id,
                "score": round(float(instance.score), 4),
                "box": [int(value) for value in instance.box],
                "area": int(instance.mask.sum()),
                "segmentation": encode_mask(instance.mask),
            }
            for number, instance in enumerate(result.instances, start=1)
        ],
    }
