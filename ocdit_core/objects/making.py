"""One new object for a running program, made in a process of its own: rendering may crash a graphics driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ocdit_core.errors import ConfigError, OcditError, RenderingError
from ocdit_core.images import write_image
from ocdit_core.objects.archive import SUFFIX, check_name, load_templates, save_templates
from ocdit_core.workers import Died, Work, run_tasks

if TYPE_CHECKING:
    from ocdit_core.masks import Box
    from ocdit_core.objects.archive import ObjectTemplates


@dataclass(frozen=True, kw_only=True, eq=False)
class NewObject:
    """What an object is made of: a CAD file, or images of its sides.

    Attributes:
        name: its name; empty: that of the CAD file without its suffix.
        mesh: the CAD file; None: images are given.
        unit: unit of the CAD file.
        images: (H, W, 3) uint8 RGB.
        masks: (H, W) bool, one for each image, or none.
        boxes: one for each image, or none. Without masks and boxes each background has to be plain.
        diameter: metres, if it is known, of an object made of images.
    """

    name: str = ""
    mesh: Path | None = None
    unit: str = "auto"
    images: Sequence[np.ndarray] = ()
    masks: Sequence[np.ndarray] = ()
    boxes: Sequence[Box] = ()
    diameter: float | None = None

    def checked(self) -> NewObject:
        """Return it with its name; raises ConfigError if something is missing or contradicts something else."""
        if (self.mesh is None) == (not len(self.images)):
            raise ConfigError("give either mesh, the path of a CAD file, or images")
        if self.mesh is not None and (self.masks or self.boxes or self.diameter is not None):
            raise ConfigError("masks, boxes and diameter belong to images, not to a CAD file")
        if self.masks and self.boxes:
            raise ConfigError("masks and boxes were given; either is enough")
        for what, given in (("masks", self.masks), ("boxes", self.boxes)):
            if given and len(given) != len(self.images):
                raise ConfigError(f"{len(given)} {what} were given for {len(self.images)} images; give one for each")
        return replace(self, name=check_name(self.name or (self.mesh.stem if self.mesh else "")))


def make_object(new: NewObject, folder: Path) -> ObjectTemplates:
    """Render an object, or cut it out of images, in a process of its own; `folder` holds its files meanwhile.

    Raises:
        OcditError: it cannot be made.
    """
    (result,) = run_tasks(_maker, [(new, folder)], 1)
    if isinstance(result, Died):
        raise RenderingError(f"{new.name} could not be made: {result.reason}")
    if isinstance(result, OcditError):
        raise result
    return load_templates(folder / f"{new.name}{SUFFIX}")


@contextmanager
def _maker() -> Iterator[Work[tuple[NewObject, Path], OcditError | None]]:
    """Yield a function that stores an object in a folder; it returns why that failed."""
    # Here, as the program itself needs no renderer.
    from ocdit_core.objects.capture import capture_object
    from ocdit_core.objects.cutout import cut_out
    from ocdit_core.objects.onboarding import add_objects

    def work(task: tuple[NewObject, Path]) -> OcditError | None:
        new, folder = task
        try:
            if new.mesh is not None:
                add_objects(folder, [new.mesh], names=[new.name], unit=new.unit)
                return None
            photos, masks = [], []
            for index, image in enumerate(new.images):
                photos.append(folder / f"image_{index + 1}.png")
                write_image(photos[-1], image)
                if new.masks or new.boxes:
                    mask = new.masks[index] if new.masks else cut_out(image, box=new.boxes[index])
                    masks.append(folder / f"mask_{index + 1}.png")
                    write_image(masks[-1], mask.astype(np.uint8) * np.uint8(255))
            captured = capture_object(new.name, photos, masks=masks or None, diameter=new.diameter)
            if captured.problems:
                return captured.problems[0]
            save_templates(folder, captured.templates)
        except OcditError as error:
            return error
        return None

    yield work
