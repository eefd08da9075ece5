"""The environment of processes that tests start."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def python_path():
    return f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
