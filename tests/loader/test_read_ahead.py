"""What is read ahead of a checkpoint's user: all of it, once, in order, and never too far."""

from __future__ import annotations

import os
import threading
import time

import pytest

from quire.loader import read_ahead
from quire.loader.read_ahead import ReadAhead

CHUNK = 1000
pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="read ahead on Linux only")


@pytest.fixture
def files(tmp_path):
    """7,100 bytes in three files, one of them empty."""
    sizes = {"a": 2500, "b": 0, "c": 4600}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    return [tmp_path / name for name in sizes]


@pytest.fixture
def asked(monkeypatch):
    """What the threads read, as (name, offset, length)."""
    found: list[tuple[str, int, int]] = []
    monkeypatch.setattr(read_ahead, "_CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(read_ahead, "_warm", lambda file, offset, buffer: found.append((file.name, offset, len(buffer))))
    return found


def wait_for(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


ALL = [("a", 0, 1000), ("a", 1000, 1000), ("a", 2000, 500)]
ALL += [("c", offset, min(1000, 4600 - offset)) for offset in range(0, 4600, 1000)]


def test_every_byte_is_asked_for_once(files, asked):
    with ReadAhead(files):
        wait_for(lambda: len(asked) >= len(ALL))
    assert sorted(asked) == ALL


def test_nothing_beyond_the_distance_until_the_user_comes_nearer(files, asked):
    with ReadAhead(files, distance=2 * CHUNK) as ahead:
        wait_for(lambda: len(asked) == 2)
        ahead.reach(500)
        time.sleep(0.05)
        assert sorted(asked) == ALL[:2]
        ahead.reach(1000)
        wait_for(lambda: len(asked) == 3)
        ahead.reach(6000)  # what the user has passed needs no reading
        wait_for(lambda: len(asked) == 5)
        time.sleep(0.05)
    assert sorted(asked) == [*ALL[:3], *ALL[6:]]


def test_the_end_does_not_wait_for_the_files(files, asked):
    with pytest.raises(ZeroDivisionError), ReadAhead(files, distance=CHUNK):
        1 / 0  # noqa: B018
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quire-read-ahead")]
    assert len(asked) <= 1


def test_a_cold_file_is_in_the_cache_afterwards_and_one_that_is_gone_no_matter(tmp_path, files):
    cold = tmp_path / "cold"
    cold.write_bytes(os.urandom(5 * 2**20))
    with cold.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        offsets = range(0, 5 * 2**20, 2**18)
        try:
            if all(read_ahead._is_cached(opened.fileno(), offset) for offset in offsets):
                pytest.skip("this file system keeps its files in memory")
        except OSError:
            pytest.skip("this file system does not say what is in memory")
        ahead = ReadAhead([files[0], cold])
        os.unlink(files[0])
        with ahead:
            wait_for(lambda: all(read_ahead._is_cached(opened.fileno(), offset) for offset in offsets))
