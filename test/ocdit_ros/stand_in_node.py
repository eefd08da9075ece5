"""The real node around a stand-in segmenter: run as a program by the tests of topics, services and threads."""

import sys

from stand_in import StandInLibrary, StandInSegmenter

from ocdit_core.errors import LibraryError
from ocdit_ros.segmentation_node import SegmentationNode
from ocdit_ros.spinning import run


def open_library(settings):
    if settings.library != "stand-in":
        raise LibraryError(f"{settings.library}: no such library")
    return StandInLibrary()


def make_node():
    return SegmentationNode(library_loader=open_library, segmenter_loader=StandInSegmenter.from_environment)


if __name__ == "__main__":
    sys.exit(run(make_node, close=SegmentationNode.close))
