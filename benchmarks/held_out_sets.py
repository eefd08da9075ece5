#!/usr/bin/env python3
"""Make a set of scenes with objects that no training has seen: physics rooms in BOP's layout, library, targets.

    python benchmarks/held_out_sets.py --out data/held_out_procedural                       # procedural objects
    python benchmarks/held_out_sets.py --meshes ~/cad --out data/held_out_meshes            # a fifth of your meshes
    python benchmarks/held_out_sets.py --validation --out data/validation_procedural        # to choose settings on

OUT/test holds the scenes, OUT/templates the objects' library, OUT/targets.json what is looked for in each picture.
Fixed seeds: the same command gives the same files on any machine with the same OpenGL. docs/evaluation.md has more.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from ocdit_core.data.bop import BopFolder
from ocdit_core.errors import OcditError
from ocdit_core.evaluation.held_out import draw_targets, split_meshes
from ocdit_core.files import write_text
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.synthesis.procedural import HELD_OUT_SEED
from ocdit_core.synthesis.sources import write_split

SPLIT = "test"
# Disjoint from the objects that training validates on (from 0 on). These numbers are the scenes' seeds, too: rooms of
# training data, with seeds 0, 1 ..., have other textures.
FIRST_OBJECT = {"report": 20_000, "validation": 30_000}
SCENES = {"report": 100, "validation": 40}
OBJECTS = 60


def settings_of(options: argparse.Namespace, part: str) -> SynthesisSettings:
    """What `synthesize` is to make; writes the split file beside the set where meshes are given."""
    scenes = {
        "images": options.scenes or SCENES[part],
        "seed": FIRST_OBJECT[part] + (options.meshes is not None),
        "targets": (4, 8),
        "repeats": 0.08,
        "distractors": (0, 0),
        "views": (1, 1),
        "size": tuple(options.size),
        "quality": "good",
        "bop_split": SPLIT,
    }
    if options.meshes is None:
        return SynthesisSettings(**scenes, objects=options.objects, first_object=HELD_OUT_SEED + FIRST_OBJECT[part])
    meshes = options.meshes.expanduser().resolve()
    parts = split_meshes(meshes, also=options.also, without=options.without)
    split = options.out.resolve().with_name(f"{options.out.name}_split.json")
    split.parent.mkdir(parents=True, exist_ok=True)
    write_split(split, {"train": parts["train"], "test": parts[part]})
    print(f"{split}: {', '.join(f'{len(names)} meshes to {name}' for name, names in parts.items())}")
    return SynthesisSettings(**scenes, meshes=str(meshes), split=str(split), part="test")


def main() -> int:
    """Make the set and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the set's folder (made if new)")
    parser.add_argument(
        "--meshes", type=Path, metavar="FOLDER", help="a fifth of its meshes, instead of procedural ones"
    )
    parser.add_argument("--also", nargs="*", default=[], metavar="PATTERN", help="meshes to be held out in any case")
    parser.add_argument("--without", nargs="*", default=[], metavar="PATTERN", help="meshes that do not suit")
    parser.add_argument("--validation", action="store_true", help="other objects and scenes, to choose settings on")
    parser.add_argument("--objects", type=int, default=OBJECTS, help=f"procedural objects (default {OBJECTS})")
    parser.add_argument("--scenes", type=int, help="pictures, one a scene (default: 100, for validation 40)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"), help="default: 480 640")
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one for each core)")
    options = parser.parse_args()
    part = "validation" if options.validation else "report"
    try:
        settings = settings_of(options, part)
        done = synthesize(options.out, settings, jobs=options.jobs, progress=True)
        frames = list(BopFolder(options.out, SPLIT))
        prepared = json.loads((options.out / "objects.json").read_text(encoding="utf-8"))["objects"]
        rows = draw_targets(frames, [int(number) for number in prepared], seed=settings.seed)
        lines = ",\n".join(json.dumps(row) for row in rows)
        write_text(options.out / "targets.json", f"[\n{lines}\n]\n")
    except OcditError as error:
        print(f"held_out_sets.py: error: {error}", file=sys.stderr)
        return 2
    absent = sum(row["inst_count"] == 0 for row in rows)
    twice = len({row["scene_id"] for row in rows if row["inst_count"] > 1})
    sizes = Counter(Counter(row["scene_id"] for row in rows).values())
    print(
        f"{options.out}: {done.images + done.there} scenes of {done.objects} objects, {len(rows)} targets "
        f"({min(sizes)} to {max(sizes)} a picture), {absent} of them absent ({absent / len(rows):.0%}), "
        f"{twice} pictures with several instances of one object"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
