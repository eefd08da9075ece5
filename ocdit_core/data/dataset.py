"""Interface of datasets of annotated images, and opening one by its path."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ocdit_core.data.bop import BopFolder, splits_of
from ocdit_core.data.frame import Frame, ImageKey, OnError, read_json
from ocdit_core.data.shards import ShardDataset
from ocdit_core.errors import DataError

MEGAPOSE = "gso_models.json"


class Dataset(Protocol):
    """Annotated images in any layout. A new layout implements this, and `open_dataset` recognises it."""

    @property
    def name(self) -> str:
        """Short name, for results and logs."""

    @property
    def title(self) -> str:
        """Name and extent, for people."""

    @property
    def path(self) -> Path:
        """The dataset's folder, with models/, objects.json and targets files, where it has them."""

    @property
    def count(self) -> int | None:
        """Number of frames; None where it is not known before all are read."""

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over all frames; raises DataError for a damaged one."""

    def frames(
        self, images: Iterable[ImageKey] | None = None, *, limit: int | None = None, on_error: OnError | None = None
    ) -> Iterator[Frame]:
        """Yield frames.

        Args:
            images: only these; a layout that is read sequentially leaves out those that it does not have.
            limit: at most so many.
            on_error: called for parts that cannot be opened, and then they are left out; default: raise.

        Raises:
            DataError: see `on_error`; or one of `images` is missing.
        """

    def units(self, images: Iterable[ImageKey]) -> list[str]:
        """Return the parts that must be read for these images, as work to share among processes."""

    def read(self, unit: str) -> Iterator[Frame]:
        """Yield the frames of a unit, which may be more than were asked for."""

    def draw(self, seed: Sequence[int], number: int) -> Frame:
        """Return a frame of an endless random order, which depends on the seed alone; raises DataError."""


def megapose_names(folder: Path) -> dict[int, str]:
    """Return the name of each obj_id in gso_models.json (MegaPose) of a dataset's folder, or of the one above it.

    Raises:
        DataError: the file is damaged.
    """
    for path in (folder / MEGAPOSE, folder.resolve().parent / MEGAPOSE):
        if path.is_file():
            content = read_json(path)
            try:
                return {int(entry["obj_id"]): str(entry["gso_id"]) for entry in content}
            except (KeyError, TypeError, ValueError) as error:
                reason = "is not a list of entries with obj_id and gso_id"
                raise DataError(f"{path}: {reason}", kind="damaged JSON") from error
    return {}


def open_dataset(path: str | Path, split: str | None = None) -> Dataset:
    """Open a dataset.

    Args:
        path: BOP's folder of a dataset, or of one of its splits; a .tar shard, or a folder of shards.
        split: subfolder of a dataset's folder; default: the only one that it has.

    Raises:
        DataError: nothing there that can be read, or a split must be chosen; the message lists them.
    """
    folder = Path(path)
    sharded = folder.suffix == ".tar" or folder.is_file()
    if split is not None and not sharded and next((folder / split).glob("*.tar"), None) is not None:
        return ShardDataset(folder / split, path=folder)
    if sharded or (split is None and next(folder.glob("*.tar"), None) is not None):
        return ShardDataset(folder)
    if split is not None:
        return BopFolder(folder, split)
    if next(folder.glob("*/scene_camera.json"), None) is not None:
        resolved = folder.resolve()
        return BopFolder(resolved.parent, resolved.name)
    splits = splits_of(folder)
    if len(splits) != 1:
        what = f"has the splits {', '.join(splits)}; say which" if splits else "holds neither BOP scenes nor shards"
        raise DataError(f"{folder}: {what}", kind="missing file")
    return BopFolder(folder, splits[0])
