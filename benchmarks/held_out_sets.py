#!/usr/bin/env python3
"""Make a held-out set: scenes of objects that are never used for training, in BOP format, with library and targets.

    python benchmarks/held_out_sets.py --out data/held_out_procedural                       # procedural objects
    python benchmarks/held_out_sets.py --meshes ~/cad --out data/held_out_meshes            # a fifth of your meshes
    python benchmarks/held_out_sets.py --meshes ~/cad --path-traced --out data/held_out_traced   # path-traced images
    python benchmarks/held_out_sets.py --validation --out data/validation_procedural        # to choose settings on

OUT/test holds the scenes, OUT/templates the objects' library, OUT/targets.json the targets of each image.
Fixed seeds: the same command gives the same files on any machine with the same OpenGL. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame
from ocdit_core.errors import ConfigError, DataError, OcditError
from ocdit_core.evaluation.records import MIN_VISIBLE
from ocdit_core.files import write_text
from ocdit_core.objects.formats import FORMATS
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.synthesis.procedural import HELD_OUT_SEED
from ocdit_core.synthesis.sources import write_split

Part = Literal["train", "validation", "report"]

SPLIT = "test"
# Disjoint from the objects that training validates on (from 0 on). These numbers are the scenes' seeds, too: rooms of
# training data, with seeds 0, 1 ..., have other textures.
FIRST_OBJECT = {"report": 20_000, "validation": 30_000}
SCENES = {"report": 100, "validation": 40}
PATH_TRACED_SCENES = 50
OBJECTS = 60
_ABSENT = 0.5  # absent targets per visible one: about 28% of all targets


def settings_of(options: argparse.Namespace, part: str) -> SynthesisSettings:
    """Return the settings of `synthesize`; for meshes, write the split file beside the set."""
    scenes = {
        "images": options.scenes or (PATH_TRACED_SCENES if options.path_traced else SCENES[part]),
        "seed": FIRST_OBJECT[part] + (options.meshes is not None) + 2 * options.path_traced,
        "targets": (4, 8),
        "repeats": 0.08,
        "distractors": (0, 0),
        "views": (1, 1),
        "size": tuple(options.size),
        "quality": "good",
        "path_traced": float(options.path_traced),
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
    parser.add_argument("--scenes", type=int, help="images, one a scene (default: 100, validation 40, path-traced 50)")
    parser.add_argument("--path-traced", action="store_true", help="render by path tracing (needs Mitsuba)")
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
        f"({min(sizes)} to {max(sizes)} an image), {absent} of them absent ({absent / len(rows):.0%}), "
        f"{twice} images with several instances of one object"
    )
    return 0


def part_of(file: str, *, held_out: bool = False) -> Part:
    """Return the part of a mesh file: a fifth is held out, a third of that for validation (choosing settings).

    It depends on the file's path alone, so that a file stays in its part when others are added.

    Args:
        file: path below the folder of meshes, with suffix and forward slashes: kitchen/mug.glb.
        held_out: never use it for training.
    """
    digest = int(hashlib.sha1(file.encode(), usedforsecurity=False).hexdigest(), 16)
    if digest % 5 and not held_out:
        return "train"
    return "report" if digest // 5 % 3 else "validation"


def split_meshes(folder: Path, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> dict[Part, list[str]]:
    """Split the meshes of a folder and its subfolders by the hash of their paths.

    Args:
        folder: folder of mesh files.
        also: patterns (* and ?) of files to hold out whatever their hash, such as look-alikes of a public test set.
        without: patterns of files to leave out.

    Returns:
        Names of each part as `MeshFolder` has them (paths without suffix), sorted.

    Raises:
        DataError: the folder is missing or holds no mesh.
        ConfigError: no file's path matches one of the patterns.
    """
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS and path.is_file()
    )
    if not files:
        raise DataError(f"{folder}: holds no meshes; known formats are {', '.join(FORMATS)}")
    for pattern in [*also, *without]:
        if not any(fnmatch(file, pattern) for file in files):
            raise ConfigError(f"{pattern}: matches no mesh in {folder}; {files[0]} is one")
    parts: dict[Part, list[str]] = {"train": [], "validation": [], "report": []}
    for file in files:
        if any(fnmatch(file, pattern) for pattern in without):
            continue
        part = part_of(file, held_out=any(fnmatch(file, pattern) for pattern in also))
        parts[part].append(Path(file).with_suffix("").as_posix())
    return parts


def draw_targets(
    frames: Iterable[Frame], object_ids: Sequence[int], *, seed: int = 0, count: tuple[int, int] = (4, 8)
) -> list[dict[str, int]]:
    """Draw the targets of each image: all objects that it shows, and some that it does not.

    Args:
        frames: the images; the targets of an image depend on its numbers and the seed alone.
        object_ids: all objects of the set, from which absent ones are drawn.
        seed: random seed.
        count: minimum and maximum number of targets of an image, as far as the visible objects allow.

    Returns:
        Rows of a targets file: scene_id, im_id, obj_id and inst_count, the number of instances with a visible fraction
        of at least 0.1; 0 for an absent object. An object that is less visible is no target.

    Raises:
        DataError: an image shows no object.
    """
    least, most = count
    rows = []
    for frame in frames:
        seen = Counter(item.object_id for item in frame.annotations if item.visible_fraction >= MIN_VISIBLE)
        if not seen:
            raise DataError(f"{frame.where}: shows no object; generate the scenes with another seed")
        shown = {item.object_id for item in frame.annotations}
        rng = np.random.default_rng([seed, frame.scene_id, frame.image_id, 0xAB5E])
        wanted = int(_ABSENT * len(seen) + rng.random())
        others = [number for number in object_ids if number not in shown]
        extra = min(max(wanted, least - len(seen)), max(most - len(seen), 0), len(others))
        absent = rng.choice(others, extra, replace=False).tolist() if extra else []
        rows += [
            {"im_id": frame.image_id, "inst_count": seen[number], "obj_id": number, "scene_id": frame.scene_id}
            for number in sorted([*seen, *absent])
        ]
    return rows


if __name__ == "__main__":
    sys.exit(main())
