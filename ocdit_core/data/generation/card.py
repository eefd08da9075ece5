"""The description of a synthesised dataset, for whoever finds it: README.md in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from ocdit_core.data.generation.plan import SynthesisSettings, views_of_scenes
from ocdit_core.data.generation.scene_work import TaskRecord
from ocdit_core.data.generation.sources import PreparedObjects
from ocdit_core.files import write_text

_DEFAULT = SynthesisSettings(objects=1)


def command_of(settings: SynthesisSettings, out: str = "DATASET") -> str:
    """Return the command that makes such a dataset; what is as by default is left out."""
    words = ["ocdit", "synthesize", "--out", out, "--images", str(settings.images), "--seed", str(settings.seed)]
    for name in ("objects", "first_object", "meshes", "split", "part", "textures", "size", "targets", "repeats",
                 "distractors", "views", "format", "quality", "path_traced", "scenes_a_shard",
                 "bop_split"):  # fmt: skip
        value = getattr(settings, name)
        if (value == getattr(_DEFAULT, name) and name != "objects") or not value:
            continue
        option = {"views": "views-per-scene", "scenes_a_shard": "scenes-per-shard"}.get(name, name.replace("_", "-"))
        words += [f"--{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    if not settings.depth:
        words.append("--no-depth")
    return shlex.join(words)


def write_card(out: Path, settings: SynthesisSettings, records: Sequence[TaskRecord], objects: PreparedObjects) -> None:
    """Write README.md: what the dataset holds, how it was made, and what is where."""
    images = sum(record.images for record in records)
    instances = sum(record.instances for record in records)
    seen = sum(record.seen for record in records)
    height, width = settings.size
    kinds = []
    if settings.objects:
        kinds.append("procedural ones")
    if settings.meshes is not None:
        kinds.append(f"meshes of {Path(settings.meshes).name}, under their own licences")
    layout = {
        f"{settings.bop_split}/": "scenes as BOP folders: rgb, depth, mask, mask_visib, scene_camera, scene_gt, "
        "scene_gt_info",
        f"{settings.shards_folder}/": "the scenes as BOP webdataset shards, and key_to_shard.json",
        "models/": "meshes in millimetres, models_info.json",
        "templates/": "the objects from 12 sides: the library that training and `ocdit segment` read",
        "objects.json": "where each number (obj_id) comes from, and what was left out",
        "plan.json": "settings and objects; `ocdit synthesize` with the same ones goes on where it was broken off",
        "camera.json": "typical intrinsics; each picture has its own",
    }
    if settings.format == "bop":
        del layout[f"{settings.shards_folder}/"]
    if settings.format == "shards":
        del layout[f"{settings.bop_split}/"]
    lines = [
        "# Synthetic scenes for object segmentation",
        "",
        "Objects that came to rest in rooms, drawn from many sides; made by ocdit.",
        "",
        "| | |",
        "|---|---|",
        f"| images | {images:,} of {width} x {height} |",
        f"| scenes | {len(views_of_scenes(settings)):,} |",
        f"| objects | {len(objects.names):,}: {' and '.join(kinds)} |",
        f"| objects left out | {len(objects.skipped):,} |",
        f"| instances | {instances:,} ({instances / images:.1f} an image), of {seen:,} a tenth or more is visible |",
        f"| depth | {'0.1 mm units' if settings.depth else 'none'} |",
        f"| drawn by path tracing | {settings.path_traced:.0%} |",
        "",
        "Made by:",
        "",
        f"    {command_of(settings)}",
        "",
        "| file | what it is |",
        "|---|---|",
        *(f"| `{name}` | {what} |" for name, what in layout.items()),
        "",
        "Units are BOP's: poses in millimetres, depth in `depth_scale` millimetres, masks of what is seen",
        "(`mask_visib`) and of whole silhouettes (`mask`), boxes as the BOP toolkit computes them.",
        "",
    ]
    write_text(out / "README.md", "\n".join(lines))
