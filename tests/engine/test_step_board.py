"""What an engine's process shows of itself, and messages over pipes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from quire.engine.frames import FrameBuffer, read_frame, write_frame
from quire.engine.step_board import StepBoard, sequence_key


class Note(msgspec.Struct):
    """A message."""

    text: str


def test_a_board_is_read_while_it_is_written(tmp_path: Path) -> None:
    written = StepBoard.create(tmp_path / "board", capacity=3)
    read = StepBoard(tmp_path / "board")
    assert (read.num_turns, read.num_steps, read.stalled_s, read.held(), read.suspect) == (0, 0, 0.0, [], 0)
    for _ in range(3):
        written.turn()
    written.end_step()
    written.hold([], ["a", "b"])
    written.hold(["a"], ["c"])
    assert (read.num_turns, read.num_steps) == (3, 1)
    assert sorted(read.held()) == sorted([sequence_key("b"), sequence_key("c")])
    written.show_suspect("b")
    assert read.suspect == sequence_key("b")
    written.show_suspect(None)
    assert read.suspect == 0
    time.sleep(0.02)
    assert read.stalled_s >= 0.02
    written.turn()
    assert read.stalled_s < 0.02


def test_a_board_shows_no_more_than_it_has_room_for(tmp_path: Path) -> None:
    board = StepBoard.create(tmp_path / "board", capacity=2)
    board.hold(["unknown"], ["a", "b", "c"])
    assert sorted(board.held()) == sorted([sequence_key("a"), sequence_key("b")])
    board.hold(["a", "b", "c"], [])
    assert board.held() == []


def test_frames_from_a_pipe(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    for text in ("one", "two"):
        write_frame(write_fd, Note(text))
    os.write(write_fd, b"\x09\0\0")
    os.close(write_fd)
    assert [read_frame(read_fd, Note) for _ in range(3)] == [Note("one"), Note("two"), None]
    os.close(read_fd)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_frames_in_pieces(size: int) -> None:
    notes = [Note("x" * length) for length in (0, 3, 300)]
    read_fd, write_fd = os.pipe()
    for note in notes:
        write_frame(write_fd, note)
    data = os.read(read_fd, 10_000)
    os.close(read_fd)
    os.close(write_fd)
    buffer: FrameBuffer[Note] = FrameBuffer(Note)
    got = [note for start in range(0, len(data), size) for note in buffer.feed(data[start : start + size])]
    assert got == notes
