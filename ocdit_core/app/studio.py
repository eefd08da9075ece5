"""What the page does, without the page: the work of each visitor, in turn, on one segmenter."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ocdit_core.commands.segment import write_result
from ocdit_core.errors import ConfigError, ImageError, OcditError
from ocdit_core.images import SUFFIXES, read_image
from ocdit_core.inference.prompts import Prompt
from ocdit_core.inference.results import Segmentation
from ocdit_core.inference.segmenter import Segmenter
from ocdit_core.inference.targets import EncodedObjects
from ocdit_core.inference.tracker import Tracker
from ocdit_core.objects.archive import SUFFIX, save_templates
from ocdit_core.objects.formats import FORMATS
from ocdit_core.objects.library import ObjectLibrary
from ocdit_core.objects.making import NewObject, make_object
from ocdit_core.visualization import denoising_strips, overlay

MAX_SIDE = 1920
"""Longest side in pixels at which images are segmented and shown."""
MAX_FRAMES = 100
"""Frames of a video that are segmented, evenly spread over it."""
MAX_LOOKS = 50
"""Objects of a library whose views are shown."""
STEPS = 9
"""Denoising steps that are shown; results may take fewer."""

_POSITIVE, _NEGATIVE = (0, 200, 60), (230, 30, 30)


@dataclasses.dataclass(eq=False)
class Visitor:
    """One visitor of the page.

    Attributes:
        library: the objects that can be chosen.
        folder: the visitor's own objects beside links to the page's; None before the first one is added.
        path: image file.
        image: (H, W, 3) uint8 RGB.
        prompts: where the visitor says that objects are.
        corner: first corner of a box that is being drawn.
        result: newest result for the image.
        message: what the page said of it.
        encoded: names of the newest targets, and the targets.
    """

    library: ObjectLibrary
    folder: Path | None = None
    path: str | None = None
    image: np.ndarray | None = None
    prompts: list[Prompt] = dataclasses.field(default_factory=list)
    corner: tuple[int, int] | None = None
    result: Segmentation | None = None
    message: str = ""
    encoded: tuple[tuple[str, ...], EncodedObjects] | None = None

    def open(self, path: str | None) -> None:
        """Read an image and forget prompts and result; None: forget the image, too.

        Raises:
            ImageError: the file cannot be read; nothing changes.
        """
        image = None if path is None else read_image(path)
        if image is not None:
            scale = MAX_SIDE / max(image.shape[:2])
            if scale < 1:
                image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        self.image, self.path = image, path
        self.prompts, self.corner, self.result = [], None, None

    def click(self, point: tuple[int, int], kind: str, name: str) -> bool:
        """Take a click for an object as a point on it, a point that is not on it, or a corner of its box.

        Returns:
            Whether the prompts changed: the first corner of a box changes nothing.
        """
        if kind == "box":
            if self.corner is None:
                self.corner = point
                return False
            (x1, x2), (y1, y2) = (sorted(pair) for pair in zip(self.corner, point, strict=True))
            self.corner = None
            self.prompts.append(Prompt(object_id=name, box=(x1, y1, max(1, x2 - x1), max(1, y2 - y1))))
            return True
        self.corner = None
        if kind == "on it":
            self.prompts.append(Prompt(object_id=name, points=[point]))
            return True
        # A point that is not on it belongs to the newest prompt for the object, if there is one.
        for index in reversed(range(len(self.prompts))):
            prompt = self.prompts[index]
            if prompt.object_id == name:
                self.prompts[index] = dataclasses.replace(prompt, negative=[*prompt.negative, point])
                return True
        self.prompts.append(Prompt(object_id=name, negative=[point]))
        return True

    def drawing(self) -> np.ndarray | None:
        """Return the image with masks and prompts drawn in, (H, W, 3) uint8 RGB; None: there is no image."""
        if self.image is None:
            return None
        canvas = self.image.copy() if self.result is None else overlay(self.image, self.result)
        radius = max(4, round(min(canvas.shape[:2]) / 80))
        for prompt in self.prompts:
            if prompt.box is not None:
                x, y, width, height = prompt.box
                cv2.rectangle(canvas, (x, y), (x + width, y + height), _POSITIVE, max(1, radius // 3), cv2.LINE_AA)
            for points, colour in ((prompt.points, _POSITIVE), (prompt.negative, _NEGATIVE)):
                for point in points:
                    _dot(canvas, point, radius, colour)
        if self.corner is not None:
            _dot(canvas, self.corner, radius // 2, _POSITIVE)
        return canvas


def _dot(canvas: np.ndarray, point: Sequence[float], radius: int, colour: tuple[int, int, int]) -> None:
    centre = (round(point[0]), round(point[1]))
    cv2.circle(canvas, centre, radius + 2, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre, radius, colour, -1, cv2.LINE_AA)


class Studio:
    """Serves visitors with one segmenter; thread-safe, one at a time.

    Args:
        segmenter: model and settings.
        library: objects that every visitor can choose; its folder is not changed.
    """

    def __init__(self, segmenter: Segmenter, library: ObjectLibrary) -> None:
        self.segmenter, self.library = segmenter, library
        self._scratch = Path(tempfile.mkdtemp(prefix="ocdit_app_"))
        self._end = weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Delete the objects and results of all visitors."""
        self._end()

    def leave(self, visitor: Visitor) -> None:
        """Delete what a visitor has made."""
        if visitor.folder is not None:
            shutil.rmtree(visitor.folder, ignore_errors=True)

    def looks(self, library: ObjectLibrary) -> list[tuple[np.ndarray, str]]:
        """Return a view and the name of each object; of a large library, of the first `MAX_LOOKS`."""
        names = library.object_ids[:MAX_LOOKS]
        return [(templates.rgb[0], name) for name, templates in zip(names, library.select(names), strict=True)]

    def segment(self, visitor: Visitor, names: Sequence[str], threshold: float) -> Segmentation:
        """Segment a visitor's image with the visitor's prompts; keep and return the result.

        Args:
            visitor: the visitor.
            names: target objects; those of prompts are targets, too.
            threshold: lowest score of an instance.

        Raises:
            OcditError: there is no image or no target, or a prompt cannot be used; the old result is kept.
        """
        if visitor.image is None:
            raise ImageError("choose or drop an image first")
        asked = (prompt.object_id for prompt in visitor.prompts)
        targets = tuple(dict.fromkeys([*names, *asked]))
        with self._lock:
            visitor.result = self.segmenter.segment(
                visitor.image,
                self._encoded(visitor, targets),
                score_threshold=threshold,
                uncertainty=True,
                prompts=visitor.prompts,
            )
        return visitor.result

    def steps(self, visitor: Visitor) -> np.ndarray:
        """Return how the coarse masks of a visitor's result form in `STEPS` steps: (H, W, 3) uint8 RGB.

        Raises:
            OcditError: there is no result.
        """
        if visitor.image is None or visitor.result is None:
            raise OcditError("segment an image first")
        names = visitor.result.target_ids
        sampler = dataclasses.replace(self.segmenter.settings.sampler, steps=STEPS)
        with self._lock:
            found = self.segmenter.steps(visitor.image, self._encoded(visitor, names), sampler=sampler)
        return denoising_strips(*found, names)

    def _encoded(self, visitor: Visitor, names: tuple[str, ...]) -> EncodedObjects:
        if not names:
            raise ConfigError("choose at least one object")
        if visitor.encoded is None or visitor.encoded[0] != names:
            visitor.encoded = names, self.segmenter.encode_objects(visitor.library, names)
        return visitor.encoded[1]

    def add_object(self, visitor: Visitor, files: Sequence[str | Path], name: str, unit: str = "auto") -> str:
        """Make an object that this visitor alone can choose; return its name.

        Args:
            visitor: the visitor.
            files: a CAD file, with its materials and textures where it has such, or photographs.
            name: its name; empty: that of the first file.
            unit: unit of the CAD file.

        Raises:
            OcditError: it cannot be made, or there is an object of this name.
        """
        paths = [Path(file) for file in files]
        meshes = [path for path in paths if path.suffix.lower() in FORMATS]
        images = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if not meshes and not images:
            given = f"{paths[0].name} is neither" if paths else "choose files"
            raise ConfigError(f"{given}: drop a CAD file ({', '.join(FORMATS)}) or photos ({', '.join(SUFFIXES)})")
        if len(meshes) > 1:
            raise ConfigError(f"{len(meshes)} CAD files: drop one at a time, with its materials and textures")
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            # Side by side, as the CAD file names its materials and textures.
            together = Path(scratch) / "files"
            together.mkdir()
            for path in paths:
                shutil.copyfile(path, together / path.name)
            if meshes:
                new = NewObject(name=name.strip(), mesh=together / meshes[0].name, unit=unit).checked()
            else:
                new = NewObject(name=name.strip() or images[0].stem, images=[read_image(p) for p in images]).checked()
            if new.name in visitor.library:
                raise ConfigError(f"there is an object {new.name!r} already: give this one another name")
            templates = make_object(new, Path(scratch))
            if visitor.folder is None:
                visitor.folder = Path(tempfile.mkdtemp(dir=self._scratch))
                for known in visitor.library:
                    file = f"{known}{SUFFIX}"
                    (visitor.folder / file).symlink_to((visitor.library.path / file).resolve())
            save_templates(visitor.folder, templates)
            visitor.library = ObjectLibrary(visitor.folder)
        return new.name

    def track(
        self,
        visitor: Visitor,
        video: str | Path,
        names: Sequence[str],
        progress: Callable[[tuple[int, int]], Any] = lambda done: None,
    ) -> Path:
        """Return a video with the masks and ids of the target objects drawn in.

        Args:
            visitor: the visitor.
            video: a video file; of a long one, `MAX_FRAMES` frames are segmented.
            names: target objects.
            progress: called with the numbers of frames done and to do.

        Raises:
            OcditError: the file cannot be read as a video, or there is no target.
        """
        frames, rate = _read_video(Path(video))
        targets = tuple(names)
        tracker = Tracker(self.segmenter)
        path = Path(tempfile.mkdtemp(dir=self._scratch)) / "tracked.mp4"
        height, width = frames[0].shape[:2]
        # VP9: OpenCV's wheels can write it, and browsers show it.
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"vp09"), rate, (width, height))
        try:
            for done, frame in enumerate(frames, start=1):
                with self._lock:
                    result = tracker.segment(frame, self._encoded(visitor, targets))
                writer.write(cv2.cvtColor(overlay(frame, result), cv2.COLOR_RGB2BGR))
                progress((done, len(frames)))
        finally:
            writer.release()
        return path

    def download(self, visitor: Visitor) -> Path:
        """Return a zip file of the visitor's result: masks and overlay (PNG), scores, boxes and run lengths (JSON).

        Raises:
            OcditError: there is no result.
        """
        if visitor.path is None or visitor.image is None or visitor.result is None:
            raise OcditError("segment an image first")
        folder, path = Path(tempfile.mkdtemp(dir=self._scratch)), Path(visitor.path)
        write_result(folder / "masks", path, visitor.image, visitor.result, model=self.segmenter.model_name)
        return Path(shutil.make_archive(str(folder / path.stem), "zip", folder / "masks"))


def _read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """Return at most `MAX_FRAMES` frames (H, W, 3) uint8 RGB, evenly spread, and their rate in Hz."""
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray] = []
    step, index = 1, 0
    while True:
        read, frame = capture.read()
        if not read:
            break
        if index % step == 0:
            scale = min(1.0, MAX_SIDE / max(frame.shape[:2]))
            # Video encoders want even sides.
            size = [max(2, 2 * round(side * scale / 2)) for side in frame.shape[1::-1]]
            frames.append(cv2.cvtColor(cv2.resize(frame, size), cv2.COLOR_BGR2RGB))
            if len(frames) > MAX_FRAMES:
                # The length that a file states may be wrong.
                frames, step = frames[::2], 2 * step
        index += 1
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    capture.release()
    if not frames:
        raise ImageError(f"{path.name}: cannot be read as a video; use MP4, WebM, AVI or MOV")
    return frames, rate / step
