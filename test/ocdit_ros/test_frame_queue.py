from concurrent.futures import Future

import pytest

from ocdit_core.errors import OcditError
from ocdit_ros.frame_queue import MAX_WAITING_REQUESTS, Counters, FrameQueue, Job


def stream(queue, times, source=""):
    for time in times:
        queue.put(Job(frame=f"{source}{time}", source=source, submitted=time))


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
            queue.put(Job(frame=source, source=source, submitted=turn + 0.1 * delay))
        taken += [job.frame for job in queue.take(limit=1)]
    assert taken == list("abcabc")
    stream(queue, [10.0, 10.1], "b")
    assert [job.source for job in queue.take(limit=2)] == ["a", "b"]


def test_requests_come_first_and_alone_and_only_some_wait():
    queue = FrameQueue()
    queue.put(Job(frame="streamed", submitted=0.0))
    requests = [Job(frame=number, submitted=0.0, reply=Future()) for number in range(MAX_WAITING_REQUESTS)]
    for request in requests:
        queue.put_request(request)
    with pytest.raises(OcditError, match="ask again"):
        queue.put_request(Job(frame="one too many", submitted=0.0, reply=Future()))
    assert queue.take(limit=5) == requests[:1]
    assert queue.take_requests() == requests[1:]
    assert [job.frame for job in queue.take(limit=5)] == ["streamed"]
