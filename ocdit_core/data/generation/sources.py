"""The objects of a synthesised dataset: where they come from, as models and templates beside the scenes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ocdit_core.data.frame import parse_json
from ocdit_core.data.generation.plan import SynthesisSettings
from ocdit_core.data.writers import INFO, Model, model_path, write_model, write_models_info
from ocdit_core.errors import ConfigError, DataError, MeshError, OcditError
from ocdit_core.files import write_text
from ocdit_core.objects import meshes
from ocdit_core.objects.onboarding import add_objects
from ocdit_core.objects.templates import ViewSettings
from ocdit_core.synthesis.settling import collision_hulls
from ocdit_core.synthesis.sources import (
    MeshFolder,
    MixedObjects,
    ObjectSource,
    OnlyObjects,
    ProceduralObjects,
    TexturePool,
    read_split,
)
from ocdit_core.workers import TRIES, Died, Engine, LocalEngine, Work, run_all

logger = logging.getLogger(__name__)

MODELS, TEMPLATES, OBJECTS = "models", "templates", "objects.json"
_AT_ONCE = 32  # objects whose models are noted in models_info.json together, and that a process is started for


def open_source(settings: SynthesisSettings) -> ObjectSource:
    """Return the objects that the settings name: procedural ones, those of a folder, or both; one part of a split.

    Raises:
        DataError: the folder or the split file is missing or damaged, or nothing is left.
    """
    sources: list[ObjectSource] = []
    photographs = None if settings.textures is None else TexturePool(painted=0, folder=settings.textures)
    if settings.objects:
        sources.append(ProceduralObjects(settings.objects, first_seed=settings.first_object, photographs=photographs))
    if settings.meshes is not None:
        sources.append(MeshFolder(settings.meshes, seed=settings.seed, photographs=photographs))
    source: ObjectSource = MixedObjects(*sources) if len(sources) > 1 else sources[0]
    if settings.split is None:
        return source
    parts = read_split(settings.split)
    chosen = set(parts[settings.part]).intersection(source.names)
    if not chosen:
        raise DataError(f"{settings.split}: none of the {len(source.names)} objects is in its part {settings.part!r}")
    unknown = len(set(source.names).difference(*parts.values()))
    if unknown:
        # Which part they belong to nobody has said: they are in neither.
        logger.warning("%s: %d of the objects are in no part of it, and left out", settings.split, unknown)
    return OnlyObjects(source, chosen)


@dataclass(frozen=True, kw_only=True)
class PreparedObjects:
    """The objects that scenes are made of.

    Attributes:
        names: by BOP's obj_id.
        skipped: why others cannot be used, by name.
    """

    names: dict[int, str]
    skipped: dict[str, str]


def prepare_objects(out: Path, settings: SynthesisSettings, engine: Engine | None, *, jobs: int) -> PreparedObjects:
    """Write models/ and templates/, and objects.json when both are done; what is there already stays.

    An object that cannot be used is logged in one line, and left out of the scenes; its number stays free.

    Args:
        out: the dataset's folder.
        settings: of the dataset.
        engine: writes the models; default: processes on this machine.
        jobs: processes on this machine; few objects take fewer.

    Raises:
        DataError: nothing can be written here, or objects.json is damaged.
        ConfigError: too few objects for a scene are left.
        RenderingError: there is no off-screen OpenGL.
    """
    path = out / OBJECTS
    if not path.exists():
        names = dict(enumerate(open_source(settings).names, start=1))
        skipped = _write_models(out, settings, names, engine or LocalEngine(min(jobs, -(-len(names) // _AT_ONCE))))
        skipped |= _draw_templates(out, names, skipped, jobs)
        left = {str(number): name for number, name in names.items() if name not in skipped}
        content = {"objects": left, "skipped": {name: skipped[name] for name in names.values() if name in skipped}}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in content["objects"].items()}
        prepared = PreparedObjects(names=names, skipped=dict(content["skipped"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it to write it anew") from error
    wanted = settings.targets[1] + settings.distractors[1]
    if len(prepared.names) < wanted:
        raise ConfigError(
            f"objects: a scene may take {settings.targets[1]} targets and {settings.distractors[1]} distractors, and "
            f"there are {len(prepared.names)}; give more (--objects, --meshes), or ask for fewer (--targets, "
            "--distractors)"
        )
    return prepared


def prepared_source(settings: SynthesisSettings, prepared: PreparedObjects) -> ObjectSource:
    """Return the objects that can be used, of which scenes are made."""
    return OnlyObjects(open_source(settings), prepared.names.values())


def _write_models(out: Path, settings: SynthesisSettings, names: dict[int, str], engine: Engine) -> dict[str, str]:
    """Write the models that are missing; return why others cannot be, by name."""
    folder = out / MODELS
    info = folder / INFO
    known = parse_json(info.read_bytes(), str(info)) if info.exists() else {}
    missing = [n for n in names if str(n) not in known or not model_path(folder, n).is_file()]
    skipped: dict[str, str] = {}
    entries: dict[int, dict[str, object]] = {}
    opener = partial(_modelling, folder, settings)
    results = run_all(engine, opener, [(number, names[number]) for number in missing], lambda task: task[1])
    for (number, name), result in tqdm(results, "models", len(missing), unit="object", disable=None):
        if isinstance(result, Died):
            if not entries and not known:
                # It is hardly this one's fault when none came through.
                raise DataError(f"{name}: given up after {TRIES} tries: {result.reason}")
            result = f"{name}: {result.reason}"
        if isinstance(result, str):
            skipped[name] = result
            logger.warning("left out: %s", result)
            continue
        entries[number] = result
        if len(entries) == _AT_ONCE:
            write_models_info(folder, entries)
            known, entries = {**known, **entries}, {}
    if entries:
        write_models_info(folder, entries)
    return skipped


@contextmanager
def _modelling(folder: Path, settings: SynthesisSettings) -> Iterator[Work[tuple[int, str], object]]:
    source = open_source(settings)
    # Whatever unit a file is in, the source scales what is not of a table's size.
    logging.getLogger(meshes.__name__).addFilter(_not_about_units)

    def work(task: tuple[int, str]) -> object:
        number, name = task
        try:
            mesh = source.mesh(name)
            # What physics cannot take would end a scene much later.
            collision_hulls(mesh)
        except MeshError as error:
            # Errors of the mesh alone do not say whose it is.
            return str(error) if name in str(error) else f"{name}: {error}"
        return write_model(folder, number, Model(mesh=mesh))

    try:
        yield work
    finally:
        logging.getLogger(meshes.__name__).removeFilter(_not_about_units)


def _not_about_units(record: logging.LogRecord) -> bool:
    return "--unit" not in record.getMessage()


def _draw_templates(out: Path, names: dict[int, str], skipped: dict[str, str], jobs: int) -> dict[str, str]:
    failed: dict[str, str] = {}
    by_file = {model_path(out / MODELS, number): name for number, name in names.items() if name not in skipped}

    def note(path: Path, error: OcditError) -> None:
        failed[by_file[path]] = str(error)
        logger.warning("left out: %s: %s", by_file[path], error)

    if by_file:
        add_objects(
            out / TEMPLATES,
            list(by_file),
            unit="mm",
            settings=ViewSettings(),
            jobs=min(jobs, -(-len(by_file) // _AT_ONCE)),
            on_error=note,
            progress=True,
        )
    return failed
