"""Targets of an evaluation: the objects to find in each image, and their names in the library."""

import json
import logging
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from ocdit_core.data.bop import model_paths, read_targets
from ocdit_core.data.dataset import Dataset, megapose_names
from ocdit_core.data.frame import Frame, read_json
from ocdit_core.errors import DataError, LibraryError
from ocdit_core.evaluation.bop_results import ImageKey
from ocdit_core.objects.library import MANIFEST, ObjectLibrary

logger = logging.getLogger(__name__)

Targets = Mapping[ImageKey, tuple[int, ...]]
"""Target obj_ids of each image; images and obj_ids in ascending order."""

ALL, PRESENT = "all", "present"
OBJECTS = "objects.json"
_BOP_NAME = re.compile(r"obj_(\d{6})")


def choose_targets(dataset: Dataset, choice: str | Path) -> Targets:
    """Return the targets of each image.

    Args:
        dataset: dataset to evaluate on.
        choice: "all": every object of the dataset in every image; "present": the objects that the image shows; or a
            targets file such as test_targets_bop19.json, a path or a name in the dataset's folder. An inst_count of 0
            is a target that the image does not show; a file without obj_ids stands for every object in its images.

    Raises:
        DataError: the file is missing or damaged, or names an image that the dataset does not have; an image of shards
            has no number.
    """
    inside = dataset.path / choice
    asked = None if choice in (ALL, PRESENT) else read_targets(inside if inside.is_file() else Path(choice))
    shown: dict[ImageKey, set[int]] = {}
    for frame in dataset.frames(asked):
        image = image_key(frame)
        shown[image] = {annotation.object_id for annotation in frame.annotations}
    missing = sorted(set(asked or ()) - set(shown))
    if missing:
        raise DataError(
            f"{choice}: {len(missing)} of its images are not in {dataset.name}, such as scene {missing[0][0]}, image "
            f"{missing[0][1]}",
            kind="missing entry",
        )
    if asked is not None and any(asked.values()):
        return {image: tuple(sorted(asked[image])) for image in sorted(asked)}
    everything = objects_of(dataset) if choice != PRESENT else set()
    return {image: tuple(sorted(shown[image] | everything)) for image in sorted(shown)}


def objects_of(dataset: Dataset) -> set[int]:
    """Return the obj_ids of a dataset: those of its models folder if it has one, else those that images show."""
    models = dataset.path / "models"
    if models.is_dir():
        return set(model_paths(models))
    return {annotation.object_id for frame in dataset for annotation in frame.annotations}


def image_key(frame: Frame) -> ImageKey:
    """Return scene_id and image_id of a frame.

    Raises:
        DataError: it comes from a shard whose keys do not hold them.
    """
    if frame.scene_id < 0 or frame.image_id < 0:
        raise DataError(f"{frame.where}: the key has no scene and image number (000001_000012)", kind="shard key")
    return frame.scene_id, frame.image_id


def digest_of(targets: Targets) -> str:
    """Return a digest of the targets: evaluations with the same digest can be compared."""
    text = json.dumps([[*image, list(objects)] for image, objects in sorted(targets.items())])
    return sha256(text.encode()).hexdigest()[:16]


def names_of_objects(library: ObjectLibrary, dataset: Path) -> dict[int, str]:
    """Return the name in the library of each obj_id of a dataset.

    The obj_id is taken from names such as obj_000005; else from the dataset's objects.json, which `ocdit synthesize`
    writes, or gso_models.json (MegaPose); else from the library's manifest.json, with a warning, because its numbers
    need not be the dataset's.

    Args:
        library: the objects' templates.
        dataset: the dataset's folder.

    Raises:
        LibraryError: none of these maps names to obj_ids.
        DataError: objects.json is damaged.
    """
    numbered = {int(match[1]): name for name in library.object_ids if (match := _BOP_NAME.fullmatch(name))}
    if numbered:
        return numbered
    found = {number: name for number, name in megapose_names(dataset).items() if name in library}
    if found:
        return found
    path = dataset / OBJECTS
    if path.is_file():
        content = read_json(path)
        try:
            named = {int(number): str(name) for number, name in content["objects"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{path}: holds no names of objects by number", kind="damaged JSON") from error
        found = {number: name for number, name in named.items() if name in library}
        if found:
            return found
    if not (library.path / MANIFEST).is_file():
        raise LibraryError(
            f"{library.path}: the obj_ids of its objects are unknown; use names such as obj_000005, or add {MANIFEST}"
        )
    logger.warning("%s: obj_ids are taken from its %s", library.path, MANIFEST)
    return {entry.id: name for name, entry in library.manifest.items()}


def require_templates(library: ObjectLibrary, targets: Targets, names: Mapping[int, str]) -> None:
    """Check that every target has templates.

    Raises:
        LibraryError: some have none; the message names the first ones.
    """
    wanted = {number for objects in targets.values() for number in objects}
    lacking = sorted(wanted - set(names))
    if lacking:
        first = ", ".join(map(str, lacking[:5])) + (" ..." if len(lacking) > 5 else "")
        raise LibraryError(
            f"{library.path}: has no templates of {len(lacking)} of the {len(wanted)} target objects: obj_id {first}; "
            "render the dataset's models (`ocdit render DATASET/models --out LIBRARY`), or choose other targets"
        )
