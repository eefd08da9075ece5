"""The real node around a stand-in segmenter: run as a program by the tests of topics, services and threads."""

import sys

from stand_in import StandInLibrary, StandInSegmenter

from ocdit_ros.segmentation_node import SegmentationNode, load_library
from ocdit_ros.spinning import run


def open_library(settings):
    """Return the stand-in's library, or the real one of a folder, whose objects the stand-in finds as well."""
    return StandInLibrary() if settings.library == "stand-in" else load_library(settings)


def make_node():
    return SegmentationNode(library_loader=open_library, segmenter_loader=StandInSegmenter.from_environment)


if __name__ == "__main__":
    sys.exit(run(make_node, close=SegmentationNode.close))
