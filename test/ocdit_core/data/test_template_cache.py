"""Decoded views of a library's objects: kept, forgotten, drawn and compared."""

import pickle

import numpy as np
import pytest
from painted import OBJECTS, write_library

from ocdit_core.data.templates import TemplateCache
from ocdit_core.errors import ConfigError, DataError, LibraryError
from ocdit_core.objects.library import ObjectLibrary


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return ObjectLibrary(write_library(tmp_path_factory.mktemp("cache") / "objects"))


def test_objects_are_compared_by_their_colours(library):
    cache = TemplateCache(library, size=64)
    assert cache.similarity(4, 4) == pytest.approx(1)
    assert 0 <= cache.similarity(4, 5) == cache.similarity(5, 4) < 1


def test_the_cache_reads_an_object_once_and_forgets_the_least_used(library):
    one = 6 * 64 * 64 * 4
    cache = TemplateCache(library, size=64, byte_limit=2 * one + 10)
    for object_id in (1, 2, 1, 3, 1, 2):  # 3 displaces 2, then 2 displaces 3
        cache.draw(np.random.default_rng(0), object_id, 2)
    assert (cache.misses, cache.bytes) == (4, 2 * one)
    assert len(pickle.dumps(cache)) < 20_000  # workers get no decoded views


def test_views_are_spread_and_repeat_only_where_there_are_too_few(library):
    """Six views on a circle, wider one after the other: the second drawn is opposite to the first."""
    cache = TemplateCache(library, size=128)

    def numbers(seed, count):
        widths = (int((view[64, :, 3] > 0).sum()) for view in cache.draw(np.random.default_rng(seed), 1, count))
        return [round((width - 41) / 12) for width in widths]

    assert sorted(numbers(0, 6)) == [0, 1, 2, 3, 4, 5]
    pairs = [numbers(seed, 2) for seed in range(60)]
    assert all(abs(a - b) == 3 for a, b in pairs)
    assert {a for a, _ in pairs} == {0, 1, 2, 3, 4, 5}
    nine = numbers(0, 9)
    assert sorted(nine[:6]) == [0, 1, 2, 3, 4, 5]
    assert len(nine) == 9


def test_the_cache_names_what_is_missing_or_damaged(tmp_path):
    path = write_library(tmp_path, [1, 2])
    cache = TemplateCache(ObjectLibrary(path))
    with pytest.raises(DataError, match="object 9 has no templates"):
        cache.draw(np.random.default_rng(0), 9, 2)
    (path / "obj_000002.npz").write_bytes(b"PK nothing")
    with pytest.raises(LibraryError, match=r"obj_000002\.npz"):
        cache.draw(np.random.default_rng(0), 2, 2)
    assert 1 in cache.object_ids
    assert 9 not in cache.object_ids
    with pytest.raises(ConfigError, match="template_size: 500"):
        TemplateCache(ObjectLibrary(path), size=500)
    assert OBJECTS > 2
