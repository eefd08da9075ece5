#!/usr/bin/env python3
"""Accuracy with depth: 3D boxes, initial poses, and objects that differ in size alone.

    python benchmarks/depth.py data/depth

Makes two sets of 50 images of rooms with depth: DATA/rooms of 8 held-out objects, and DATA/twins of some of them in two
sizes, 1 and 1.5; a later run uses them again. Depth is spoiled as that of a stereo camera: noise that grows with the
square of the distance, millimetres, holes and mixed pixels at edges. Objects count of which at least 60% is visible.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Annotation
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.targets import names_of_objects
from ocdit_core.inference.depth import Box3D, Pose, lift
from ocdit_core.inference.results import Instance, Segmentation
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.masks import mask_iou, tight_box
from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.meshes import read_cad
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.synthesis.procedural import HELD_OUT_SEED

SPLIT, SEED, VISIBLE, MIN_PIXELS, MIN_IOU = "test", 40_000, 0.6, 300, 0.5
TWIN, IMAGES = 1.5, 50
Rows = dict[str, list[tuple[float, ...]]]


def make_sets(folder: Path, jobs: int) -> None:
    """Make both sets, or continue; twins are made of objects whose larger twin, too, fits on a table."""
    scenes = {"images": IMAGES, "seed": SEED, "distractors": (0, 0), "views": (1, 5), "bop_split": SPLIT}
    rooms = SynthesisSettings(objects=8, first_object=HELD_OUT_SEED + SEED, targets=(4, 8), **scenes)
    synthesize(folder / "rooms", rooms, jobs=jobs, progress=True)
    meshes = folder / "twin_meshes"
    if not meshes.is_dir():
        meshes.mkdir()
        models = [read_cad(path) for path in sorted((folder / "rooms" / "models").glob("*.ply"))]
        for number, model in enumerate([one for one in models if 0.06 < one.diameter < 0.23]):
            for name, scale in (("small", 1.0), ("large", TWIN)):
                model.mesh.copy().apply_scale(scale).export(meshes / f"twin{number}_{name}.glb")
    twins = SynthesisSettings(meshes=str(meshes.resolve()), targets=(4, 8), **scenes)
    synthesize(folder / "twins", twins, jobs=jobs, progress=True)


def spoiled(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return depth (H, W) in metres as a camera measures it, uint16 millimetres."""
    smooth = cv2.blur(depth, (3, 3))
    edge = cv2.dilate(depth, np.ones((3, 3))) - cv2.erode(depth, np.ones((3, 3))) > 0.02
    measured = np.where(edge, smooth, depth) + rng.normal(0, 1, depth.shape) * (0.0005 + 0.0015 * depth**2)
    measured[(depth == 0) | (edge & (rng.random(depth.shape) < 0.5)) | (rng.random(depth.shape) < 0.01)] = 0
    return np.rint(1000 * measured).astype(np.uint16)


def symmetries(templates: ObjectTemplates) -> np.ndarray:
    """Return turns (S, 3, 3) about one or two of its axes that leave an object's surface in place, nearly."""
    points = templates.points - (templates.points.min(axis=0) + templates.points.max(axis=0)) / 2
    found = [np.eye(3)]
    for axis in np.eye(3):
        for angle in np.arange(15, 360, 15):
            turn = cv2.Rodrigues(np.radians(angle) * axis)[0]
            if distances(points[::2] @ turn.T, points).mean() < 0.02 * templates.diameter:  # spacing of points: 0.015
                found.append(turn)
    return np.concatenate([turn @ np.stack(found) for turn in found])


def distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each point (N, 3) to the nearest of others (M, 3)."""
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    return np.sqrt(squares.clip(0).min(axis=1))


def box_errors(box: Box3D | None, truth: Annotation, templates: ObjectTemplates) -> tuple[float, ...]:
    """Return the error of the centre in metres, and the mean relative error of the sides in order of length."""
    if box is None:
        return np.inf, np.inf
    low, high = templates.points.min(axis=0), templates.points.max(axis=0)
    centre = truth.rotation @ ((low + high) / 2) + truth.translation
    sides = np.sort(high - low)
    return float(np.linalg.norm(box.center - centre)), float(np.abs(np.sort(box.size) / sides - 1).mean())


def pose_errors(
    pose: Pose | None, truth: Annotation, templates: ObjectTemplates, turns: np.ndarray
) -> tuple[float, ...]:
    """Return errors of rotation (degrees, least of all turns) and centre (m), ADD-S / diameter, and fitness."""
    if pose is None:
        return np.inf, np.inf, np.inf, 0.0
    cosines = (np.trace(pose.rotation.T @ truth.rotation @ turns, axis1=1, axis2=2) - 1) / 2
    points = templates.points[::2].astype(np.float64)
    centre = (templates.points.min(axis=0) + templates.points.max(axis=0)) / 2
    moved = (points @ one.T + t for one, t in ((pose.rotation, pose.translation), (truth.rotation, truth.translation)))
    offset = (pose.rotation - truth.rotation) @ centre + pose.translation - truth.translation
    add_s = float(distances(*moved).mean() / templates.diameter)
    angle = float(np.degrees(np.arccos(np.clip(cosines.max(), -1, 1))))
    return angle, float(np.linalg.norm(offset)), add_s, pose.fitness


def shown(frame: object) -> list[tuple[Annotation, np.ndarray]]:
    """Return the objects that are visible enough, and their masks."""
    both = [(one, frame.mask(index)) for index, one in enumerate(frame.annotations) if one.visible_fraction >= VISIBLE]
    return [(one, mask) for one, mask in both if mask.sum() >= MIN_PIXELS]


def best_of(result: Segmentation, name: str, mask: np.ndarray) -> int | None:
    """Return the index of the object's instance that has the largest IoU with a mask; None: below 0.5."""
    overlaps = [float(mask_iou(one.mask, mask)) if one.object_id == name else 0.0 for one in result.instances] or [0.0]
    best = int(np.argmax(overlaps))
    return best if overlaps[best] >= MIN_IOU else None


def measure_rooms(folder: Path, segmenter: Segmenter, images: int) -> Rows:
    """Return the errors of boxes and poses, of ground-truth masks and of the segmenter's."""
    library = ObjectLibrary(folder / "templates")
    names = names_of_objects(library, folder)
    objects = {name: library[name] for name in library}
    turns = {name: symmetries(templates) for name, templates in objects.items()}
    segmenter.set_objects(library)
    rng = np.random.default_rng(SEED)
    rows: Rows = defaultdict(list)
    for frame in list(BopFolder(folder, SPLIT))[:images]:
        image, depth, K, truths = frame.image(), spoiled(frame.depth(), rng), frame.K, shown(frame)
        exact = tuple(
            Instance(object_id=names[truth.object_id], score=1.0, box=tight_box(mask), mask=mask)
            for truth, mask in truths
        )
        found = segmenter.segment(image, depth=depth, camera_matrix=K)
        without = segmenter.segment(image)
        for truth, mask in truths:
            if best_of(without, names[truth.object_id], mask) is not None:
                rows["found without depth"].append((1.0,))
        for kind, result in (
            ("truth", Segmentation(instances=exact, image_size=frame.size, target_ids=segmenter.object_ids)),
            ("found", found),
        ):
            poses = segmenter.poses(image, result, K, depth=depth)
            plain = segmenter.poses(image, result, K) if kind == "found" else [None] * len(poses)
            boxes = [lift(result, depth, K), lift(result, depth, K, poses)]
            for truth, mask in truths:
                name = names[truth.object_id]
                best = best_of(result, name, mask)
                rows[f"{kind}: visible"].append((1.0,))
                if best is None:
                    continue
                for what, lifted in zip(("surface", "box"), boxes, strict=True):
                    rows[f"{kind}: {what}"].append(box_errors(lifted[best].box, truth, objects[name]))
                rows[f"{kind}: pose"].append(pose_errors(poses[best], truth, objects[name], turns[name]))
                if kind == "found":
                    rows["found: pose without depth"].append(
                        pose_errors(plain[best], truth, objects[name], turns[name])
                    )
    return rows


def measure_twins(folder: Path, segmenter: Segmenter, images: int) -> dict[str, tuple[int, int, int]]:
    """Return how many twins were found, and how many of these have the right name, without and with depth."""
    library = ObjectLibrary(folder / "templates")
    names = names_of_objects(library, folder)
    origins = json.loads((folder / "objects.json").read_text(encoding="utf-8"))["objects"]
    pair = {names[int(number)]: origin.rsplit("_", 1)[0] for number, origin in origins.items()}
    segmenter.set_objects(library)
    rng = np.random.default_rng(SEED)
    counts = {}
    for kind in ("without depth", "with depth"):
        right = found = total = 0
        for frame in list(BopFolder(folder, SPLIT))[:images]:
            depth = spoiled(frame.depth(), rng) if kind == "with depth" else None
            result = segmenter.segment(frame.image(), depth=depth, camera_matrix=frame.K)
            for truth, mask in shown(frame):
                name = names[truth.object_id]
                of = [one for one in result.instances if pair[one.object_id] == pair[name]]
                best = max(of, key=lambda one, mask=mask: float(mask_iou(one.mask, mask)), default=None)
                total += 1
                if best is not None and mask_iou(best.mask, mask) >= MIN_IOU:
                    found += 1
                    right += best.object_id == name
        counts[kind] = (right, found, total)
    return counts


def summary(kind: str, errors: np.ndarray) -> str:
    """Return the medians of errors (N, ...) of one kind in words."""
    medians = np.median(errors, axis=0)
    if "pose" in kind:
        angle, offset, _, fitness = medians
        recall = (errors[:, 2] < 0.1).mean()
        return (
            f"rotation {angle:.1f} deg, centre {1000 * offset:.1f} mm, ADD-S recall {recall:.0%}, fitness {fitness:.2f}"
        )
    return f"centre {1000 * medians[0]:.1f} mm, sides {medians[1]:.1%}" if len(medians) == 2 else ""


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--weights", default="ocdit-small", help="embedded model or folder (default ocdit-small)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"most images of each set (default {IMAGES})")
    parser.add_argument("--jobs", type=int, default=1, help="processes that make the sets (default 1)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--json", type=Path, help="write the errors of each object to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        make_sets(options.data, options.jobs)
        segmenter = Segmenter.from_pretrained(options.weights)
        rows = measure_rooms(options.data / "rooms", segmenter, options.images)
        for kind, errors in rows.items():
            print(f"{kind:<28}{len(errors):>5} objects  {summary(kind, np.array(errors))}", flush=True)
        twins = measure_twins(options.data / "twins", segmenter, options.images)
        for kind, (right, found, total) in twins.items():
            print(f"twins {kind:<22}{total:>5} objects, {found} found, {right} of them by the right name")
    except OcditError as error:
        print(f"depth.py: error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps({"rooms": rows, "twins": twins}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
