#!/usr/bin/env python3
"""Train a stage of a model, as `ocdit train` does: python training/train.py --config config/train/small_coarse.yaml."""

import sys

from ocdit_core.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
