#!/usr/bin/env python3
"""Location prompts that are wrong, and look-alikes beside the target: what prompts refuse, and what they tell apart.

    python benchmarks/held_out_sets.py --out data/held_out_procedural
    python benchmarks/prompts.py data/held_out_procedural --images 20

Wrong prompts: points and boxes of an image are given for other objects, each for the next target that it shows, and
on background. Twins: a copy of a target, as it is, recoloured, or at 0.7 of its size, is pasted into free background.
The right twin is found where the best mask of the target has an IoU of 0.5 or more with it.
`ocdit evaluate --prompts` measures right prompts.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.drawn_prompts import draw_prompt
from ocdit_core.evaluation.targets import choose_targets, image_key, names_of_objects
from ocdit_core.inference.prompts import Prompt
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.masks import Box, mask_iou, tight_box
from ocdit_core.objects.library import ObjectLibrary

SPLIT, SEED, VISIBLE, CLEAR, MIN_IOU = "test", 0, 0.1, 0.9, 0.5
TWINS = ("equal", "recoloured", "resized")
KINDS = ("point", "box")


def placed(prompt: Prompt, name: str) -> Prompt:
    """Return a prompt for another object."""
    return Prompt(object_id=name, points=prompt.points, box=prompt.box)


def free_box(
    size: tuple[int, int], taken: np.ndarray, image_size: tuple[int, int], rng: np.random.Generator
) -> Box | None:
    """Return a box of a size (width, height) that shows no object; None if 50 attempts find none."""
    for _ in range(50):
        x, y = (int(rng.integers(0, most - side + 1)) for side, most in zip(size, image_size[::-1], strict=True))
        if not taken[y : y + size[1], x : x + size[0]].any():
            return x, y, *size
    return None


def with_twin(
    image: np.ndarray, mask: np.ndarray, kind: str, taken: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Return the image with a copy of the object in the mask on free background; None: there is no place for it."""
    x, y, width, height = tight_box(mask)
    part, alpha = image[y : y + height, x : x + width], mask[y : y + height, x : x + width].astype(np.uint8)
    if kind == "resized":
        size = (max(round(0.7 * width), 1), max(round(0.7 * height), 1))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_NEAREST)
    elif kind == "recoloured":
        hsv = cv2.cvtColor(part, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + 60) % 180
        part = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    box = free_box(part.shape[1::-1], taken, mask.shape, rng)
    if box is None:
        return None
    copy = image.copy()
    copy[box[1] : box[1] + box[3], box[0] : box[0] + box[2]][alpha > 0] = part[alpha > 0]
    return copy


def measure(folder: Path, segmenter: Segmenter, images: int, counts: Counter[tuple[str, ...]]) -> None:
    """Count prompts, and what became of them."""
    dataset, library = BopFolder(folder, SPLIT), ObjectLibrary(folder / "templates")
    targets = choose_targets(dataset, "targets.json")
    names, rng = names_of_objects(library, folder), np.random.default_rng(SEED)
    for frame in list(dataset.frames(dict(list(targets.items())[:images]))):
        segmenter.set_objects(library, [names[number] for number in targets[image_key(frame)]])
        shown = [
            (index, names[one.object_id], one.visible_fraction)
            for index, one in enumerate(frame.annotations)
            if one.visible_fraction >= VISIBLE and names[one.object_id] in segmenter.object_ids
        ]
        if shown:
            wrong_prompts(frame, shown, segmenter, rng, counts)
            twins(frame, shown, segmenter, rng, counts)


def wrong_prompts(
    frame: Frame, shown: list[tuple[int, str, float]], segmenter: Segmenter, rng: np.random.Generator, counts: Counter
) -> None:
    """Count wrong prompts, and those with a mask."""
    image = frame.image()
    taken = np.any([frame.mask(index) for index in range(len(frame.annotations))], axis=0)
    others = list(dict.fromkeys(name for _, name, _ in shown))
    for kind in KINDS:
        prompts: dict[str, list[Prompt]] = {"another object": [], "background": []}
        for index, name, _ in shown:
            right = draw_prompt(kind, frame, index, name)
            if len(others) > 1:
                wrong = others[(others.index(name) + 1) % len(others)]
                prompts["another object"].append(placed(right, wrong))
            box = free_box(tight_box(frame.mask(index))[2:], taken, frame.size, rng)
            if box is not None:
                centre = [(box[0] + box[2] // 2, box[1] + box[3] // 2)]
                place = {"points": centre} if kind == "point" else {"box": box}
                prompts["background"].append(Prompt(object_id=name, **place))
        for what, given in prompts.items():
            if given:
                found = segmenter.segment(image, prompts=given).instances
                counts[kind, what, "prompts"] += len(given)
                counts[kind, what, "masks"] += sum(one.object_id in {p.object_id for p in given} for one in found)


def twins(
    frame: Frame, shown: list[tuple[int, str, float]], segmenter: Segmenter, rng: np.random.Generator, counts: Counter
) -> None:
    """Count images with a twin of one target, and those in which the right one is found."""
    clear = [(index, name) for index, name, visible in shown if visible >= CLEAR]
    if not clear:
        return
    index, name = clear[int(rng.integers(len(clear)))]
    mask = frame.mask(index)
    taken = np.any([frame.mask(other) for other in range(len(frame.annotations))], axis=0)
    for twin in TWINS:
        image = with_twin(frame.image(), mask, twin, taken, rng)
        if image is None:
            continue
        for kind in ("none", *KINDS):
            prompts = [] if kind == "none" else [draw_prompt(kind, frame, index, name)]
            found = [one for one in segmenter.segment(image, prompts=prompts).instances if one.object_id == name]
            counts["twin", twin, kind, "images"] += 1
            counts["twin", twin, kind, "right"] += bool(found) and bool(mask_iou(found[0].mask, mask) >= MIN_IOU)


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders of benchmarks/held_out_sets.py")
    parser.add_argument("--weights", default="ocdit-small", help="embedded model or folder (default ocdit-small)")
    parser.add_argument("--images", type=int, default=20, help="images of each set (default 20)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        segmenter = Segmenter.from_pretrained(options.weights)
        for folder in options.data:
            counts: Counter[tuple[str, ...]] = Counter()
            measure(folder, segmenter, options.images, counts)
            print(folder.name)
            for kind in KINDS:
                for what in ("another object", "background"):
                    given = counts[kind, what, "prompts"]
                    print(f"  {kind} on {what:<16}{given:>5} prompts, {given - counts[kind, what, 'masks']} refused")
            for twin in TWINS:
                for kind in ("none", *KINDS):
                    total = counts["twin", twin, kind, "images"]
                    right = counts["twin", twin, kind, "right"]
                    print(f"  {twin} twin, prompt {kind:<8}{total:>5} images, {right} with the right one", flush=True)
    except OcditError as error:
        print(f"prompts.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
