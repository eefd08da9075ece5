#!/usr/bin/env python3
"""Images a second that `ocdit synthesize` makes, all included, and where the time goes.

    python benchmarks/synthesize.py                       # 400 images of 640 x 480, about 8 objects, two processes
    python benchmarks/synthesize.py --stages              # milliseconds of processor time for each stage
    python benchmarks/synthesize.py --quality good --format both

Processor time is that of all processes: on a machine that does nothing else, images a second are the number of cores
over the processor seconds of an image.
"""

import argparse
import cProfile
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path

from ocdit_core.errors import OcditError
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings

# What is measured, by the file and the function that does it; what lies in another row is not counted twice.
STAGES = {
    "read or make objects": ("scenes.py", "_object"),
    "convex hulls": ("settling.py", "collision_hulls"),
    "put objects on the card": ("renderer.py", "upload"),
    "settle (MuJoCo)": ("settling.py", "settle"),
    "textures": ("scenes.py", "_texture"),
    "shadow maps and sky light": ("renderer.py", "stage"),
    "choose cameras": ("scenes.py", "choose_cameras"),
    "colours, labels, depth": ("renderer.py", "draw"),
    "silhouettes": ("renderer.py", "silhouettes"),
    "camera's effects": ("painting.py", "photograph"),
    "JPEG": ("writers.py", "encode_image"),
    "depth PNG": ("writers.py", "encode_depth"),
    "mask PNGs": ("writers.py", "_encode_mask_image"),
    "run lengths": ("masks.py", "encode_mask"),
    "boxes and counts": ("writers.py", "info_entry"),
    "checks of the frames": ("writers.py", "_check"),
}


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="images (default 400)")
    parser.add_argument("--objects", type=int, default=60, help="procedural objects (default 60)")
    parser.add_argument("--meshes", type=Path, help="a folder of meshes, beside them")
    parser.add_argument("--targets", type=int, nargs=2, default=(6, 10), metavar=("MIN", "MAX"), help="default 6 10")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="default 480 640")
    parser.add_argument("--format", default="bop", choices=("bop", "shards", "both"), help="default bop")
    parser.add_argument("--quality", default="fast", choices=("fast", "good"), help="default fast")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--stages", action="store_true", help="time each stage, in this process alone")
    parser.add_argument("--out", type=Path, help="keep the dataset here (default: thrown away)")
    options = parser.parse_args()
    settings = SynthesisSettings(
        images=options.images,
        objects=options.objects,
        meshes=None if options.meshes is None else str(options.meshes.resolve()),
        targets=tuple(options.targets),
        size=tuple(options.size),
        format=options.format,
        quality=options.quality,
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            out = options.out or Path(temporary) / "dataset"
            # Models and templates, and the first image.
            began, before = time.perf_counter(), cpu_seconds()
            jobs = 1 if options.stages else options.jobs
            profile = cProfile.Profile(time.process_time)
            if options.stages:
                profile.enable()
            done = synthesize(out, settings, jobs=jobs)
            profile.disable()
            used, taken = cpu_seconds() - before, time.perf_counter() - began
            scenes = done.seconds
    except OcditError as error:
        print(f"synthesize.py: error: {error}", file=sys.stderr)
        return 2
    images = done.images
    print(
        f"{images} images, {done.objects} objects: {taken:.1f} s, of which models and templates {taken - scenes:.1f} s"
    )
    print(f"{images / scenes:.1f} images/s by {jobs} processes; {images / taken:.1f} with models and templates")
    print(
        f"{1000 * used / images:.0f} ms of processor time an image, all included: {images / used:.2f} images a second"
    )
    if options.stages:
        print_stages(profile, images)
    return 0


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def print_stages(profile: cProfile.Profile, images: int) -> None:
    """Print a row for each stage."""
    rows: dict[str, list[float]] = {name: [0.0, 0] for name in STAGES}
    prepare = total = 0.0
    for (file, _, function), (_, calls, own, spent, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        total += own
        name = Path(file).name
        if function == "prepare_objects":
            prepare = spent
        for stage, (where, what) in STAGES.items():
            if (name, function) == (where, what):
                rows[stage] = [spent, calls]
    print(f"\n{'stage':28} {'calls':>6} {'ms a call':>10} {'ms an image':>12}")
    for stage, (spent, calls) in rows.items():
        if calls:
            print(f"{stage:28} {calls:6.0f} {1000 * spent / calls:10.1f} {1000 * spent / images:12.1f}")
    rest = total - prepare - sum(spent for spent, _ in rows.values())
    print(f"{'models and templates':28} {'':6} {'':10} {1000 * prepare / images:12.1f}")
    print(f"{'all else':28} {'':6} {'':10} {1000 * rest / images:12.1f}")


if __name__ == "__main__":
    sys.exit(main())
