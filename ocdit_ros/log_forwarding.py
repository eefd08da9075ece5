"""Warnings of `ocdit_core`, which knows no ROS, brought to the node that shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable


class LogForwarding(logging.Handler):
    """Passes on what `ocdit_core` logs as a warning or worse, until it is closed.

    Args:
        forward: called with each message as one line, from whichever thread logs.
    """

    def __init__(self, forward: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._forward = forward
        logging.getLogger("ocdit_core").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        self._forward(" ".join(record.getMessage().split()))

    def close(self) -> None:
        """Pass nothing on any more."""
        logging.getLogger("ocdit_core").removeHandler(self)
        super().close()
