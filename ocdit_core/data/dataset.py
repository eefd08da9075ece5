"""Open a dataset by its path, whatever layout it is in."""

from __future__ import annotations

from pathlib import Path

from ocdit_core.data.bop import BopFolder, splits_of
from ocdit_core.data.shards import ShardDataset
from ocdit_core.errors import DataError


def open_dataset(path: str | Path, split: str | None = None) -> BopFolder | ShardDataset:
    """Open a dataset.

    Args:
        path: BOP's folder of a dataset, or of one of its splits; a .tar shard, a folder of shards, or a pattern
            such as shard-{000000..000099}.tar.
        split: of a dataset's folder; default: the only one that it has.

    Raises:
        DataError: nothing there that can be read, or a split has to be chosen; the message lists them.
    """
    text, folder = str(path), Path(path)
    sharded = "{" in text or text.endswith(".tar") or folder.is_file()
    if split is not None and not sharded and next((folder / split).glob("*.tar"), None) is not None:
        folder, sharded = folder / split, True
    if sharded or (split is None and next(folder.glob("*.tar"), None) is not None):
        return ShardDataset(text if not folder.is_dir() else folder)
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
