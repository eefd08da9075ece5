"""What one process does: make the scenes of a task, and write them as folders, as a shard, or as both."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ocdit_core.data.generation.plan import SynthesisSettings, Task
from ocdit_core.data.generation.sources import PreparedObjects, prepared_source
from ocdit_core.data.writers import (
    FrameTruth,
    ObjectTruth,
    encode_image,
    scene_folder,
    shard_path,
    visible_fraction,
    write_scene,
    write_shard,
)
from ocdit_core.errors import DataError, ImageError
from ocdit_core.files import write_text
from ocdit_core.synthesis.scenes import CameraSettings, SceneImage, SceneMaker, SceneSettings
from ocdit_core.synthesis.sources import TexturePool

logger = logging.getLogger(__name__)

RECORDS = ".done"
JPEG_QUALITY = 95
SEEN = 0.1
"""Visible share of an object from which on it counts as seen, as in BOP's targets."""
_TRIES = 6
# Between the numbers of a scene's tries: no other scene comes to the same.
_STRIDE = 10_000_000


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What a task made.

    Attributes:
        images: pictures.
        instances: labelled objects in them, hidden ones included.
        seen: those of which a tenth or more is visible.
    """

    images: int
    instances: int
    seen: int


def record_path(out: Path, task: Task) -> Path:
    """Return the file that says what a task made; it is written right before the last of it appears."""
    return out / RECORDS / f"{task.number:06d}.json"


def read_record(out: Path, task: Task) -> TaskRecord:
    """Read what a finished task made.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = record_path(out, task)
    try:
        return TaskRecord(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged ({error}); delete it, and the task is done again") from error


def is_done(out: Path, settings: SynthesisSettings, task: Task) -> bool:
    """Return whether all that the task makes is there."""
    if not record_path(out, task).exists():
        return False
    if settings.format != "bop" and not shard_path(out / settings.shards_folder, task.number).exists():
        return False
    return settings.format == "shards" or all(
        scene_folder(out, settings.bop_split, scene).exists() for scene in task.scenes
    )


class SceneWork:
    """Makes tasks one after another with one renderer; use it as a context manager, and call it with each task.

    Args:
        out: the dataset's folder.
        settings: of the dataset.
        objects: of which scenes are made.
        alone: whether this process has the machine for itself; else it keeps to one core.

    Raises:
        RenderingError: there is no off-screen OpenGL.
    """

    def __init__(self, out: Path, settings: SynthesisSettings, objects: PreparedObjects, alone: bool) -> None:
        self._out, self._settings, self._objects, self._alone = out, settings, objects, alone
        self._numbers = {name: number for number, name in objects.names.items()}
        self._stack = ExitStack()

    def __enter__(self) -> SceneWork:
        settings = self._settings
        if not self._alone:
            # Mesa's software renderer and OpenCV take every core otherwise, as their neighbours do.
            os.environ.setdefault("LP_NUM_THREADS", "1")
            cv2.setNumThreads(1)
        # What is odd about a mesh was said when its model was written.
        log = logging.getLogger("ocdit_core.objects")
        self._stack.callback(log.setLevel, log.level)
        log.setLevel(logging.ERROR)
        self._maker = self._stack.enter_context(
            SceneMaker(
                prepared_source(settings, self._objects),
                scene_settings(settings),
                seed=settings.seed,
                textures=TexturePool(settings.seed, folder=settings.textures),
            )
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(self, task: Task) -> TaskRecord:
        """Make a task and write it; what was made of it before stays.

        Raises:
            DataError: a scene cannot be made, or nothing can be written.
            MeshError: the file of an object has gone.
        """
        frames = self._frames(task)
        if self._settings.format == "bop":
            self._write_scene(task.scenes[0], (frame for _, frame in frames))
        else:
            write_shard(shard_path(self._out / self._settings.shards_folder, task.number), frames, quality=JPEG_QUALITY)
        return read_record(self._out, task)

    def _frames(self, task: Task) -> Iterator[tuple[str, FrameTruth]]:
        """Yield the task's pictures by their keys; its record is there before the last of its files is."""
        images = instances = seen = 0
        for scene, views in zip(task.scenes, task.views, strict=True):
            frames: Iterable[FrameTruth] = self._scene(scene, views)
            if self._settings.format == "both":
                frames = list(frames)
                self._write_scene(scene, frames)
            for number, frame in enumerate(frames):
                images += 1
                instances += len(frame.objects)
                seen += sum(visible_fraction(truth) >= SEEN for truth in frame.objects)
                yield f"{scene:06d}_{number:06d}", frame
        record = TaskRecord(images=images, instances=instances, seen=seen)
        write_text(record_path(self._out, task), json.dumps(asdict(record)) + "\n")

    def _write_scene(self, scene: int, frames: Iterable[FrameTruth]) -> None:
        folder = scene_folder(self._out, self._settings.bop_split, scene)
        if folder.exists():
            # Of a task that was broken off between its scenes: they are counted only.
            for _ in frames:
                pass
            return
        try:
            write_scene(self._out, self._settings.bop_split, scene, frames, quality=JPEG_QUALITY)
        except DataError:
            # A process of a run that was killed may have lived on, and have made the very same.
            if not folder.exists():
                raise

    def _scene(self, scene: int, views: int) -> Iterator[FrameTruth]:
        """Yield the pictures of a scene; where nothing comes to rest or into view, of another one in its place."""
        reason: Exception | None = None
        for attempt in range(_TRIES):
            images = self._maker.images(scene + attempt * _STRIDE, count=views)
            try:
                first = next(images)
            except (DataError, ImageError) as error:
                reason = error
                logger.debug("scene %d: tried again: %s", scene, error)
                continue
            for image in itertools.chain([first], images):
                yield self._truth(image)
            return
        raise DataError(f"scene {scene}: given up after {_TRIES} tries: {reason}")

    def _truth(self, image: SceneImage) -> FrameTruth:
        pixels: NDArray[np.uint8] | bytes = image.rgb
        if self._settings.format == "both":
            pixels, _ = encode_image(image.rgb, quality=JPEG_QUALITY)
        return FrameTruth(
            image=pixels,
            K=image.K,
            depth=image.depth / 1000 if self._settings.depth else None,
            rotation=image.cam_R_w2c,
            translation=image.cam_t_w2c / 1000,
            objects=tuple(
                ObjectTruth(
                    object_id=self._numbers[item.name],
                    rotation=item.cam_R_m2c,
                    translation=item.cam_t_m2c / 1000,
                    visible=visible,
                    silhouette=whole,
                    whole=(item.px_count_all, item.bbox_obj),
                )
                for item, visible, whole in zip(image.instances, image.masks_visible, image.masks, strict=True)
            ),
        )


def scene_settings(settings: SynthesisSettings) -> SceneSettings:
    """Return what scenes hold, as their maker takes it.

    Raises:
        ConfigError: a value is out of its range.
    """
    return SceneSettings(
        targets=settings.targets,
        repeats=settings.repeats,
        distractors=settings.distractors,
        cameras=settings.views,
        samples=2 if settings.quality == "good" else 1,
        path_traced=settings.path_traced,
        camera=CameraSettings(size=settings.size),
    )
