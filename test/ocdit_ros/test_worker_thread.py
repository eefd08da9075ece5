"""The worker's thread: begin, end, and what it alone does."""

import gc
import threading
import weakref

import pytest
from recorder import Recorder
from stand_in import StandInSegmenter

from ocdit_core.errors import OcditError, WeightsError
from ocdit_ros import worker as worker_module
from ocdit_ros.worker import Counters


def test_all_that_the_network_does_is_in_one_thread():
    threads = set()

    class Noting(StandInSegmenter):
        def encode_objects(self, *arguments):
            threads.add(threading.get_ident())
            return super().encode_objects(*arguments)

        def segment_batch(self, *arguments, **options):
            threads.add(threading.get_ident())
            return super().segment_batch(*arguments, **options)

    recorder = Recorder()
    recorder.worker.start(lambda: threads.add(threading.get_ident()) or Noting())
    for frame in range(3):
        recorder.worker.submit(frame)
        recorder.wait_for(lambda frame=frame: len(recorder.results) == frame + 1)
        recorder.worker.set_targets(["can"])
    assert recorder.worker.stop(10)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_loading_raises_start_raises_and_can_be_tried_again():
    halves = []

    def load():
        half = StandInSegmenter()
        halves.append(weakref.ref(half))
        raise WeightsError("no weights")

    recorder = Recorder()
    gc.disable()
    try:
        with pytest.raises(WeightsError, match="no weights") as error:
            recorder.worker.start(load)
        assert recorder.worker.stop(10)
        del error
        assert halves[0]() is None, "what had been loaded is free as soon as the error is forgotten"
    finally:
        gc.enable()
    recorder.worker.start(StandInSegmenter)
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.worker.stop(10)


def test_stop_ends_the_thread_and_fails_what_waits():
    recorder = Recorder()
    recorder.worker.start(lambda: recorder.segmenter)
    recorder.segmenter.go_on.clear()
    recorder.segmenter.begun.clear()
    recorder.worker.submit("under way")
    assert recorder.segmenter.begun.wait(10)
    recorder.worker.submit("waiting", "a")
    reply = recorder.worker.request("asked")
    threading.Timer(0.1, recorder.segmenter.go_on.set).start()
    assert recorder.worker.stop(10)
    with pytest.raises(OcditError, match="stopping"):
        reply.result(0)
    with pytest.raises(OcditError, match="stopping"):
        recorder.worker.request("too late")
    assert not recorder.results
    assert recorder.worker.counters == {"": Counters(received=1, processed=1), "a": Counters(received=1, dropped=1)}


def test_after_a_stop_nothing_of_the_network_is_held_and_a_start_goes_on():
    recorder = Recorder()
    with pytest.raises(OcditError, match="stopping"):
        recorder.worker.request("not started")
    segmenter = weakref.ref(recorder.segmenter)
    recorder.worker.start(lambda: recorder.segmenter)
    recorder.worker.submit("before")
    recorder.wait_for(lambda: recorder.results)
    del recorder.segmenter
    assert recorder.worker.stop(10)
    gc.collect()
    assert segmenter() is None
    recorder.worker.submit("between")
    assert recorder.worker.set_targets(["can"]).result(0).version == 2
    recorder.worker.start(StandInSegmenter)
    recorder.worker.submit("after")
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert recorder.results[1].segmentation.target_ids == ("can",)
    assert recorder.worker.counters == {"": Counters(received=3, processed=2, dropped=1)}
    assert recorder.worker.stop(10)


def test_a_frame_that_does_not_end_keeps_a_second_start_away():
    recorder = Recorder()
    recorder.worker.start(lambda: recorder.segmenter)
    recorder.segmenter.go_on.clear()
    recorder.segmenter.begun.clear()
    recorder.worker.submit("long")
    assert recorder.segmenter.begun.wait(10)
    assert not recorder.worker.stop(0.05)
    with pytest.raises(OcditError, match="not finished yet"):
        recorder.worker.start(lambda: recorder.segmenter)
    recorder.segmenter.go_on.set()
    assert recorder.worker.stop(10)
    recorder.worker.start(lambda: recorder.segmenter)
    recorder.worker.submit("again")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.worker.stop(10)
    assert [result.frame for result in recorder.results] == ["again"]


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (1000.0, 0)])
def test_memory_is_trimmed_after_frames_when_it_is_time(make_recorder, monkeypatch, seconds, times):
    trimmed = []
    monkeypatch.setattr(worker_module, "trim_heap", lambda: trimmed.append(len(recorder.results)))
    monkeypatch.setattr(worker_module, "TRIM_EVERY", seconds)
    recorder = make_recorder()
    for frame in range(3):
        recorder.worker.submit(frame)
        recorder.wait_for(lambda frame=frame: len(recorder.results) == frame + 1)
    recorder.worker.request("later").result(10)
    assert trimmed[:3] == [1, 2, 3][:times], "after the result, not before it"
