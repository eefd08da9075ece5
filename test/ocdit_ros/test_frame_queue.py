import pytest

from ocdit_core.errors import OcditError
from ocdit_ros.frame_queue import MAX_WAITING_REQUESTS, FrameQueue
from ocdit_ros.worker_types import Counters


def stream(queue, times, source=""):
    for time in times:
        queue.put(f"{source}{time}", source, time)


def test_the_newest_frame_of_each_camera_waits():
    queue = FrameQueue()
    assert not queue
    stream(queue, [0.0, 1.0, 2.0], "left")
    stream(queue, [1.5], "right")
    assert queue
    assert [job.frame for job in queue.take(limit=2)] == ["right1.5", "left2.0"]
    assert not queue
    assert queue.counters() == {"left": Counters(received=3, dropped=2), "right": Counters(received=1)}


def test_cameras_take_turns_where_not_all_are_taken():
    queue = FrameQueue()
    taken = []
    for turn in range(6):
        # The first always comes a little earlier: by age alone the others would never be taken.
        for delay, source in enumerate("abc"):
            queue.put(source, source, turn + 0.1 * delay)
        taken += [job.frame for job in queue.take(limit=1)]
    assert taken == list("abcabc")
    stream(queue, [10.0, 10.1], "b")
    assert [job.source for job in queue.take(limit=2)] == ["a", "b"]


def test_requests_come_first_and_alone_and_only_some_wait():
    queue = FrameQueue()
    queue.put("streamed", "", 0.0)
    replies = [queue.put_request(number, 0.0) for number in range(MAX_WAITING_REQUESTS)]
    with pytest.raises(OcditError, match="ask again"):
        queue.put_request("one too many", 0.0)
    (job,) = queue.take(limit=5)
    assert job.reply is replies[0]
    assert [job.reply for job in queue.take_requests()] == replies[1:]
    assert [job.frame for job in queue.take(limit=5)] == ["streamed"]


def test_a_frame_that_has_waited_gives_way_when_the_next_is_due_soon():
    queue = FrameQueue()
    stream(queue, [0.0, 0.1, 0.2])
    assert queue.delay(0.21, work=0.5) == 0.0, "0: never"
    queue.fresh_within = 0.02
    assert queue.delay(0.21, work=0.5) == 0.0, "it is fresh"
    assert queue.delay(0.25, work=0.5) == pytest.approx(0.075), "the next is due at 0.3, a little late at most"
    assert queue.delay(0.25, work=0.1) == 0.0, "a short work is not worth the wait"
    assert queue.delay(0.33, work=0.5) == pytest.approx(0.095), "the next was lost, so the one after it"
    assert queue.delay(0.53, work=0.5) == 0.0, "three did not come: the camera has stopped"
    queue.put_request("asked", 0.25)
    assert queue.delay(0.25, work=0.5) == 0.0, "a request waits for nothing"


def test_a_camera_that_died_or_paused_is_not_waited_for():
    queue = FrameQueue()
    queue.fresh_within = 0.02
    stream(queue, [0.0, 0.1, 0.2], "dead")
    stream(queue, [10.0, 10.1, 10.2], "alive")
    assert queue.delay(10.25, work=0.5) == pytest.approx(0.075)
    # After a pause the period is that of before.
    stream(queue, [20.0], "alive")
    assert queue.delay(20.05, work=0.5) == pytest.approx(0.075)


def test_a_first_frame_is_not_held_back():
    queue = FrameQueue()
    queue.fresh_within = 0.02
    stream(queue, [0.0])
    assert queue.delay(0.5, work=1.0) == 0.0
