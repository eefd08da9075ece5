"""What the web page of a library (templates/gallery.html) says of each object."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ocdit_core.objects.archive import ObjectTemplates
from ocdit_core.objects.library import ObjectEntry


@dataclass(frozen=True, kw_only=True)
class Card:
    """One object of the page; without templates if its archive is damaged; with what is wrong with it, in lines."""

    name: str
    templates: ObjectTemplates | None = None
    entry: ObjectEntry | None = None
    problems: Sequence[str] = ()

    def facts(self) -> list[str]:
        """Return what is known of the object in a few words each: size, views, unit, source, symmetries."""
        templates = self.templates
        if templates is None:
            return []
        facts = [length(templates.diameter), f"{len(templates)} views"]
        if templates.origin == "photos":
            facts.append("from photographs")
        if templates.unit:
            facts.append(f"unit {templates.unit}")
        if templates.sources:
            more = f" and {len(templates.sources) - 1} more" if len(templates.sources) > 1 else ""
            facts.append(f"source {templates.sources[0]}{more}")
        symmetries = symmetry_text(templates)
        return [*facts, f"symmetric: {symmetries}"] if symmetries else facts

    def searched(self) -> str:
        """Return the text that the page's filter looks at."""
        sources = self.templates.sources if self.templates is not None else ()
        return " ".join([self.name, *sources, *self.problems]).lower()


def symmetry_text(templates: ObjectTemplates) -> str:
    """Return how an object is symmetric, in a few words; empty if it is not known to be."""
    axes, discrete = len(templates.symmetries_continuous), len(templates.symmetries_discrete)
    parts = [f"{axes} {'axis' if axes == 1 else 'axes'}"] if axes else []
    return ", ".join([*parts, f"{discrete} discrete"] if discrete else parts)


def length(metres: float) -> str:
    """Return a length as a person says it: "8.5 cm", "1.20 m", or "size unknown"."""
    if not math.isfinite(metres):
        return "size unknown"
    return f"{metres * 100:.1f} cm" if metres < 1 else f"{metres:.2f} m"
