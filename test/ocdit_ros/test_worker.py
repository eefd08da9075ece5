import threading
import time

import numpy as np
import pytest
from stand_in import StandInLibrary

from ocdit_core.errors import ImageError, OcditError, UnknownObjectError
from ocdit_ros import worker as worker_module
from ocdit_ros.worker import MAX_WAITING_REQUESTS, Counters, describe


def test_the_newest_frame_is_next_and_the_others_are_counted(make_recorder):
    recorder = make_recorder()
    recorder.segmenter.go_on.clear()
    recorder.segmenter.begun.clear()
    recorder.worker.submit(0)
    assert recorder.segmenter.begun.wait(10)
    for frame in range(1, 10):
        recorder.worker.submit(frame)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [result.frame for result in recorder.results] == [0, 9]
    assert recorder.worker.counters == {"": Counters(received=10, processed=2, dropped=8)}
    assert {"waiting", "reading", "backbone", "sampling", "total"} <= recorder.results[0].timings.keys()


def test_new_targets_are_in_force_once_they_are_encoded(make_recorder):
    recorder = make_recorder()
    old = recorder.worker.targets
    recorder.hold()
    reply = recorder.worker.set_targets(["drill", "can", "drill"])
    assert not reply.done()
    assert recorder.worker.targets == old
    recorder.worker.submit("after", "a")
    recorder.segmenter.go_on.set()
    targets = reply.result(10)
    assert (targets.object_ids, targets.version) == (("drill", "can"), old.version + 1)
    assert recorder.worker.targets == targets
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [(result.frame, result.targets) for result in recorder.results] == [("first", old), ("after", targets)]
    assert recorder.results[1].segmentation.target_ids == ("drill", "can")


def test_many_changes_under_load_never_mix_sets(make_recorder):
    recorder = make_recorder(seconds=0.003, encode_seconds=0.005)
    rng = np.random.default_rng(0)
    replies, in_force_at_least = [], {}
    for frame in range(200):
        if frame % 7 == 0:
            names = list(rng.permutation(StandInLibrary.object_ids)[: rng.integers(1, 5)])
            replies.append(recorder.worker.set_targets(names))
        in_force_at_least[frame] = recorder.worker.targets.version
        recorder.worker.submit(frame)
        time.sleep(0.001)
    recorder.wait_for(lambda: recorder.results and recorder.results[-1].frame == 199)
    assert len(recorder.results) > 10
    for result in recorder.results:
        assert result.targets.version >= in_force_at_least[result.frame]
        assert result.segmentation.target_ids == result.targets.object_ids
    assert replies[-1].result(10) == recorder.worker.targets
    assert not recorder.errors


def test_no_names_mean_all_objects_and_unknown_ones_change_nothing(make_recorder):
    recorder = make_recorder()
    old = recorder.worker.targets
    with pytest.raises(UnknownObjectError) as error:
        recorder.worker.set_targets(["can", "spoon", "fork"])
    assert error.value.unknown == ["spoon", "fork"]
    assert recorder.worker.targets == old
    assert recorder.worker.set_targets([]).result(10).object_ids == StandInLibrary.object_ids


def test_targets_that_cannot_be_encoded_fail_with_the_reason_and_the_old_stay(make_recorder):
    recorder = make_recorder(fails_for="drill")
    old = recorder.worker.targets
    with pytest.raises(OcditError) as error:
        recorder.worker.set_targets(["drill"]).result(10)
    assert str(error.value) == (
        "drill could not be encoded: RuntimeError: out of memory for drill; still looking for mug"
    )
    recorder.worker.submit("after")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.results[0].targets == old == recorder.worker.targets


def test_the_latest_of_several_requests_counts_and_the_others_are_answered(make_recorder):
    recorder = make_recorder()
    recorder.hold()
    replies = [recorder.worker.set_targets(names) for names in (["can"], ["box"], ["box"], ["drill"])]
    recorder.segmenter.go_on.set()
    assert replies[-1].result(10).object_ids == ("drill",)
    for reply in replies[:-1]:
        with pytest.raises(OcditError, match="superseded by a later request for"):
            reply.result(10)
    # The set in force again is no change.
    version = recorder.worker.targets.version
    assert recorder.worker.set_targets(["drill"]).result(10).version == version


def test_a_bad_frame_is_reported_and_the_next_one_is_done(make_recorder):
    recorder = make_recorder()
    recorder.worker.submit("bad")
    recorder.wait_for(lambda: recorder.errors)
    assert recorder.errors == ["a frame could not be segmented: image encoding 'bad' is not supported"]
    recorder.worker.submit("good")
    recorder.wait_for(lambda: recorder.results)
    assert recorder.worker.counters[""].failed == 1


def test_what_a_listener_raises_is_reported_and_ends_nothing(make_recorder):
    recorder = make_recorder()
    failing = iter([True])
    note = recorder.worker._on_result

    def on_result(result):
        if next(failing, False):
            raise RuntimeError("publisher is gone")
        note(result)

    recorder.worker._on_result = on_result
    recorder.worker.submit(1)
    recorder.wait_for(lambda: recorder.errors)
    recorder.worker.submit(2)
    recorder.wait_for(lambda: recorder.results)


def test_requests_come_before_the_stream(make_recorder):
    recorder = make_recorder()
    recorder.hold()
    recorder.worker.submit("second", "a")
    replies = [recorder.worker.request(f"asked {number}") for number in range(MAX_WAITING_REQUESTS)]
    with pytest.raises(OcditError, match="wait already"):
        recorder.worker.request("one too many")
    recorder.segmenter.go_on.set()
    assert [reply.result(10).frame for reply in replies] == [f"asked {number}" for number in range(4)]
    bad = recorder.worker.request("bad")
    with pytest.raises(ImageError, match="not supported"):
        bad.result(10)
    recorder.wait_for(lambda: len(recorder.results) == 2)
    assert [result.frame for result in recorder.results] == ["first", "second"]


def test_cameras_take_turns_where_not_all_are_taken_at_once(make_recorder):
    recorder = make_recorder(batch=1)
    recorder.hold()
    for turn in range(4):
        # The first always comes a little earlier: by age alone the others would never be taken.
        for source in "bcd":
            recorder.worker.submit(f"{source}{turn}", source)
        recorder.segmenter.go_on.set()
        recorder.wait_for(lambda turn=turn: len(recorder.results) >= 2 + turn)
        recorder.segmenter.go_on.clear()
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) >= 7)
    assert [result.source for result in recorder.results[1:]][:6] == list("bcdbcd")


def test_cameras_share_the_network_and_none_starves(make_recorder):
    recorder = make_recorder(batch=3)
    recorder.hold()
    for number in (1, 2):
        for source in "abc":
            recorder.worker.submit(f"{source}{number}", source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 4)
    assert recorder.segmenter.batches[1:] == [1, 3]
    # The camera that was served last comes last.
    assert [(result.source, result.frame) for result in recorder.results[1:]] == [("b", "b2"), ("c", "c2"), ("a", "a2")]
    assert recorder.worker.counters["a"] == Counters(received=3, processed=2, dropped=1)
    assert recorder.worker.counters["b"] == Counters(received=2, processed=1, dropped=1)


def test_a_bad_frame_of_one_camera_leaves_the_others(make_recorder):
    recorder = make_recorder(batch=3)
    recorder.hold()
    for source, frame in {"a": "bad", "b": "good", "c": "stale"}.items():
        recorder.worker.submit(frame, source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 2 and recorder.errors)
    assert recorder.results[1].frame == "good"
    counters = recorder.worker.counters
    assert (counters["a"].failed, counters["b"].processed, counters["c"].stale) == (1, 1, 1)


def test_the_uncertainty_is_computed_where_a_frame_asks_for_it(make_recorder):
    recorder = make_recorder()
    for number, wanted in enumerate((False, True, False)):
        recorder.worker.submit(number, uncertainty=wanted)
        recorder.wait_for(lambda number=number: len(recorder.results) == number + 1)
    assert [result.segmentation.uncertainty is not None for result in recorder.results] == [False, True, False]


def test_out_of_memory_halves_the_batch_and_loses_no_frame(make_recorder, monkeypatch):
    freed = []
    monkeypatch.setattr(worker_module, "free_memory", lambda: freed.append(True))
    recorder = make_recorder(batch=4, room=1)
    recorder.hold()
    for source in "abcd":
        recorder.worker.submit(source, source)
    recorder.segmenter.go_on.set()
    recorder.wait_for(lambda: len(recorder.results) == 5)
    assert recorder.segmenter.batches[1:] == [1, 4, 2, 1, 1, 1, 1]
    assert [result.frame for result in recorder.results[1:]] == list("bcda")
    assert "from now on 2 at a time" in recorder.errors[0]
    assert "from now on 1 at a time" in recorder.errors[1]
    assert recorder.worker.batch == 1
    assert len(freed) == 2


def test_out_of_memory_on_one_frame_frees_and_tries_once_more(make_recorder, monkeypatch):
    freed = []
    monkeypatch.setattr(worker_module, "free_memory", lambda: freed.append(True))
    recorder = make_recorder()
    recorder.segmenter.room = 0
    recorder.worker.submit("only")
    recorder.wait_for(lambda: recorder.results and recorder.errors)
    assert recorder.segmenter.batches[1:] == [1, 1]
    assert recorder.errors == ["out of memory on a frame; it was repeated after freeing unused memory"]
    assert freed == [True]


def test_errors_are_one_line_without_addresses():
    assert describe(ImageError("two\nlines")) == "two lines"
    assert describe(ValueError("cannot identify <_io.BytesIO object at 0x7f3a1c> here")) == (
        "ValueError: cannot identify _io.BytesIO here"
    )


def test_a_request_has_targets_of_its_own_and_can_be_given_up(make_recorder):
    recorder = make_recorder()
    result = recorder.worker.request("asked", ["can", "box"]).result(10)
    assert result.targets.object_ids == result.segmentation.target_ids == ("can", "box")
    assert recorder.worker.targets.object_ids == ("mug",)
    with pytest.raises(UnknownObjectError, match="'spoon'"):
        recorder.worker.request("asked", ["spoon"])
    recorder.hold()
    given_up = [recorder.worker.request(f"given up {number}") for number in range(MAX_WAITING_REQUESTS)]
    assert all(reply.cancel() for reply in given_up)
    last = recorder.worker.request("asked")
    recorder.segmenter.go_on.set()
    assert last.result(10).frame == "asked"
    assert len(recorder.segmenter.batches) == 4  # the warm-up, two requests, the frame: none that was given up


def test_calls_run_in_the_network_s_thread_between_frames(make_recorder):
    recorder = make_recorder()
    recorder.hold()
    reply = recorder.worker.call(lambda network: (threading.current_thread().name, network))
    assert not reply.done()
    recorder.segmenter.go_on.set()
    assert reply.result(10) == ("ocdit-network", recorder.segmenter)
    with pytest.raises(OcditError, match="ZeroDivisionError"):
        recorder.worker.call(lambda network: 1 / 0).result(10)
    assert recorder.worker.stop(10)
    with pytest.raises(OcditError, match="the network is not loaded"):
        recorder.worker.call(lambda network: None)
