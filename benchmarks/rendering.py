#!/usr/bin/env python3
"""Measure rendered templates per second on one CPU core, and whether memory stays flat.

    python benchmarks/rendering.py                    # 128 pixels, 2 x 2 samples, a mesh of 2,080 faces

All that `ocdit render` does to a mesh in memory is counted, in CPU time: normals, transfer, 12 views, masks, cameras.
Reading files and writing archives is not. The second part writes GLB files and reads, renders and drops them.
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

from ocdit_core.objects.meshes import read_cad
from ocdit_core.objects.renderer import Renderer
from ocdit_core.objects.templates import render_templates

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


def speed(textured: bool, size: int, repeats: int) -> float:
    """Return views per second of CPU time, the best of some repeats."""
    mesh = ring(textured)
    with Renderer() as renderer:
        render_templates(renderer, mesh, size=size)
        best = np.inf
        for _ in range(repeats):
            begin = time.process_time()
            views = render_templates(renderer, mesh, size=size)
            best = min(best, time.process_time() - begin)
    return len(views.rgb) / best


def resident() -> float:
    """Return this process's memory in MiB, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(objects: int, settled: int) -> tuple[float, float]:
    """Return MiB after `settled` objects and after all, read from files and drawn one after the other."""
    with tempfile.TemporaryDirectory() as folder, Renderer() as renderer:
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
    """Run the benchmark; return 1 if the speed is below the bar or memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="side of a view in pixels (default 128)")
    parser.add_argument("--repeats", type=int, default=10, help="tries, of which the best counts (default 10)")
    parser.add_argument("--objects", type=int, default=300, help="for the memory; 0 leaves that out (default 300)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    failed = False
    print(f"{'mesh':<10} {'views/s':>8}   one core, {options.size} pixels, 2 x 2 samples")
    for textured in (False, True):
        views = speed(textured, options.size, options.repeats)
        print(f"{'textured' if textured else 'grey':<10} {views:8.0f}")
        failed |= options.size == 128 and views < BAR
    if options.objects:
        settled = max(1, options.objects // 6)
        before, after = memory(options.objects, settled)
        print(f"memory: {before:.0f} MiB after {settled} objects, {after:.0f} MiB after {options.objects}")
        failed |= after > before * (1 + FLAT)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
