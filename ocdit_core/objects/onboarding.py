"""From CAD files to a library: each mesh is read, rendered from all sides, and stored as one archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ocdit_core.errors import ConfigError, OcditError, RenderingError
from ocdit_core.objects.archive import ObjectTemplates, check_name, save_templates
from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.rendering import Renderer
from ocdit_core.objects.templates import Templates, render_templates

POINTS = 2048
"""Surface points stored for each object."""


def make_templates(
    renderer: Renderer, path: str | Path, *, name: str | None = None, unit: str = "auto", views: int = 12
) -> ObjectTemplates:
    """Read and render one CAD file.

    Args:
        renderer: an open renderer; one serves any number of files.
        path: the mesh file.
        name: of the object; default: the file's name without its suffix.
        unit: "auto", "m", "cm", "mm" or "in".
        views: 12, 42 or 162.

    Raises:
        ConfigError: an unknown unit, a bad name, another number of views.
        MeshError: the file cannot be used.
        RenderingError: it cannot be drawn.
    """
    import trimesh

    name = check_name(Path(path).stem if name is None else name)
    model = read_cad(path, unit)
    drawn = render_templates(renderer, model.mesh, views=views)
    shown = _visible_views(path, drawn)
    points, _ = trimesh.sample.sample_surface(model.mesh, POINTS, seed=0)
    return ObjectTemplates(
        name=name,
        rgb=drawn.rgb[shown],
        mask=drawn.mask[shown],
        box=drawn.box[shown],
        K=drawn.K[shown],
        pose=drawn.pose[shown],
        points=np.asarray(points, dtype=np.float32),
        diameter=model.diameter,
        source_sha256=model.sha256,
        unit=model.unit,
    )


def _visible_views(path: str | Path, drawn: Templates) -> np.ndarray:
    """Return V view indices: a view edge-on to a thin sheet shows nothing, the nearest that does stands in for it."""
    visible = np.array([mask.any() for mask in drawn.mask])
    if not visible.any():
        raise RenderingError(f"{path}: nothing can be seen of the object from any side")
    axes = drawn.pose[:, 2, :3]
    closeness = np.where(visible, axes @ axes.T, -np.inf)
    return np.where(visible, np.arange(len(visible)), closeness.argmax(axis=1))


def add_objects(
    library: str | Path,
    meshes: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    unit: str = "auto",
    views: int = 12,
    on_error: Callable[[Path, OcditError], None] | None = None,
    progress: bool = False,
) -> tuple[str, ...]:
    """Render CAD files into a library folder, which is made when it is missing.

    An object of the same name in the library is replaced; each object is there whole or not at all.

    Args:
        library: the folder.
        meshes: CAD files.
        names: of the objects, one a file; default: the files' names without suffix.
        unit: of all files: "auto", "m", "cm", "mm" or "in".
        views: 12, 42 or 162.
        on_error: called for a file that cannot be used, and the others go on; without it the error ends the work.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Returns:
        The names of the objects that were added.

    Raises:
        ConfigError: another number of names than of files, or two files with one name.
        RenderingError: no off-screen OpenGL.
        OcditError: what `make_templates` raises, when there is no `on_error`.
    """
    paths = [Path(mesh) for mesh in meshes]
    if not paths:
        raise ConfigError("no mesh was given")
    if names is not None and len(names) != len(paths):
        raise ConfigError(f"{len(names)} names were given for {len(paths)} meshes; give one for each")
    chosen = list(names) if names is not None else [path.stem for path in paths]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise ConfigError(f"two meshes would both be called {twice[0]!r}; name them one by one (--name)")
    added = []
    # None: a bar on a terminal only, so that log files stay readable.
    hidden = None if progress else True
    with Renderer() as renderer:
        for path, name in tqdm(list(zip(paths, chosen, strict=True)), desc="rendering", unit="object", disable=hidden):
            try:
                save_templates(library, make_templates(renderer, path, name=name, unit=unit, views=views))
            except OcditError as error:
                if on_error is None:
                    raise
                on_error(path, error)
            else:
                added.append(name)
    return tuple(added)
