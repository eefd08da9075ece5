"""The process's memory: kept for the next image while the node works, given back now and then and when it stops."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys

# Parameters of glibc's mallopt(3), with the variable by which a user sets the same.
MALLOPT = {
    # A heap for every thread is the default. Images of megabytes that pass through a dozen of them leave holes in each:
    # the node would grow by a twentieth in its first minutes.
    "MALLOC_ARENA_MAX": (-8, 2),
    # Large blocks go back to the kernel as soon as they are free, and come from it page by page for the next image:
    # three quarters of the time that an image of 1080p took from process to process.
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 128 * 2**20),
}


def tune() -> None:
    """Set up glibc's allocator for images, but for what the environment sets; elsewhere do nothing."""
    if not _is_glibc():
        return
    for variable, (parameter, value) in MALLOPT.items():
        if variable not in os.environ:
            ctypes.CDLL(None).mallopt(parameter, value)


def free() -> None:
    """Give back what is not in use any more, on the GPU too."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    trim()


def trim() -> None:
    """Give back the holes in the heap, of which images and the network's work leave more and more in the first minutes.

    It takes some 6 ms, and the next frame 15 ms more. Elsewhere than with glibc it does nothing.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
