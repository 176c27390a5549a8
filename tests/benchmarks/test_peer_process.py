"""The protocol with a fake engine in a real process: answers, failures, deaths, and the order of turns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.peers.compare import Plan, compare
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.workloads import make_workloads

PLACE = "tests.benchmarks.fake_peer:FakePeer"
W1, W2 = make_workloads(["W1", "W2"])


@pytest.fixture
def make_peer(tmp_path):
    peers = []

    def make(name="fake", timeout_s=30.0, **variables):
        settings = {key: str(value) for key, value in variables.items()}
        peers.append(
            Peer(name, PLACE, sys.executable, 2, tmp_path / f"{name}.log", settings, timeout_s=timeout_s)
        )
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()


def test_verbs(make_peer):
    peer = make_peer(FAKE_SPEED=3)
    assert (peer.title, peer.formats) == ("Fake", {"float32": "nothing at all"})
    assert peer.version() == "1.0 on 2 threads"
    model = peer.prepare(Path("S-bfloat16"), "float32", Path("models"))
    assert model == Path("models/S-bfloat16-float32")
    peer.load(model, "float32")
    assert peer.is_loaded and peer.rss_mib > 1 and peer.peak_rss_mib > 1
    assert peer.run(W1) == {"decode_tokens_per_s": 3.0}
    peer.close()
    assert not peer.is_loaded and peer.rss_mib == 0
    assert "engines print what they like" in peer.log.read_text()


def test_a_failure_is_told_and_the_process_goes_on(make_peer):
    peer = make_peer(FAKE_FAILS_ON="W1")
    with pytest.raises(PeerError, match="RuntimeError: no W1"):
        peer.run(W1)
    assert peer.run(W2) == {"prompt_tokens_per_s": 1.0}


def test_what_is_not_installed(make_peer):
    with pytest.raises(PeerError, match="No module named 'fake'"):
        make_peer(FAKE_MISSING=1).version()


def test_a_death_is_noticed(make_peer):
    peer = make_peer(FAKE_DIES_ON="W1")
    with pytest.raises(PeerError, match="died during run"):
        peer.run(W1)
    assert peer.version()  # a new process


def test_a_hang_is_ended(make_peer):
    peer = make_peer(FAKE_HANGS_ON="W1", timeout_s=1.0)
    with pytest.raises(PeerError, match="no answer to run within 1 s"):
        peer.run(W1)
    assert not peer.is_loaded


def test_an_interpreter_that_does_not_exist(tmp_path):
    peer = Peer("fake", PLACE, "/no/such/python", 1, tmp_path / "log")
    with pytest.raises(PeerError, match="No such file"):
        peer.version()


def test_turns_are_interleaved(make_peer):
    contestants = [(make_peer("a", FAKE_SPEED=2), Path("a")), (make_peer("b"), Path("b"))]
    measured = list(compare(Plan(["W1", "W2"], rounds=2), "S", "float32", contestants))
    turns = [(each.round, each.workload, each.peer) for each in measured]
    assert turns == [(r, w, p) for r in (0, 1) for w in ("W1", "W2") for p in ("a", "b")]
    assert [each.figures["decode_tokens_per_s"] for each in measured if each.workload == "W1"] == [2, 1, 2, 1]
    assert not any(peer.is_loaded for peer, _ in contestants)


def test_a_peer_that_fails_is_left_out_from_then_on(make_peer):
    contestants = [(make_peer("a", FAKE_FAILS_ON="W1"), Path("a")), (make_peer("b"), Path("b"))]
    measured = list(compare(Plan(["W2", "W1"], rounds=2), "S", "float32", contestants))
    assert [(each.peer, each.workload, each.error) for each in measured] == [
        ("a", "W2", None), ("b", "W2", None), ("a", "W1", "RuntimeError: no W1"), ("b", "W1", None),
        ("b", "W2", None), ("b", "W1", None),
    ]  # fmt: skip


def test_without_memory_for_all_a_peer_runs_its_round_in_one_go_and_leaves(make_peer):
    contestants = [(make_peer("a"), Path("a")), (make_peer("b"), Path("b"))]
    turns = []
    for each in compare(Plan(["W1", "W2"], rounds=2, memory_mib=0), "S", "float32", contestants):
        turns.append((each.round, each.peer, each.workload))
        assert sum(peer.is_loaded for peer, _ in contestants) <= 1
    assert turns == [(r, p, w) for r in (0, 1) for p in ("a", "b") for w in ("W1", "W2")]
