"""Asked to stop: by the user, by the system, or by SLURM shortly before a job's time is up."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignals:
    """Set by SIGTERM, SIGINT and SIGUSR1: the step under way ends and is saved.

    A second signal of the same kind ends the program at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.requeue = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # `#SBATCH --signal=USR1@120` announces the end of a job's time.
        self.requeue |= number == signal.SIGUSR1
        signal.signal(number, signal.SIG_DFL)


def leave_signals_to_the_loop(worker: int) -> None:
    """Let a loader worker ignore them: a signal to the whole group must not take the data away before it is saved."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def requeue_job() -> None:
    """Put this SLURM job back into the queue; outside of SLURM nothing happens. A failure is logged, not raised."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.error("scontrol requeue %s failed: %s; start the job again by hand", job, str(detail).strip())
    else:
        logger.info("SLURM job %s is back in the queue", job)
