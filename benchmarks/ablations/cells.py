"""The grid of the training ablations: overrides of base.yaml by cell, and the rows of the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it brings torch, which the tables do not need
    from ocdit_core.models.embeddings import MorePositions

TRAINED, WANTED = 4, 8
"""Targets per image in training, N, and at most in the test, M."""


class Task(NamedTuple):
    """A test of a trained model.

    Attributes:
        targets: targets per image, of the eight in a group.
        more: strategy if the model has fewer object positions.
    """

    targets: int
    more: MorePositions = "interpolate"

    def __str__(self) -> str:
        return f"{self.targets} targets, {self.more}"


FEW, MANY, IN_TURNS = Task(TRAINED), Task(WANTED), Task(WANTED, "sequential")

_REPRESENTATION = "model.denoiser.representation={{projection: {}, presence_token: {}}}"

CELLS: dict[str, tuple[str, ...]] = {
    "base": (),
    "projection": (_REPRESENTATION.format("true", "false"),),
    "presence_token": (_REPRESENTATION.format("false", "true"),),
    "projection_and_token": (_REPRESENTATION.format("true", "true"),),
    "no_uncertainty": ("diffusion_loss.uncertainty=false",),
    "constant_rate": ("loop.final_learning_rate=1",),
    "log_uniform": ("diffusion_loss.noise={distribution: log_uniform}",),
    "log_normal": ("diffusion_loss.noise={distribution: log_normal}",),
    "log_normal_truncated": ("diffusion_loss.noise={distribution: log_normal_truncated}",),
    "four_positions": (f"model.denoiser.max_objects={TRAINED}", "diffusion_loss.positions=first"),
    "direct": (
        f"diffusion_loss.min_targets={WANTED}",
        f"diffusion_loss.max_targets={WANTED}",
        "diffusion_loss.positions=first",
    ),
    "random_interpolation": ("diffusion_loss.positions=random_interpolation",),
    "random_permutation": ("diffusion_loss.positions=random_permutation",),
}
"""Overrides of base.yaml; each cell is trained once per seed."""

TASKS: dict[str, tuple[Task, ...]] = {
    "base": (FEW, MANY),
    "four_positions": (FEW, MANY, IN_TURNS),
    "direct": (FEW, MANY),
    "random_interpolation": (FEW, MANY),
    "random_permutation": (FEW, MANY),
}
"""Tests of each cell; of the others: FEW."""

RAW = ("base", "constant_rate")
"""Cells whose newest weights are measured as well as the averaged ones, on FEW."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        title: printed title.
        cell: cell whose results it shows.
        weights: averaged or raw.
    """

    title: str
    cell: str
    weights: str = "averaged"


LOSS_ROWS = (
    Row("base", "base"),
    Row("+ projection", "projection"),
    Row("+ presence token", "presence_token"),
    Row("+ projection and presence token", "projection_and_token"),
    Row("no uncertainty weighting (u = 0)", "no_uncertainty"),
    Row("log-uniform noise, no high-noise share", "log_uniform"),
    Row("log-normal noise", "log_normal"),
    Row("truncated log-normal noise", "log_normal_truncated"),
    Row("newest weights instead of averaged", "base", "raw"),
    Row("constant learning rate, averaged weights", "constant_rate"),
    Row("constant learning rate, newest weights", "constant_rate", "raw"),
)

POSITION_ROWS = (
    (Row("(iv) random interval", "base"), MANY),
    (Row("(i) sequential", "four_positions"), IN_TURNS),
    (Row("(ii) direct: trained on 8", "direct"), MANY),
    (Row("(iii) interpolate", "four_positions"), MANY),
    (Row("(v) random interpolate", "random_interpolation"), MANY),
    (Row("(vi) random permutation", "random_permutation"), MANY),
)

LEVEL_ROWS = tuple(row for row in LOSS_ROWS if row.cell.startswith("log_") or row.cell == "no_uncertainty")
"""Rows below the base."""
