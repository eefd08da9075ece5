"""Download of public BOP datasets from their hub (https://huggingface.co/bop-benchmark)."""

import logging
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ocdit_core.errors import DataError

logger = logging.getLogger(__name__)

OWNER = "bop-benchmark"
PARTS = ("base", "models", "test_bop19")
"""Parts that an evaluation needs."""


def fetch_dataset(name: str, out: Path, parts: Sequence[str] = PARTS) -> list[Path]:
    """Download parts of a BOP dataset and unpack them; what is there already stays as it is.

    Args:
        name: short name of the dataset, such as ycbv.
        out: folder for the dataset's folder.
        parts: parts, such as models, test_bop19 or train_pbr: the archives NAME_PART.zip.

    Returns:
        The files and folders that were added to the dataset's folder.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset or part; an archive is damaged.
    """
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    hub, repository = huggingface_hub.HfApi(), f"{OWNER}/{name}"
    try:
        files = set(hub.list_repo_files(repository, repo_type="dataset"))
        wanted = [f"{name}_{part}.zip" for part in parts]
        found = wanted if files.issuperset(wanted) else []
        archives = [hub.hf_hub_download(repository, file, repo_type="dataset") for file in found]
    except RepositoryNotFoundError as error:
        raise DataError(f"{repository}: the hub has no such dataset", kind="missing file") from error
    except Exception as error:  # many types, all of which mean that the dataset cannot be downloaded
        reason = f"the hub {hub.endpoint} cannot be reached ({type(error).__name__})"
        raise DataError(f"{repository}: {reason}; set HF_ENDPOINT, or download it elsewhere", kind="hub") from error
    if lacking := [part for part, file in zip(parts, wanted, strict=True) if file not in files]:
        known = sorted(f[len(name) + 1 : -4] for f in files if f.startswith(f"{name}_") and f.endswith(".zip"))
        raise DataError(f"{repository}: has no part {lacking[0]}; it has {', '.join(known) or 'none'}")
    return [path for archive in archives for path in _unpack(Path(archive), out / name)]


def _unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack an archive into a dataset's folder; return the files and folders that were not there before."""
    folder.mkdir(parents=True, exist_ok=True)
    added = []
    # On the same file system, so that each file or folder appears as a whole.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(temporary)
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise DataError(f"{archive}: damaged, or one of several parts ({error})", kind="damaged archive") from error
        # The archive of the base holds the dataset's folder, the others what is in it.
        inside = Path(temporary) / folder.name
        for path in sorted((inside if inside.is_dir() else Path(temporary)).iterdir()):
            if (folder / path.name).exists():
                logger.warning("%s: is there already and stays as it is", folder / path.name)
            else:
                added.append(path.rename(folder / path.name))
    return added
