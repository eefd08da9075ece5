#!/usr/bin/env python3
"""Videos with tracking, whole frames at intervals, against the same frames one by one: accuracy, id changes, time.

    python benchmarks/tracking.py                                   # 2 videos of 60 frames, the embedded model
    python benchmarks/tracking.py --videos 4 --json out.json

Procedural objects that no training has used move over a background, cover each other and leave for a while; one
target is absent. Fixed seeds: the same command gives the same videos on any machine with the same OpenGL.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from videos import VideoFrame, VideoSettings, compose_video, render_sprite

from ocdit_core.errors import OcditError
from ocdit_core.evaluation.average_precision import Matches
from ocdit_core.evaluation.records import ImageRecord, TargetRecord
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.settings import recommended_settings
from ocdit_core.inference.tracker import Tracker
from ocdit_core.masks import mask_iou
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.renderer import Renderer
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, procedural_object

# Away from the objects of validation (0), of held_out.py (10,000) and of held_out_sets.py (20,000 and 30,000).
FIRST_OBJECT = 40_000
SHOWN, ABSENT = 4, 1


def make_videos(folder: Path, options: argparse.Namespace) -> tuple[ObjectLibrary, list[list[VideoFrame]]]:
    """Render the library and compose the videos; each has objects of its own, the last of which is not shown."""
    sprites = []
    files = []
    with Renderer() as renderer:
        for number in range(options.videos * (SHOWN + ABSENT)):
            mesh = procedural_object(HELD_OUT_SEED + FIRST_OBJECT + number)
            files.append(folder / f"object_{number:03d}.glb")
            mesh.export(files[-1])
            handle = renderer.upload(mesh)
            sprites.append(render_sprite(renderer, handle, np.random.default_rng(number), 320))
            handle.release()
    add_objects(folder / "library", files, unit="m")
    settings = VideoSettings(frames=options.frames, speed=options.speed, gone=0.5)
    videos = []
    for number in range(options.videos):
        first = number * (SHOWN + ABSENT)
        shown = sprites[first : first + SHOWN]
        videos.append(list(compose_video(np.random.default_rng([options.seed, number]), shown, settings)))
    return ObjectLibrary(folder / "library"), videos


def names_of(video: int) -> list[str]:
    """Return the targets of a video; the absent ones come last."""
    first = video * (SHOWN + ABSENT)
    return [f"object_{number:03d}" for number in range(first, first + SHOWN + ABSENT)]


def measure(segmenter: Segmenter, library: ObjectLibrary, videos: list[list[VideoFrame]], track: bool) -> dict:
    """Segment all videos and return the metrics."""
    evaluations = 0

    def counted(*_: object) -> None:
        nonlocal evaluations
        evaluations += 1

    handle = segmenter._coarse._network.model.denoiser.register_forward_hook(counted)
    records: list[ImageRecord] = []
    overlaps: list[float] = []
    absent = false = changes = 0
    seconds: list[float] = []
    for number, video in enumerate(videos):
        names = names_of(number)
        segmenter.set_objects(library, names)
        find: Callable[[np.ndarray], Segmentation] = Tracker(segmenter).segment if track else segmenter.segment
        known: dict[str, int] = {}
        for step, frame in enumerate(video):
            result = find(frame.image)
            seconds.append(result.timings["total"])
            targets = []
            for index, name in enumerate(names):
                truth = frame.masks[index] if index < SHOWN else np.zeros_like(frame.masks[0])
                found = [one for one in result.instances if one.object_id == name]
                if not truth.any():
                    absent += 1
                    false += bool(found)
                else:
                    overlaps.append(mask_iou(found[0].mask, truth) if found else 0.0)
                    if found and found[0].track_id is not None and overlaps[-1] > 0.5:
                        changes += known.get(name, found[0].track_id) != found[0].track_id
                        known[name] = found[0].track_id
                truths = [truth] if truth.any() else []
                targets.append(
                    TargetRecord(
                        object_id=number * 100 + index,
                        asked=True,
                        scores=np.array([one.score for one in found]),
                        areas=np.array([float(one.mask.sum()) for one in found]),
                        truth_areas=np.array([float(one.sum()) for one in truths]),
                        visibility=np.full(len(truths), np.nan),
                        overlaps=np.array([[mask_iou(one.mask, mask) for mask in truths] for one in found]).reshape(
                            len(found), len(truths)
                        ),
                    )
                )
            size = (frame.image.shape[0], frame.image.shape[1])
            records.append(ImageRecord(scene_id=number, image_id=step, size=size, time=0.0, targets=tuple(targets)))
    handle.remove()
    precision, _ = Matches(records).average_precision()
    return {
        "ap": precision.ap,
        "ap50": precision.ap50,
        "iou": float(np.mean(overlaps)),
        "false_masks": false / absent,
        "number_changes": changes,
        "evaluations": evaluations / len(records),
        "seconds": float(np.mean(seconds)),
    }


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="ocdit-small", help="embedded model or folder (default ocdit-small)")
    parser.add_argument("--videos", type=int, default=2, help="number of videos (default 2)")
    parser.add_argument("--frames", type=int, default=60, help="length of a video (default 60)")
    parser.add_argument(
        "--speed", type=float, default=0.015, help="motion per frame over the shorter side (default 0.015)"
    )
    parser.add_argument("--no-refine", action="store_true", help="the coarse stage alone")
    parser.add_argument("--intervals", type=int, nargs="*", default=[2, 4], help="of whole frames (default 2 4)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the videos (default 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--json", type=Path, help="write the metrics to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = recommended_settings(options.weights)
    ways = {"frame by frame": None, "tracked": 1} | {f"tracked, interval {n}": n for n in options.intervals}
    rows = {}
    print(
        f"{'way':<26} {'AP':>6} {'AP50':>6} {'IoU':>6} {'false':>6} {'numbers':>8} {'evaluations':>12} {'s/frame':>8}\n"
        f"{'':<26} {'':>6} {'':>6} {'':>6} {'masks':>6} {'changed':>8} {'a frame':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        library, videos = make_videos(Path(folder), options)
        for name, interval in ways.items():
            refine = None if options.no_refine else "auto"
            track = replace(settings.track, interval=interval or 1)
            segmenter = Segmenter.from_pretrained(
                options.weights, settings=replace(settings, track=track), refine=refine
            )
            row = rows[name] = measure(segmenter, library, videos, interval is not None)
            print(
                f"{name:<26} {row['ap']:6.3f} {row['ap50']:6.3f} {row['iou']:6.3f} {row['false_masks']:6.0%} "
                f"{row['number_changes']:8d} {row['evaluations']:12.2f} {row['seconds']:8.3f}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcditError as error:
        print(f"tracking.py: error: {error}", file=sys.stderr)
        sys.exit(2)
