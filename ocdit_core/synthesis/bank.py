"""A bank of rendered objects on disk: templates and sprites, memory-mapped, for several readers at once.

Build one with `python -m ocdit_core.synthesis.bank --objects 2000 --out data/bank --jobs 2`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ocdit_core.data.frame import read_json
from ocdit_core.errors import DataError, OcditError
from ocdit_core.files import OWN_FILES
from ocdit_core.objects.renderer import Light, Lighting, MeshHandle, Renderer
from ocdit_core.objects.templates import ViewSettings, render_templates, zoom_cameras
from ocdit_core.objects.viewpoints import TUDL_K, fitting_distance, look_at_poses, sample_directions
from ocdit_core.resumable import keep_plan
from ocdit_core.synthesis.procedural import HELD_OUT_SEED, find_meshes, painted_mesh, procedural_object
from ocdit_core.workers import TRIES, Died, LocalEngine, Work, run_all

SCHEMA_VERSION = 1

_CHUNK = 8  # objects that a process renders at a time
_MARGIN = 0.02  # around the object in a sprite
_BANK, _PLAN, _DONE = "bank.json", "plan.json", "done.npy"
_FILES = {"templates": "templates.npy", "sprites": "sprites.npy"}


@dataclass(frozen=True, kw_only=True)
class BankSettings:
    """What a bank holds.

    Attributes:
        objects: number of procedural objects.
        first_seed: seed of the first object; HELD_OUT_SEED and above are for evaluation.
        views: templates of an object: 12, 42 or 162.
        template_size: side of a template in pixels.
        sprites: sprites of an object.
        sprite_size: side of a sprite in pixels.
        meshes: mesh files, whose objects come after the procedural ones.
    """

    objects: int
    first_seed: int = 0
    views: int = 12
    template_size: int = 64
    sprites: int = 16
    sprite_size: int = 96
    meshes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.objects < 0 or self.total < 1:
            raise DataError(f"bank: {self.objects} objects and {len(self.meshes)} meshes; there has to be at least one")
        for name in ("views", "template_size", "sprites", "sprite_size"):
            if getattr(self, name) < 1:
                raise DataError(f"bank: {name} is {getattr(self, name)}, it has to be at least 1")
        if self.first_seed < 0 or (self.first_seed < HELD_OUT_SEED < self.first_seed + self.objects):
            raise DataError(f"bank: seeds from {self.first_seed} on are negative or cross {HELD_OUT_SEED} (held out)")

    @property
    def total(self) -> int:
        """Number of procedural objects and meshes together (N)."""
        return self.objects + len(self.meshes)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays: objects, images of each, rows, columns, RGBA."""
        t, s = self.template_size, self.sprite_size
        return {"templates": (self.total, self.views, t, t, 4), "sprites": (self.total, self.sprites, s, s, 4)}


@dataclass(frozen=True)
class ObjectBank:
    """An opened bank; its arrays are memory-mapped and read-only.

    Attributes:
        settings: what it holds.
        templates: (N, views, t, t, 4) RGBA, alpha 0 or 255: the mask; in the order of the icosphere.
        sprites: (N, S, s, s, 4) RGBA, colours multiplied by coverage, from random directions and under random
            lights.
    """

    settings: BankSettings
    templates: NDArray[np.uint8]
    sprites: NDArray[np.uint8]

    def __len__(self) -> int:
        return self.settings.total

    @classmethod
    def open(cls, path: str | Path) -> ObjectBank:
        """Open a bank that `build_bank` finished.

        Raises:
            DataError: there is none, or a file is missing, truncated or of another shape.
        """
        folder = Path(path)
        path = folder / _BANK
        if not path.is_file():
            raise DataError(
                f"{folder}: no object bank ({_BANK} is missing); build one with "
                f"python -m ocdit_core.synthesis.bank --objects 2000 --out {folder}"
            )
        described = read_json(path)
        try:
            version = described.pop("schema_version")
            if version != SCHEMA_VERSION:
                raise DataError(f"{folder}: bank of schema version {version}, this program reads {SCHEMA_VERSION}")
            settings = BankSettings(**{**described, "meshes": tuple(described.get("meshes", ()))})
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({error}); build the bank again") from error
        arrays = {}
        for name, shape in settings.shapes.items():
            file = folder / _FILES[name]
            try:
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{file}: missing or truncated ({error}); build the bank again") from error
            if arrays[name].shape != shape or arrays[name].dtype != np.uint8:
                raise DataError(f"{file}: shape {arrays[name].shape}, but {_BANK} says {shape}; build the bank again")
        return cls(settings, arrays["templates"], arrays["sprites"])


def build_bank(path: str | Path, settings: BankSettings, *, jobs: int = 1, progress: bool = True) -> ObjectBank:
    """Render a bank; an existing bank of the same settings is kept, and an interrupted one is continued.

    Args:
        path: the bank's folder; it appears when it is complete (until then it is `<path>.partial`).
        settings: what to render.
        jobs: worker processes.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        DataError: the folder, or `<path>.partial`, holds something else.
        RenderingError: there is no off-screen OpenGL.
    """
    folder = Path(path)
    if folder.exists():
        present = ObjectBank.open(folder)
        if present.settings != settings:
            raise DataError(f"{folder}: holds a bank of other settings; remove it or choose another folder")
        return present
    unfinished = folder.with_name(folder.name + ".partial")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with _locked(unfinished):
        _render(unfinished, settings, jobs, progress)
        unfinished.rename(folder)
    return ObjectBank.open(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two processes from building one bank; the lock ends with the process that holds it."""
    lock = folder.with_name(folder.name + ".lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another process is building this bank") from error
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _render(folder: Path, settings: BankSettings, jobs: int, progress: bool) -> None:
    """Render what is missing in an unfinished bank, then write bank.json."""
    described = {"schema_version": SCHEMA_VERSION, **asdict(settings)}
    keep_plan(folder / _PLAN, described)
    marks = folder / _DONE
    try:
        done = np.load(marks)
    except (OSError, ValueError, EOFError):
        for name, shape in settings.shapes.items():
            np.lib.format.open_memmap(folder / _FILES[name], mode="w+", dtype=np.uint8, shape=shape).flush()
        done = np.zeros(settings.total, bool)
    missing = np.flatnonzero(~done)
    chunks = [missing[i : i + _CHUNK].tolist() for i in range(0, len(missing), _CHUNK)]
    opener = partial(_rendering, folder, settings)
    hidden = None if progress else True
    with tqdm(total=len(done), initial=int(done.sum()), unit="object", disable=hidden) as bar:
        for chunk, result in run_all(LocalEngine(jobs), opener, chunks, lambda chunk: f"object {chunk[0]}"):
            if isinstance(result, Died):
                raise DataError(f"object {chunk[0]}: given up after {TRIES} attempts: {result.reason}")
            done[chunk] = True
            np.save(marks, done)
            bar.update(len(chunk))
    (folder / _BANK).write_text(json.dumps(described, indent=1))
    for name in (_DONE, _PLAN, OWN_FILES):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def _rendering(folder: Path, settings: BankSettings) -> Iterator[Work[list[int], None]]:
    os.environ.setdefault("LP_NUM_THREADS", "1")  # software OpenGL: one thread for each process
    with Renderer() as renderer:
        yield partial(_render_chunk, renderer, folder, settings)


def _render_chunk(renderer: Renderer, folder: Path, settings: BankSettings, chunk: list[int]) -> None:
    templates = np.load(folder / _FILES["templates"], mmap_mode="r+")
    sprites = np.load(folder / _FILES["sprites"], mmap_mode="r+")
    for index in chunk:
        seed = settings.first_seed + index
        if index < settings.objects:
            mesh = procedural_object(seed)
        else:
            mesh = painted_mesh(settings.meshes[index - settings.objects], np.random.default_rng([seed, 0x5CA7]))
        handle = renderer.upload(mesh)
        views = render_templates(renderer, handle, ViewSettings(views=settings.views), size=settings.template_size)
        templates[index, ..., :3], templates[index, ..., 3] = views.rgb, np.where(views.mask, 255, 0)
        rng = np.random.default_rng([seed, 0x5B817E])
        sprites[index] = render_sprites(renderer, handle, rng, settings.sprites, settings.sprite_size)
        handle.release()
    templates.flush()
    sprites.flush()


def render_sprites(
    renderer: Renderer, handle: MeshHandle, rng: np.random.Generator, count: int, size: int
) -> NDArray[np.uint8]:
    """Render an object for composed scenes: random direction, roll, light and distance.

    Returns:
        (count, size, size, 4) RGBA, colours multiplied by coverage, the object filling the image.
    """
    surface = handle.surface
    directions = sample_directions(rng, count)
    upright = rng.random(count) < 0.5
    roll = np.where(upright, rng.normal(0, 0.25, count), rng.uniform(-np.pi, np.pi, count))
    distance = fitting_distance(surface.radius) * rng.uniform(1.2, 3.5, count)
    poses = look_at_poses(directions, distance, roll, centre=surface.centre)
    _, K = zoom_cameras(surface.vertices, poses, TUDL_K, size=size, margin=_MARGIN)
    sprites = [
        renderer.render(handle, poses[i], K[i], (size, size), random_lighting(rng)).rgba[0] for i in range(count)
    ]
    return np.stack(sprites)


def random_lighting(rng: np.random.Generator) -> Lighting:
    """Draw one to three lights, most from above, with ambient light so that nothing is black."""
    warmth = rng.uniform(-0.12, 0.12)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    lights = []
    strength = rng.uniform(0.4, 1.0)
    for _ in range(int(rng.integers(1, 4))):
        direction = rng.normal(size=3) * (1.0, 0.8, 0.6) + (0.0, -0.6, -0.7)  # camera axes: up is -y, towards us is -z
        x, y, z = (float(v) for v in direction)
        r, g, b = (float(v) for v in strength * tint * rng.uniform(0.9, 1.1, 3))
        lights.append(Light(direction=(x, y, z), colour=(r, g, b)))
        strength *= rng.uniform(0.3, 0.8)
    r, g, b = (float(v) for v in rng.uniform(0.22, 0.55) * rng.uniform(0.9, 1.1, 3))
    shiny = rng.random() < 0.5
    return Lighting(
        ambient=(r, g, b),
        lights=tuple(lights),
        specular=float(rng.uniform(0.05, 0.5)) if shiny else 0.0,
        roughness=float(rng.uniform(0.25, 0.7)),
    )


def main(arguments: list[str] | None = None) -> int:
    """Build a bank of rendered objects for composed scenes."""
    parser = argparse.ArgumentParser(prog="python -m ocdit_core.synthesis.bank", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bank, e.g. data/bank")
    parser.add_argument("--objects", type=int, default=2000, help="procedural objects (default 2000, 0.8 MB each)")
    parser.add_argument(
        "--meshes", type=Path, help="folder of mesh files to render as well; unreadable ones are left out"
    )
    parser.add_argument("--first-seed", type=int, default=0, help=f"{HELD_OUT_SEED} and above: for evaluation only")
    parser.add_argument("--views", type=int, default=12, choices=(12, 42, 162), help="templates of an object")
    parser.add_argument("--template-size", type=int, default=64, help="side of a template in pixels")
    parser.add_argument("--sprites", type=int, default=16, help="sprites of an object for scenes")
    parser.add_argument("--sprite-size", type=int, default=96, help="side of a sprite in pixels")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    options = vars(parser.parse_args(arguments))
    out, jobs = options.pop("out"), options.pop("jobs")
    try:
        options["meshes"] = tuple(find_meshes(options["meshes"])) if options["meshes"] else ()
        build_bank(out, BankSettings(**options), jobs=jobs)
    except OcditError as error:
        print(f"bank: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
