"""The card of an exported model: what it is, what it was trained on, how it did in validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ocdit_core.config import to_yaml
from ocdit_core.training.settings import MODEL_PARTS, BopDataSettings, TrainSettings

_ROWS = 12
_BARS = " ▁▂▃▄▅▆▇█"

Log = Sequence[dict[str, Any]]


def model_card(settings: TrainSettings, step: int, log: Log, parameters: int) -> str:
    """Return the card as Markdown.

    Args:
        settings: of the run.
        step: of the weights.
        log: what the run logged; lines after `step` are left out.
        parameters: of the model, learned and frozen.
    """
    lines = [line for line in log if line["step"] <= step]
    loop, size = settings.loop, " x ".join(map(str, settings.model.image_size))
    groups = loop.batch_groups * loop.accumulate
    parts = [
        f"# {settings.run.rstrip('/').split('/')[-1]}",
        "",
        f"A model of OC-DiT, stage {settings.stage}, after {step:,} of {loop.steps:,} steps; averaged weights.",
        "",
        "| | |",
        "|---|---|",
        f"| pictures | {size} pixels |",
        f"| parameters | {parameters / 1e6:.2f} million |",
        f"| data | {_data(settings)} |",
        f"| batch | {groups} groups for each process |",
        f"| learning rate | {loop.learning_rate:g}, {loop.warmup_steps:,} steps of warm-up, then a cosine |",
        f"| weights start from | {_start(settings)} |",
        "",
        "## Validation",
        "",
        *_table(lines, "validation/"),
        "",
        "Masks of the posterior mean, threshold 0.5; the targets are held out from training. AP is COCO's, each target "
        "in each picture counted as an image of its own; false_masks is the share of absent targets that got a mask.",
        "",
        "## Training",
        "",
        *_curve(lines),
        "",
        *_table(lines, "train/", ("loss", "prior", "diffusion", "reconstruction", "kl", "gradient_norm")),
        "",
        "## Settings",
        "",
        "```yaml",
        to_yaml(settings).rstrip(),
        "```",
        "",
    ]
    return "\n".join(parts)


def _data(settings: TrainSettings) -> str:
    data = settings.data
    if isinstance(data, BopDataSettings):
        return ", ".join(f"{d.path} {d.split} (weight {d.weight:g})" for d in data.datasets)
    return f"scenes composed on the fly from the objects of {data.bank}"


def _start(settings: TrainSettings) -> str:
    parts = "" if settings.init_parts == MODEL_PARTS else f" ({', '.join(settings.init_parts)})"
    start = f"{settings.init}{parts}" if settings.init else "random"
    return f"{start}, VAE of {settings.vae}" if settings.vae else start


def _chosen(lines: Log, prefix: str) -> list[dict[str, Any]]:
    """At most so many lines with such figures, evenly over the run, the last among them."""
    those = [line for line in lines if any(name.startswith(prefix) for name in line)]
    count = min(_ROWS, len(those))
    return [those[round((i + 1) * len(those) / count) - 1] for i in range(count)]


def _table(lines: Log, prefix: str, names: Sequence[str] = ()) -> list[str]:
    rows = _chosen(lines, prefix)
    if not rows:
        return ["Nothing was logged."]
    found = dict.fromkeys(name.removeprefix(prefix) for row in rows for name in row if name.startswith(prefix))
    columns = [name for name in found if not names or name in names]
    return [
        "| step | " + " | ".join(columns) + " |",
        "|---|" + "---|" * len(columns),
        *(
            f"| {row['step']:,} | "
            + " | ".join(f"{row[prefix + name]:.4g}" if prefix + name in row else "" for name in columns)
            + " |"
            for row in rows
        ),
    ]


def _curve(lines: Log, width: int = 60) -> list[str]:
    """The loss as a line of bars."""
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    if len(losses) < 2:
        return []
    width = min(width, len(losses))
    cells = [losses[i * len(losses) // width : (i + 1) * len(losses) // width] for i in range(width)]
    means = [sum(cell) / len(cell) for cell in cells]
    low, high = min(means), max(means)
    bars = "".join(_BARS[1 + round((len(_BARS) - 2) * (mean - low) / max(high - low, 1e-12))] for mean in means)
    return ["Loss over the steps:", "", "```", f"{high:9.4f} {bars}", f"{low:9.4f}", "```"]
