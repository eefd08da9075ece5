"""Ray as an engine: a real cluster on this machine, whose workers are killed."""

import os
import signal
import sys
from contextlib import contextmanager
from functools import partial

import pytest

from ocdit_core.errors import ConfigError, MeshError
from ocdit_core.files import OWN_FILES
from ocdit_core.synthesis.generation import synthesize
from ocdit_core.synthesis.plan import SynthesisSettings
from ocdit_core.synthesis.ray_engine import RayEngine
from ocdit_core.workers import Died, run_all

ray = pytest.importorskip("ray", reason="needs ray")

SETTINGS = SynthesisSettings(
    images=9,
    objects=6,
    size=(96, 128),
    targets=(2, 4),
    distractors=(0, 1),
    views=(2, 3),
    scenes_a_shard=1,
    format="shards",
)


def test_an_address_without_a_cluster_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"ray: no cluster at 127\.0\.0\.1:1 "):
        RayEngine("127.0.0.1:1")


@pytest.fixture(scope="module")
def ray_engine():
    with RayEngine("local", 2) as engine:
        # Its processes cannot import this file.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield engine


@contextmanager
def opener(mark):
    """Work that returns its process and its task; "kill" kills its process while there is no mark."""

    def work(task):
        if task == "kill" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "always":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "raise":
            raise MeshError("bad.glb: empty")
        return os.getpid(), task

    yield work


def test_tasks_are_done_by_other_processes_and_again_when_these_die(ray_engine, tmp_path, caplog):
    tasks = [0, 1, "kill", 3, 4]
    results = dict(run_all(ray_engine, partial(opener, tmp_path / "mark"), tasks, "task {}".format))
    assert {task: value for task, (_, value) in results.items()} == {task: task for task in tasks}
    assert os.getpid() not in {pid for pid, _ in results.values()}
    assert "task kill: its actor died" in caplog.text
    assert "is done again" in caplog.text


def test_what_kills_every_process_is_given_up(ray_engine, tmp_path):
    results = dict(run_all(ray_engine, partial(opener, tmp_path / "mark"), ["always", 1], "task {}".format))
    assert isinstance(results["always"], Died)
    assert results[1][1] == 1


def test_actors_that_cannot_start_end_the_run(ray_engine, monkeypatch):
    class Missing:
        def __init__(self, packed):
            raise ModuleNotFoundError("no ocdit_core here")

        def work(self, task):
            return task

    monkeypatch.setattr("ocdit_core.synthesis.ray_engine._Actor", Missing)
    with pytest.raises(ConfigError, match="installed on all machines"):
        list(ray_engine(partial(opener, None), [1]))


def test_errors_of_ours_come_through_as_they_are(ray_engine, tmp_path):
    with pytest.raises(MeshError, match=r"^bad\.glb: empty$"):
        list(ray_engine(partial(opener, tmp_path / "mark"), ["raise"]))


@contextmanager
def killed_in_the_middle(inner, mark):
    """Work whose process ends in the middle of shard 1, the first time."""
    with inner() as work:

        def do(task):
            if getattr(task, "number", None) == 1 and not mark.exists():
                maker = work.args[0]
                frames = maker.frames

                def some(*args):
                    yield next(frames(*args))
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

                maker.frames = some
            return work(task)

        yield do


def test_a_lost_worker_loses_no_finished_shard_and_the_files_are_the_same(ray_engine, tmp_path, caplog):
    synthesize(tmp_path / "alone", SETTINGS, jobs=1)

    def engine(inner, tasks):
        yield from ray_engine(partial(killed_in_the_middle, inner, tmp_path / "mark"), tasks)

    done = synthesize(tmp_path / "ray", SETTINGS, jobs=1, engine=engine)
    assert (tmp_path / "mark").exists()
    assert "shard 1: its actor died" in caplog.text
    assert (done.images, done.missing) == (9, 0)
    ours, theirs = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file() and "lock" not in path.name and path.name != OWN_FILES
        }
        for name in ("alone", "ray")
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
