#!/usr/bin/env python3
"""Train a stage of OC-DiT: python training/train.py --config config/train/tiny_coarse.yaml loop.steps=1000."""

import sys

from ocdit_core.training.main import main

if __name__ == "__main__":
    sys.exit(main())
