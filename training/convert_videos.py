#!/usr/bin/env python3
"""Convert public videos with instance masks to a dataset for `ocdit evaluate --tracking`.

    python training/convert_videos.py davis data/DAVIS/ImageSets/2017/val.txt --out data/davis
    python training/convert_videos.py youtube-vis data/ytvis/train/instances.json --out data/ytvis
    python training/convert_videos.py movi data/movi_e --out data/movi     # folders that Kubric's workers wrote

OUT gets a scene in BOP's layout for each video (test/), a library of the objects (templates/), the targets of each
image (targets.json), and the origin of each obj_id (objects.json). The same command continues an interrupted run.
"""

import argparse
import io
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ocdit_core.data.bop import BopFolder
from ocdit_core.data.frame import Frame, read_bytes, read_json
from ocdit_core.data.writers import LabelledFrame, LabelledObject, remove_unfinished, scene_folder, write_scene
from ocdit_core.errors import DataError, ImageError, OcditError
from ocdit_core.evaluation.records import MIN_VISIBLE
from ocdit_core.evaluation.targets import OBJECTS
from ocdit_core.files import write_text
from ocdit_core.images import decode_image, write_image
from ocdit_core.masks import decode_segmentation
from ocdit_core.objects.archive import ObjectTemplates, save_templates
from ocdit_core.objects.capture import MIN_SIDE, capture_object
from ocdit_core.objects.library import update_manifest
from ocdit_core.resumable import keep_plan

SPLIT = "test"
ANNOTATIONS = {"davis": "Annotations", "davis-unsupervised": "Annotations_unsupervised"}
VOID = 255  # DAVIS's label of pixels that are of no instance
Mask = NDArray[np.bool_]


class Video(NamedTuple):
    """A video: name of the object of each instance, image files in order, and the masks (H, W) of a frame by index."""

    objects: Sequence[str]
    images: Sequence[Path]
    masks: Callable[[int], list[Mask]]


def davis(names: Path, annotations: str) -> Iterator[Video]:
    """Yield the videos that a file of DAVIS 2017, ROOT/ImageSets/2017/val.txt, names; each instance is an object.

    The masks are in ROOT/Annotations or ROOT/Annotations_unsupervised. Raises DataError: a file is missing or damaged.
    """
    root = names.parent.parent.parent
    for name in read_bytes(names).decode("utf-8", "replace").split():
        images, masks = root / "JPEGImages" / "480p" / name, root / annotations / "480p" / name
        frames = sorted({path.stem for path in (*images.glob("*.jpg"), *masks.glob("*.png"))})
        if not frames:
            raise DataError(f"{images}: holds no frames (00000.jpg ...)", kind="missing file")
        labels = [_read_labels(masks / f"{frame}.png") for frame in frames]
        ids = np.setdiff1d(np.concatenate([np.unique(one) for one in labels]), (0, VOID)).tolist()
        yield Video([f"{name} {n}" for n in ids], [images / f"{f}.jpg" for f in frames], partial(_masks, labels, ids))


def movi(root: Path) -> Iterator[Video]:
    """Yield the scenes of MOVi in a folder; instances of one asset, colour and material share an object.

    Raises DataError: a file is missing or damaged, or a mask belongs to no instance.
    """
    for path in sorted(root.glob("*/metadata.json")):
        content = read_json(path)
        try:
            count, objects = int(content["metadata"]["num_frames"]), [_asset(one) for one in content["instances"]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(f"{path}: num_frames or an instance is damaged, or lacks a key ({error})") from error
        labels = [_read_labels(path.with_name(f"segmentation_{frame:05d}.png")) for frame in range(count)]
        if (highest := max((one.max() for one in labels), default=0)) > len(objects):
            raise DataError(f"{path}: has {len(objects)} instances, but a segmentation the id {highest}")
        images = [path.with_name(f"rgba_{frame:05d}.png") for frame in range(count)]
        yield Video(objects, images, partial(_masks, labels, range(1, len(objects) + 1)))


def _asset(instance: dict[str, Any]) -> str:
    """Return what an instance looks like: its asset and, where Kubric paints it, its colour and material."""
    colour = bytes(round(255 * value) for value in instance.get("color", ())).hex()
    return " ".join(filter(None, (instance["asset_id"], colour, instance.get("material"))))


def _read_labels(path: Path) -> NDArray[np.uint8]:
    """Return the (H, W) palette indices of a PNG file, which are the ids of instances; raises DataError."""
    data = read_bytes(path)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, labels = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, OSError ...
        raise DataError(f"{path}: truncated or damaged PNG file", kind="damaged mask") from error
    if mode != "P":
        raise DataError(f"{path}: has no palette, whose indices are the ids of instances", kind="damaged mask")
    return labels


def _masks(labels: Sequence[NDArray[np.uint8]], ids: Sequence[int], index: int) -> list[Mask]:
    return [labels[index] == number for number in ids]


def youtube_vis(path: Path, images: Path) -> Iterator[Video]:
    """Yield the videos of a JSON file of YouTube-VIS whose images are in a folder; each instance is an object.

    Annotations of crowds are left out and counted. Raises DataError: the file is damaged, or has no annotations.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content.get("videos") or not content.get("annotations"):
        raise DataError(f"{path}: has no videos, or no annotations (only those for training are public)")
    instances: defaultdict[Any, list[tuple[str, list[Any], str]]] = defaultdict(list)
    where, crowds = str(path), 0
    try:
        categories = {one["id"]: one["name"] for one in content["categories"]}
        sizes = {one["id"]: (int(one["height"]), int(one["width"])) for one in content["videos"]}
        videos = {one["id"]: [images / name for name in one["file_names"]] for one in content["videos"]}
        for number, one in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            masks, files = one["segmentations"], videos[one["video_id"]]
            crowds += bool(one.get("iscrowd"))
            if len(masks) != len(files):
                raise DataError(f"{where}: has {len(masks)} segmentations for {len(files)} frames", kind="damaged JSON")
            if not one.get("iscrowd"):
                instances[one["video_id"]].append((categories[one["category_id"]], masks, where))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: damaged, lacks a key, or has an unknown id ({error})") from error
    print(f"{path}: annotations of crowds, left out: {crowds}")
    for key, files in videos.items():
        objects = [f"{Path(*files[:1]).parent.name} {n} {one[0]}" for n, one in enumerate(instances[key], start=1)]
        yield Video(objects, files, partial(_decoded, instances[key], sizes[key]))


def _decoded(instances: list[tuple[str, list[Any], str]], size: tuple[int, int], index: int) -> list[Mask]:
    masks = []
    for _, segmentations, where in instances:
        try:
            masks.append(decode_segmentation(segmentations[index], size))
        except DataError as error:
            raise DataError(f"{where}, frame {index}: {error}", kind="damaged mask") from error
    return masks


def write_scenes(out: Path, videos: Iterable[Video]) -> dict[int, str]:
    """Write a scene for each video that has none yet; return the name of each obj_id.

    Raises OcditError: a file is missing or damaged, or a mask has another size than its image.
    """
    remove_unfinished(out, SPLIT)
    numbers: dict[str, int] = {}
    for scene, video in enumerate(tqdm(videos, "videos", unit="video", disable=None)):
        objects = [numbers.setdefault(name, len(numbers) + 1) for name in video.objects]
        if not scene_folder(out, SPLIT, scene).exists():
            write_scene(out, SPLIT, scene, _frames(video, objects))
    return {number: name for name, number in numbers.items()}


def _frames(video: Video, objects: Sequence[int]) -> Iterator[LabelledFrame]:
    """Yield the frames; BOP's layout demands poses and intrinsics, which are made up."""
    make = partial(LabelledObject, rotation=np.eye(3), translation=np.array([0.0, 0.0, 1.0]))
    for index, path in enumerate(video.images):
        image = decode_image(read_bytes(path), str(path), upright=False)
        (height, width), masks = image.shape[:2], video.masks(index)
        if others := {mask.shape for mask in masks} - {(height, width)}:
            raise DataError(f"{path}: is {(height, width)} pixels high and wide, a mask of it {others.pop()}")
        K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
        instances = [make(object_id=n, visible=mask, silhouette=mask) for n, mask in zip(objects, masks, strict=True)]
        yield LabelledFrame(image=image, K=K, objects=instances)


def write_library(out: Path, names: dict[int, str]) -> str:
    """Write the library, objects.json and targets.json, and return a summary.

    The views of an object are of the first frame of each of its instances that shows MIN_SIDE pixels of it. Targets of
    an image are the objects of its video. Raises DataError: no object can be cut out.
    """
    firsts: dict[int, dict[tuple[int, int], Frame]] = {number: {} for number in names}
    dataset, rows, skipped = BopFolder(out, SPLIT), [], {}
    for frame in dataset:
        image, seen = {"scene_id": frame.scene_id, "im_id": frame.image_id}, Counter[int]()
        for index, one in enumerate(frame.annotations):
            seen[one.object_id] += one.visible_fraction >= MIN_VISIBLE
            if one.box_visible and max(one.box_visible[2:]) >= MIN_SIDE:
                firsts[one.object_id].setdefault((frame.scene_id, index), frame)
        rows += [{**image, "obj_id": number, "inst_count": count} for number, count in sorted(seen.items())]
    for number, views in tqdm(firsts.items(), "templates", unit="object", disable=None):
        try:
            save_templates(out / "templates", _templates(f"obj_{number:06d}", views))
        except ImageError as error:
            skipped[number] = str(error)
            print(f"{names[number]}: is no target: {error}", file=sys.stderr)
    if len(skipped) == len(names):
        raise DataError(f"{out}: none of its {len(names)} objects can be cut out as a template")
    update_manifest(out / "templates")
    write_text(out / OBJECTS, json.dumps({"objects": names, "skipped": skipped}, indent=1, ensure_ascii=False) + "\n")
    rows = [row for row in rows if row["obj_id"] not in skipped]
    write_text(out / "targets.json", json.dumps(rows, indent=1) + "\n")
    return f"{len(dataset)} images, {len(names) - len(skipped)} objects, {len(skipped)} left out"


def _templates(name: str, views: dict[tuple[int, int], Frame]) -> ObjectTemplates:
    """Cut an object out of frames, by scene and index of its instance; raises ImageError."""
    if not views:
        raise ImageError(f"no frame shows {MIN_SIDE} pixels of it")
    with tempfile.TemporaryDirectory() as folder:
        photos, masks = ([Path(folder) / f"{kind}_{n}.png" for n in range(len(views))] for kind in ("photo", "mask"))
        for photo, mask, ((_, index), frame) in zip(photos, masks, views.items(), strict=True):
            write_image(photo, frame.image() * frame.mask(index)[..., None], guard=False)  # no file twice
            write_image(mask, frame.mask(index), guard=False)
        return capture_object(name, photos, masks=masks).templates


def main() -> int:
    """Convert, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*ANNOTATIONS, "youtube-vis", "movi"), help="layout of the videos")
    parser.add_argument("source", type=Path, help="list of names (DAVIS), JSON file (YouTube-VIS) or folder (MOVi)")
    parser.add_argument("--images", type=Path, help="images of YouTube-VIS (default: JPEGImages beside the JSON file)")
    parser.add_argument("--out", type=Path, required=True, help="dataset folder, new or empty")
    options = parser.parse_args()
    source, images = options.source, options.images or options.source.parent / "JPEGImages"
    try:
        if options.kind in ANNOTATIONS:
            videos = davis(source, ANNOTATIONS[options.kind])
        else:
            videos = movi(source) if options.kind == "movi" else youtube_vis(source, images)
        first = next(videos, None)  # before the folder is made
        if first is None:
            raise DataError(f"{source}: lists no videos, or holds no scenes with a metadata.json", kind="missing file")
        keep_plan(options.out / "plan.json", {key: str(value) for key, value in vars(options).items() if key != "out"})
        summary = write_library(options.out, write_scenes(options.out, chain([first], videos)))
    except OcditError as error:
        print(f"convert_videos.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
