"""Counting what has to be skipped, and stopping where it is too much."""

import pytest

from ocdit_core.data.streaming import SkipCounter
from ocdit_core.errors import ConfigError, DataError


def test_a_few_skips_are_counted_and_many_stop(caplog):
    counter = SkipCounter(max_skip_share=0.05, minimum=100)
    counter.use(97)
    for number in range(4):
        counter.skip(DataError(f"file {number}", kind="missing mask"))
    assert counter.skipped == {"missing mask": 4}
    assert caplog.text.count("skipped") == 1
    assert "file 0" in caplog.text
    counter.skip(DataError("other", kind="depth scale"))
    assert "other" in caplog.text
    with pytest.raises(DataError, match=r"6 of 103 .*missing mask 4, depth scale 2\), more than the 5%.*: last"):
        counter.skip(DataError("last", kind="depth scale"))


def test_few_samples_are_not_judged():
    counter = SkipCounter(minimum=100)
    for _ in range(99):
        counter.skip(DataError("x"))
    with pytest.raises(DataError, match="100 of 100"):
        counter.skip(DataError("x"))
    with pytest.raises(ConfigError, match="max_skip_share"):
        SkipCounter(max_skip_share=5)
