"""How long a large library takes to open, and what the cache of features saves.

    .venv/bin/python benchmarks/library.py --objects 1000

Archives are made up (noise, which compresses worse than any rendering). Weights are random: they cost the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ocdit_core import ObjectLibrary
from ocdit_core.inference.network import Network
from ocdit_core.inference.settings import InferenceSettings, find_weights
from ocdit_core.inference.targets import ObjectEncoder
from ocdit_core.models.backbones import BackboneConfig
from ocdit_core.models.ocdit import OCDiT, OCDiTConfig
from ocdit_core.objects.archive import ObjectTemplates, save_templates
from ocdit_core.objects.library import MANIFEST, update_manifest

VIT_SMALL = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 518,
}


def main() -> None:
    """Print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1000, help="archives in the library (default: 1000)")
    parser.add_argument("--encoded", type=int, default=10, help="objects whose features are computed (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "library"
        first = save_templates(library, made_up())
        for number in range(1, options.objects):
            shutil.copyfile(first, library / f"object_{number:05d}.npz")
        print(f"{options.objects} objects of {first.stat().st_size / 1024:.0f} KiB")
        opening(library)
        for name, model in (("ocdit-small", tiny()), ("DINOv2 ViT-S", vit_small())):
            encoding(name, model, options.encoded, Path(folder) / name)


def opening(library: Path) -> None:
    """Print what it costs to open a library and to ask for its manifest."""
    show("open", lambda: ObjectLibrary(library))
    show("open, manifest without manifest.json", lambda: ObjectLibrary(library).manifest)
    show("write manifest.json for all", lambda: update_manifest(library))
    show("open, manifest", lambda: ObjectLibrary(library).manifest)
    show("update manifest.json, one changed", lambda: update_manifest(library, ["object_00000"]))
    os.unlink(library / MANIFEST)
    opened = ObjectLibrary(library)
    show("read one object", lambda: opened["object_00000"])
    before = peak_mib()
    for name in opened.object_ids[:200]:
        _ = opened[name]
    print(f"  {'memory grown by reading 200 objects, one by one':44} {peak_mib() - before:9.1f} MiB")


def encoding(name: str, model: OCDiT, count: int, cache: Path) -> None:
    """Print what it costs to compute features, and to read them again in a new program."""
    objects = [made_up(seed) for seed in range(count)]
    network = Network(model, torch.device("cpu"), InferenceSettings())
    plain = ObjectEncoder(network, None)
    plain.encode(made_up(count))  # the first one warms up
    computed = took(lambda: [plain.encode(one) for one in objects]) / count
    writing = ObjectEncoder(network, cache)
    for one in objects:
        writing.encode(one)
    reading = ObjectEncoder(network, cache)
    hashed = took(lambda: reading.encode(objects[0]))
    read = took(lambda: [reading.encode(one) for one in objects[1:]]) / (count - 1)
    size = sum(path.stat().st_size for path in cache.iterdir()) / count / 2**20
    print(f"{name}, an object of 12 views, {torch.get_num_threads()} threads")
    for label, value in (("computed", computed), ("read", read), ("the first, hash of the weights included", hashed)):
        print(f"  {label:44} {value * 1000:9.1f} ms")
    print(f"  {'on disk':44} {size:9.2f} MiB")


def tiny() -> OCDiT:
    """Return the embedded model."""
    return OCDiT.from_pretrained(find_weights("ocdit-small")).eval().requires_grad_(False)


def vit_small() -> OCDiT:
    """Return the published coarse model's size, without its training."""
    config = OCDiTConfig(backbone=BackboneConfig(kind="vit", architecture=VIT_SMALL))
    return OCDiT(config).eval().requires_grad_(False)


def made_up(seed: int = 0) -> ObjectTemplates:
    """Return templates of noise."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((12, 128, 128), bool)
    mask[:, 24:104, 24:104] = True
    return ObjectTemplates(
        name="object_00000",
        rgb=rng.integers(0, 255, (12, 128, 128, 3), np.uint8) * mask[..., None],
        mask=mask,
        box=np.ones((12, 4), np.float32),
        K=np.tile(np.eye(3), (12, 1, 1)),
        pose=np.tile(np.eye(4), (12, 1, 1)),
        points=rng.normal(size=(2048, 3)).astype(np.float32),
        diameter=0.1,
        sources=("object.glb",),
    )


def took(work: Callable[[], object]) -> float:
    """Return seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def show(label: str, work: Callable[[], object]) -> None:
    """Print milliseconds."""
    print(f"  {label:44} {took(work) * 1000:9.1f} ms", flush=True)


def peak_mib() -> float:
    """Return the process's largest memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
