"""Starts Mitsuba 3 by the quickest of its variants that draws on this machine."""

from __future__ import annotations

import logging
import subprocess
import sys
from functools import cache
from typing import Any

from ocdit_core.errors import RenderingError

logger = logging.getLogger(__name__)

_VARIANTS = ("llvm_ad_rgb", "scalar_rgb")  # the first is quicker and needs LLVM's library
_PROBE = """
import sys
import mitsuba

mitsuba.set_variant(sys.argv[1])
scene = mitsuba.cornell_box()
scene["sensor"]["film"]["width"] = scene["sensor"]["film"]["height"] = 8
assert mitsuba.render(mitsuba.load_dict(scene), spp=1).numpy().max() > 0
"""


def load_mitsuba() -> Any:
    """Returns the module mitsuba, its quickest working variant chosen.

    Raises:
        RenderingError: it is missing or does not start.
    """
    try:
        import mitsuba
    except ImportError as error:
        raise RenderingError("this renderer needs the package mitsuba: pip install mitsuba") from error
    reasons: dict[str, str] = {}
    for variant in _VARIANTS:
        reasons[variant] = _failure(variant)
        if not reasons[variant]:
            if variant != _VARIANTS[0]:
                logger.warning("Mitsuba draws by its slower %s (%s: %s)", variant, _VARIANTS[0], reasons[_VARIANTS[0]])
            mitsuba.set_variant(variant)
            return mitsuba
    named = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items())
    raise RenderingError(f"Mitsuba does not start ({named})")


@cache
def _failure(variant: str) -> str:
    """Returns why a variant of Mitsuba does not draw, or "".

    It is tried in a process of its own: an LLVM that is too old for Mitsuba or for the processor ends the process.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE, variant], capture_output=True, text=True, check=False)
    said = done.stderr.split("\n")
    errors = [" ".join(line.split()) for line in said if "error" in line.lower()]
    return (errors or [f"it ended with code {done.returncode}"])[-1] if done.returncode else ""
