"""`ocdit train`, `ocdit export` and `ocdit convert`: training runs, the models that they made, and those of others."""

from __future__ import annotations

import argparse
from pathlib import Path

from ocdit_core.commands.options import add_command, add_settings, positive
from ocdit_core.errors import ConfigError

TRAIN_EXAMPLES = """\
  ocdit train --config config/train/smoke_vae.yaml --set loop.steps=200 --set run=runs/try
  ocdit train --config config/train/paper_coarse.yaml --dry-run
  torchrun --nproc_per_node=8 training/train.py --config config/train/paper_coarse.yaml --set loop.strategy=fsdp2

SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 end a run after the current step, with a checkpoint; the same command continues it.
training/train.py is the same program, for launchers such as torchrun.
"""
EXPORT_EXAMPLES = """\
  ocdit export runs/coarse --out my_model
  ocdit export runs/coarse --out my_model --step 120000 --full
  ocdit export ocdit-small --onnx graphs
  ocdit export my_model --onnx graphs --set image_size=[272,352]

--onnx writes the computations of a model and its refine model for other runtimes, in float32, and checks each against
torch; docs/inference.md describes them.
"""
CONVERT_EXAMPLES = """\
  ocdit convert ocdit_coarse.pth --out models/coarse
  ocdit convert ocdit_refine.ckpt --image-size 224 224 --backbone dinov2_vits14_pretrain.pth --out models/coarse/refine
"""


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommands."""
    parser = add_command(subparsers, "train", "train one stage of a model, or continue its run", TRAIN_EXAMPLES)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file, see config/train/")
    parser.add_argument("--print-config", action="store_true", help="print the resulting settings and exit")
    parser.add_argument(
        "--dry-run", action="store_true", help="process one batch and print shapes, memory and time; write nothing"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda if there is one"
    )
    add_settings(parser, "a setting that replaces the one in the file, such as loop.steps=200")
    parser.set_defaults(run=train)

    summary = "write the model of a training run, with its card, or a model's computations as ONNX graphs"
    parser = add_command(subparsers, "export", summary, EXPORT_EXAMPLES)
    text = "folder of a training run; with --onnx, a model: name of an embedded one, or a folder"
    parser.add_argument("folder", metavar="RUN", type=Path, help=text)
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--out", type=Path, metavar="FOLDER", help="model folder")
    output.add_argument("--onnx", type=Path, metavar="FOLDER", help="folder of ONNX graphs")
    parser.add_argument("--step", type=positive, help="step of a kept checkpoint (default: the newest)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--half", action="store_const", const=True, help="store float16 (default, except for a VAE)")
    precision.add_argument("--full", dest="half", action="store_const", const=False, help="store float32")
    add_settings(parser, "with --onnx: a setting that changes the size of images, such as image_size=[272,352]")
    parser.set_defaults(run=export, half=None)

    summary = "write a model folder from a checkpoint in the naming of the published OC-DiT code"
    parser = add_command(subparsers, "convert", summary, CONVERT_EXAMPLES)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="state dict: .pth, .ckpt or .safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="model folder")
    for name, size in (("image", [480, 640]), ("template", [128, 128])):
        text = f"size of training {name}s in pixels (default: {size[0]} {size[1]})"
        parser.add_argument(f"--{name}-size", nargs=2, type=positive, metavar=("H", "W"), default=size, help=text)
    parser.add_argument("--heads", type=positive, help="attention heads (default: 16 for a width of 1024)")
    text = "of a checkpoint without one: hub id, folder or DINOv2 checkpoint (default: facebook/dinov2-small)"
    parser.add_argument("--backbone", default="facebook/dinov2-small", metavar="NAME", help=text)
    parser.set_defaults(run=convert)


def train(arguments: argparse.Namespace) -> int:
    """Train; return 0."""
    from ocdit_core.config import apply_overrides, build, to_yaml
    from ocdit_core.training.main import run_training
    from ocdit_core.training.settings import TrainSettings, read_settings

    settings = build(TrainSettings, apply_overrides(read_settings(arguments.config), arguments.settings))
    if arguments.print_config:
        print(to_yaml(settings), end="")
    else:
        run_training(settings, dry=arguments.dry_run, device=arguments.device)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Export; return 0."""
    if arguments.onnx is not None:
        return export_onnx(arguments)
    if arguments.settings:
        raise ConfigError("--set: is for --onnx alone; inference.yaml in the model's folder takes settings")

    from ocdit_core.config import build, read_yaml, to_yaml
    from ocdit_core.files import check_output, write_text
    from ocdit_core.inference.settings import SETTINGS_FILE, InferenceSettings
    from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE
    from ocdit_core.models.ocdit import OCDiTConfig
    from ocdit_core.training import settings as training
    from ocdit_core.training.export import export_run

    check_output(arguments.out / SETTINGS_FILE)
    step = export_run(arguments.folder, arguments.out, step=arguments.step, half=arguments.half)
    stage = read_yaml(arguments.folder / training.SETTINGS_FILE)["stage"]
    if stage != "vae":
        model = build(OCDiTConfig, read_yaml(arguments.out / CONFIG_FILE))
        recommended = to_yaml(InferenceSettings(image_size=model.image_size))
        text = f"# Defaults of a newly trained model: choose thresholds on validation scenes.\n{recommended}"
        write_text(arguments.out / SETTINGS_FILE, text)
    size = (arguments.out / WEIGHTS_FILE).stat().st_size
    print(f"{arguments.out}: stage {stage}, step {step:,}, {size / 1e6:.1f} MB")
    return 0


def export_onnx(arguments: argparse.Namespace) -> int:
    """Export ONNX graphs; return 0."""
    from ocdit_core.inference.graphs import GRAPHS_FILE, OPSET, export
    from ocdit_core.inference.settings import REFINE_FOLDER, find_weights, recommended_settings, refine_weights
    from ocdit_core.models.ocdit import OCDiT

    if arguments.step is not None or arguments.half is not None:
        raise ConfigError("--step, --half, --full: are for --out; export the run first, then its model folder")
    settings = recommended_settings(arguments.folder, overrides=arguments.settings)
    folder, models = find_weights(arguments.folder), {}
    for place, own, size in (
        ("", folder, settings.image_size),
        (REFINE_FOLDER, refine_weights(folder), settings.refine.image_size),
    ):
        if own is not None:
            model = OCDiT.from_pretrained(own).eval().requires_grad_(False)
            models[place] = (model, size or model.config.image_size)
    for file, graph in export(models, arguments.onnx):
        size = sum(one.stat().st_size for one in arguments.onnx.glob(f"{file}*"))
        print(f"{file}: {size / 1e6:,.1f} MB, {graph['difference']:.1e} from torch", flush=True)
    print(f"{arguments.onnx / GRAPHS_FILE}: opset {OPSET}, names and shapes of the tensors")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Convert; return 0."""
    from dataclasses import replace

    from ocdit_core.config import to_yaml
    from ocdit_core.files import check_output, write_text
    from ocdit_core.inference.settings import PAPER, SETTINGS_FILE
    from ocdit_core.models.checkpoints import CONFIG_FILE, WEIGHTS_FILE
    from ocdit_core.models.ocdit import OCDiT

    check_output(*(arguments.out / name for name in (CONFIG_FILE, WEIGHTS_FILE, SETTINGS_FILE)))
    model = OCDiT.from_published(
        arguments.checkpoint,
        image_size=tuple(arguments.image_size),
        template_size=tuple(arguments.template_size),
        heads=arguments.heads,
        backbone=arguments.backbone,
    )
    model.save_pretrained(arguments.out)
    settings = to_yaml(replace(PAPER, image_size=model.config.image_size))
    write_text(arguments.out / SETTINGS_FILE, f"# The settings of the paper (preset: paper).\n{settings}")
    sizes, parameters = model.config.denoiser, sum(p.numel() for p in model.parameters())
    print(
        f"{arguments.out}: width {sizes.width}, {sizes.depth} blocks, {sizes.heads} heads, "
        f"{sizes.max_objects} objects, {sizes.max_views} views, {parameters / 1e6:.1f} M parameters"
    )
    return 0
