import time

import numpy as np
import pytest
from stand_in import StandInLibrary

from ocdit_core.errors import ConfigError, ImageError, OcditError, UnknownObjectError
from ocdit_ros import heap
from ocdit_ros.frame_queue import MAX_WAITING_REQUESTS
from ocdit_ros.worker_types import Counters


def test_the_newest_frame_is_next_and_the_others_are_counted(make_recorder):
    recorder = make_recorder()
    recorder.worker.set_targets(["mug"])
    recorder.segmenter.go_on.clear()
    recorder.worker.submit(0, waited=100.0)
    assert recorder.segmenter.begun.wait(10)
    for frame in range(1, 10):
        recorder.worker.submit(frame)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [result.frame for result in recorder.results] == [0, 9]
    assert recorder.worker.counters == {"": Counters(received=10, processed=2, dropped=8)}
    assert {"waiting", "reading", "backbone", "sampling", "total"} <= recorder.results[0].timings.keys()
    assert recorder.results[0].timings["waiting"] >= 100.0, "it had waited before it was handed in"


def test_new_targets_return_at_once_and_hold_for_the_next_frame(make_recorder):
    recorder = make_recorder(encode_seconds=0.3)
    recorder.worker.set_targets(["mug"])
    start = time.perf_counter()
    targets = recorder.worker.set_targets(["drill", "can", "drill"])
    assert time.perf_counter() - start < 0.3
    assert targets.object_ids == ("drill", "can") == recorder.worker.targets.object_ids
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.results[0].targets == targets
    assert recorder.results[0].segmentation.target_ids == ("drill", "can")


def test_the_frame_under_way_keeps_its_targets(make_recorder):
    recorder = make_recorder()
    old = recorder.worker.set_targets(["mug"])
    assert recorder.worker.wait_until_encoded(10)
    recorder.segmenter.go_on.clear()
    recorder.worker.submit("before")
    assert recorder.segmenter.begun.wait(10)
    new = recorder.worker.set_targets(["box"])
    recorder.worker.submit("after")
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [(result.frame, result.targets) for result in recorder.results] == [("before", old), ("after", new)]
    assert recorder.results[0].segmentation.target_ids == ("mug",)


def test_many_changes_under_load_never_mix_sets(make_recorder):
    recorder = make_recorder(seconds=0.003, encode_seconds=0.005)
    rng = np.random.default_rng(0)
    accepted = [recorder.worker.set_targets(["mug"])]
    begun_at_least = {}
    for frame in range(300):
        if frame % 7 == 0:
            names = list(rng.permutation(StandInLibrary.object_ids)[: rng.integers(1, 5)])
            accepted.append(recorder.worker.set_targets(names))
        begun_at_least[frame] = len(accepted)
        recorder.worker.submit(frame)
        time.sleep(0.001)
    recorder.wait_for(lambda: recorder.results and recorder.results[-1].frame == 299)
    assert len(recorder.results) > 10
    for result in recorder.results:
        # A frame cannot begin before it was submitted, so its set is one accepted by then or later.
        assert result.targets.version >= begun_at_least[result.frame]
        assert result.targets == accepted[result.targets.version - 1]
        assert result.segmentation.target_ids == result.targets.object_ids
    assert not recorder.errors


def test_unknown_and_empty_targets_change_nothing(make_recorder):
    recorder = make_recorder()
    old = recorder.worker.set_targets(["mug"])
    with pytest.raises(UnknownObjectError) as error:
        recorder.worker.set_targets(["can", "spoon", "fork"])
    assert error.value.unknown == ["spoon", "fork"]
    with pytest.raises(ConfigError, match="the library holds box, can"):
        recorder.worker.set_targets([])
    assert recorder.worker.targets == old
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.results[0].targets == old


def test_targets_that_cannot_be_encoded_are_reported_and_the_old_stay(make_recorder):
    recorder = make_recorder(fails_for="drill")
    old = recorder.worker.set_targets(["mug"])
    assert recorder.worker.wait_until_encoded(10)
    recorder.worker.set_targets(["drill"])
    assert not recorder.worker.wait_until_encoded(10)
    recorder.wait_for(lambda: recorder.errors)
    assert "drill could not be encoded, the old ones stay: RuntimeError: out of memory for drill" in recorder.errors[0]
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results and recorder.stayed)
    stay = recorder.stayed[0]
    assert recorder.results[0].targets == stay == recorder.worker.targets
    assert (stay.object_ids, stay.version) == (old.object_ids, 3)


def test_a_bad_frame_is_reported_and_the_next_one_is_done(make_recorder):
    recorder = make_recorder()
    recorder.worker.set_targets(["mug"])
    recorder.worker.submit("bad")
    recorder.wait_for(lambda: recorder.errors)
    assert recorder.errors == ["a frame could not be segmented: image encoding 'bad' is not supported"]
    recorder.worker.submit("good")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.worker.counters[""].failed == 1


def test_what_a_listener_raises_ends_nothing(make_recorder):
    recorder = make_recorder()
    failing = iter([True])
    note = recorder.worker._on_result

    def on_result(result):
        if next(failing, False):
            raise RuntimeError("publisher is gone")
        note(result)

    recorder.worker._on_result = on_result
    recorder.worker.set_targets(["mug"])
    recorder.worker.submit(1)
    recorder.wait_for(lambda: recorder.errors)
    recorder.worker.submit(2)
    recorder.wait_for(lambda: recorder.results)


def test_requests_come_before_the_stream(make_recorder):
    recorder = make_recorder()
    with pytest.raises(ConfigError, match="no target objects"):
        recorder.worker.request("too early")
    recorder.worker.set_targets(["mug"])
    recorder.segmenter.go_on.clear()
    recorder.worker.submit(0)
    assert recorder.segmenter.begun.wait(10)
    recorder.worker.submit(1)
    replies = [recorder.worker.request(f"asked {number}") for number in range(MAX_WAITING_REQUESTS)]
    with pytest.raises(OcditError, match="wait already"):
        recorder.worker.request("one too many")
    recorder.segmenter.go_on.set()
    assert [reply.result(10).frame for reply in replies] == [f"asked {number}" for number in range(4)]
    bad = recorder.worker.request("bad")
    with pytest.raises(ImageError, match="not supported"):
        bad.result(10)
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [result.frame for result in recorder.results] == [0, 1]


def test_flush_silences_the_frame_under_way(make_recorder):
    recorder = make_recorder()
    recorder.worker.set_targets(["mug"])
    recorder.segmenter.go_on.clear()
    recorder.worker.submit("under way")
    assert recorder.segmenter.begun.wait(10)
    recorder.worker.submit("waiting")
    recorder.worker.flush()
    recorder.segmenter.go_on.set()
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results)
    assert [result.frame for result in recorder.results] == ["after"]


def test_cameras_share_the_network_and_none_starves(make_recorder):
    recorder = make_recorder(batch=3)
    recorder.worker.set_targets(["mug"])
    assert recorder.worker.wait_until_encoded(10)
    recorder.segmenter.go_on.clear()
    recorder.worker.submit("a0", "a")
    assert recorder.segmenter.begun.wait(10)
    for number in (1, 2):
        for source in "abc":
            recorder.worker.submit(f"{source}{number}", source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 4)
    assert recorder.segmenter.batches == [1, 3]
    # The camera that was served last comes last.
    assert [(result.source, result.frame) for result in recorder.results[1:]] == [("b", "b2"), ("c", "c2"), ("a", "a2")]
    assert recorder.worker.counters["a"] == Counters(received=3, processed=2, dropped=1)
    assert recorder.worker.counters["b"] == Counters(received=2, processed=1, dropped=1)


def test_a_bad_frame_of_one_camera_leaves_the_others(make_recorder):
    recorder = make_recorder(batch=3)
    recorder.worker.set_targets(["mug"])
    assert recorder.worker.wait_until_encoded(10)
    recorder.segmenter.go_on.clear()
    recorder.worker.submit("first", "a")
    assert recorder.segmenter.begun.wait(10)
    for source, frame in {"a": "bad", "b": "good", "c": "stale"}.items():
        recorder.worker.submit(frame, source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 2 and recorder.errors)
    assert recorder.results[1].frame == "good"
    counters = recorder.worker.counters
    assert (counters["a"].failed, counters["b"].processed, counters["c"].stale) == (1, 1, 1)


def test_out_of_memory_halves_the_batch_and_loses_no_frame(make_recorder, monkeypatch):
    freed = []
    monkeypatch.setattr(heap, "free", lambda: freed.append(True))
    recorder = make_recorder(batch=4, room=1)
    recorder.worker.set_targets(["mug"])
    assert recorder.worker.wait_until_encoded(10)
    recorder.segmenter.go_on.clear()
    recorder.worker.submit("first", "a")
    assert recorder.segmenter.begun.wait(10)
    for source in "abcd":
        recorder.worker.submit(source, source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 5)
    assert recorder.segmenter.batches == [1, 4, 2, 1, 1, 1, 1]
    assert [result.frame for result in recorder.results[1:]] == list("bcda")
    assert "from now on 2 at a time" in recorder.errors[0]
    assert "from now on 1 at a time" in recorder.errors[1]
    recorder.wait_for(lambda: recorder.worker.batch == 1)
    assert len(freed) == 2


def test_out_of_memory_on_one_frame_frees_and_tries_once_more(make_recorder, monkeypatch):
    freed = []
    monkeypatch.setattr(heap, "free", lambda: freed.append(True))
    recorder = make_recorder(room=0)
    recorder.worker.set_targets(["mug"])
    recorder.worker.submit("only")
    recorder.wait_for(lambda: recorder.results and recorder.errors)
    assert recorder.segmenter.batches == [1, 1]
    assert recorder.errors == ["memory ran out on a frame; it was done again after freeing what was not in use"]
    assert freed == [True]
