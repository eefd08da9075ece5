"""What the allocator does, in processes of their own: its settings cannot be taken back."""

import os
import platform
import subprocess
import sys

import pytest

from ocdit_ros import heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")

PROGRAM = """
import ctypes, os, resource, sys
from ocdit_ros import heap

SIZE = 6 * 2**20  # 1080p
COPIES = 4  # of an image on its way through the middleware: serialised, as C's message, as Python's, as pixels
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def image():
    blocks = [c.malloc(SIZE) for _ in range(COPIES)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in blocks:
        c.free(block)


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if sys.argv[1] == "tuned":
    heap.tune()
image(), image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    image()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
heap.free()
print(faults * os.sysconf("SC_PAGE_SIZE") / (10 * COPIES * SIZE), (kept - resident()) / (COPIES * SIZE))
"""


def measure(how, **environment):
    """Return the share of ten images' memory that came from the kernel anew, and what `free` gives back, in images."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(value) for value in run.stdout.split()]


def test_an_image_takes_the_memory_of_the_one_before_until_it_is_given_back():
    anew, given_back = measure("tuned")
    assert anew < 0.05
    assert given_back > 0.9
    assert measure("as it is")[0] > 0.9, "the allocator does so by itself: tune() is no longer needed"


def test_what_the_environment_sets_stays():
    assert measure("tuned", MALLOC_TRIM_THRESHOLD_="131072")[0] > 0.9


def test_freeing_without_torch_or_a_gpu_is_harmless():
    heap.free()
