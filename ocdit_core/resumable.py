"""Resumable output folders: a plan file records what a folder holds, so that the same command continues it.

Several processes, also on several machines, may work on one folder: each takes its shard of the work.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ocdit_core.errors import ConfigError, DataError
from ocdit_core.files import check_output, write_text

T = TypeVar("T")
Shard = tuple[int, int]
"""(i, n): the i-th of n equal shards of the work, counted from 0."""


def keep_plan(
    path: Path, plan: Mapping[str, Any], *, outputs: Collection[str] | None = None, may_differ: Collection[str] = ()
) -> None:
    """Write the plan of a new folder; check that a folder that was begun has the same plan.

    Args:
        path: plan file in the output folder.
        plan: settings, inputs and versions, as JSON values.
        outputs: names in the folder that the run writes: without a plan, none may exist. None: the folder must be
            empty, except for hidden files.
        may_differ: top-level keys whose values may change when a run continues.

    Raises:
        DataError: the folder holds something else or another plan (the message names the first difference), or the
            plan is damaged.
        OutputError: the plan cannot be written, or an output is a file of others.
    """
    folder = path.parent
    new = json.loads(json.dumps(plan))
    if path.exists():
        old = _read_plan(path)
        for key in (key for key in {**old, **new} if key not in may_differ):
            if old.get(key) != new.get(key):
                difference = _difference(key, old.get(key), new.get(key))
                raise DataError(
                    f"{folder}: was begun with {difference}; repeat the settings of its {path.name} to continue, or "
                    "choose another folder"
                )
    elif folder.is_dir():
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        foreign = names if outputs is None else [name for name in names if name in outputs]
        if foreign:
            raise DataError(
                f"{folder}: holds {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''} but no {path.name}; "
                "choose a new or an empty folder"
            )
    check_output(*(folder / name for name in outputs or () if not (folder / name).is_dir()))
    write_text(path, json.dumps(new, indent=1, ensure_ascii=False) + "\n")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())}); choose another folder") from error


def take_shard(items: Sequence[T], shard: Shard) -> list[T]:
    """Return every n-th item, from the i-th on.

    Raises:
        ConfigError: i is not within 0 to n - 1.
    """
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(f"shard: {index}/{count} is not one of 0/{count} to {count - 1}/{count}")
    return list(items[index::count])


def _difference(key: str, old: Any, new: Any) -> str:
    """Describe the first difference of two values, with its dotted key."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new) and max(len(old), len(new)) > 8:
            return f"{len(old)} {key}, not {len(new)}"
        if len(old) == len(new):
            old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(name for name in {**old, **new} if old.get(name) != new.get(name))
        return _difference(f"{key}.{inner}", old.get(inner), new.get(inner))
    shown = (value if isinstance(value, str) else json.dumps(value) for value in (old, new))
    return f"{key} " + ", not ".join(text if len(text) <= 80 else text[:80] + " ..." for text in shown)
