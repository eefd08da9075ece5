#!/usr/bin/env python3
"""Views a second on one processor core, by each renderer that is installed; and whether memory stays flat.

    python benchmarks/rendering.py                    # 128 pixels, 2 x 2 samples, a mesh of 2,080 faces
    python benchmarks/rendering.py --renderers moderngl pyvista --objects 0

All that `ocdit render` does to a mesh in memory is counted, in processor time: normals, transfer, 12 views, masks,
cameras. Reading files and writing archives is not. The second part writes GLB files and reads, draws and drops them.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

# Before any OpenGL: software drivers start one thread a core otherwise.
os.environ["LP_NUM_THREADS"] = "1"

import numpy as np
import trimesh
from PIL import Image

from ocdit_core.errors import OcditError
from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.opengl_renderer import open_renderer
from ocdit_core.objects.renderers import RENDERERS
from ocdit_core.objects.templates import ViewSettings, render_templates

BAR = 200  # views a second
FLAT = 0.05  # growth of memory after the first objects


def ring(textured: bool, seed: int = 0) -> trimesh.Trimesh:
    """A ring of 2,080 faces, grey or with a texture of 512 x 512 pixels of noise."""
    mesh = trimesh.creation.torus(0.1, 0.04, major_sections=40, minor_sections=26)
    if textured:
        noise = np.random.default_rng(seed).integers(0, 255, (512, 512, 3), dtype=np.uint8)
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(noise))
        x, y, z = mesh.vertices.T
        uv = np.stack([np.arctan2(y, x) / (2 * np.pi) + 0.5, 5 * z], axis=1)
        mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return mesh


def speed(name: str, textured: bool, size: int, repeats: int) -> float:
    """Return views a second of processor time, the best of some tries."""
    settings = ViewSettings(renderer=name)
    mesh = ring(textured)
    with open_renderer(name) as renderer:
        render_templates(renderer, mesh, settings, size=size)
        best = np.inf
        for _ in range(repeats):
            begin = time.process_time()
            views = render_templates(renderer, mesh, settings, size=size)
            best = min(best, time.process_time() - begin)
    return len(views.rgb) / best


def resident() -> float:
    """Return this process's memory in MiB, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(objects: int, settled: int) -> tuple[float, float]:
    """Return MiB after `settled` objects and after all, read from files and drawn one after the other."""
    with tempfile.TemporaryDirectory() as folder, open_renderer("moderngl") as renderer:
        files = [Path(folder) / f"{seed}.glb" for seed in range(10)]
        for seed, file in enumerate(files):
            ring(textured=seed % 2 == 0, seed=seed).export(file)
        before = 0.0
        for index in range(objects):
            render_templates(renderer, read_cad(files[index % len(files)], "m").mesh)
            if index + 1 in (settled, objects):
                gc.collect()
                before = resident() if index + 1 == settled else before
        return before, resident()


def main() -> int:
    """Run the benchmark; returns 1 if moderngl misses the bar or memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renderers", nargs="+", choices=RENDERERS, default=["pyvista", "moderngl"])
    parser.add_argument("--size", type=int, default=128, help="side of a view in pixels (default 128)")
    parser.add_argument("--repeats", type=int, default=10, help="tries, of which the best counts (default 10)")
    parser.add_argument("--objects", type=int, default=300, help="for the memory; 0 leaves that out (default 300)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    failed = False
    print(f"{'renderer':<10} {'mesh':<10} {'views/s':>8}   one core, {options.size} pixels, 2 x 2 samples")
    # PyVista's first: VTK has to start before any other OpenGL in the process.
    for name in sorted(options.renderers, key=lambda name: name != "pyvista"):
        for textured in (False, True):
            kind = "textured" if textured else "grey"
            try:
                views = speed(name, textured, options.size, options.repeats)
            except OcditError as error:
                print(f"{name:<10} {kind:<10} {'-':>8}   {error}")
                continue
            print(f"{name:<10} {kind:<10} {views:8.0f}")
            failed |= name == "moderngl" and options.size == 128 and views < BAR
    if options.objects:
        settled = max(1, options.objects // 6)
        before, after = memory(options.objects, settled)
        print(f"memory: {before:.0f} MiB after {settled} objects, {after:.0f} MiB after {options.objects}")
        failed |= after > before * (1 + FLAT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
