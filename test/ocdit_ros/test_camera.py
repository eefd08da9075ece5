"""Calibrations: each frame keeps its own."""

from types import SimpleNamespace

import pytest

from ocdit_ros import camera


def message_at(nanoseconds):
    return SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9))
    )


@pytest.fixture
def calibrations(monkeypatch):
    """Calibrations with the list of the published ones, and a clock to be set."""
    published, clock = [], [0.0]
    monkeypatch.setattr(camera.time, "monotonic", lambda: clock[0])
    return camera.Calibrations(published.append), published, clock


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_calibration_stays_with_its_frame_however_long_inference_takes(calibrations, order):
    calibrations, published, clock = calibrations
    info = message_at(0)
    if order == "before":
        calibrations.add_info(info)
    frame = calibrations.of(message_at(0))
    if order == "after":
        calibrations.add_info(info)
    for number in range(1, 3601):  # a minute at 60 Hz
        clock[0] = number / 60
        calibrations.add_info(message_at(number * 10**9 // 60))
    assert len(calibrations._found) <= 60 * camera.KEEP_SECONDS + 1
    calibrations.publish(frame)
    assert published == [info]


def test_a_calibration_that_comes_after_the_result_is_published_then(calibrations):
    calibrations, published, clock = calibrations
    late = message_at(5)
    calibrations.publish(calibrations.of(message_at(5)))
    clock[0] = camera.KEEP_SECONDS - 1
    calibrations.add_info(late)
    calibrations.add_info(message_at(5))
    assert published == [late]
