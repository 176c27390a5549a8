"""The comparison itself: every peer runs a workload before any peer runs the next one, round after round. A peer that finds
no memory beside the others runs the workloads of a round in one go instead, and leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.machine import Neighbours
from benchmarks.peers.process import Peer, PeerError
from benchmarks.peers.results import Measurement
from benchmarks.peers.workloads import BATCH_SIZES, Workload, make_workloads


@dataclass(frozen=True)
class Plan:
    """What to run, and how often."""

    workloads: Sequence[str]
    rounds: int = 3
    scale: float = 1.0
    batch_sizes: Sequence[int] = BATCH_SIZES
    memory_mib: float = 8192.0
    """Peers stay loaded between their turns while all together need no more than this."""

    def round(self, number: int) -> list[Workload]:
        """The workloads of a round, with prompts of its own."""
        return make_workloads(self.workloads, scale=self.scale, batch_sizes=self.batch_sizes, salt=number)


def compare(
    plan: Plan, shape: str, precision: str, contestants: Sequence[tuple[Peer, Path]]
) -> Iterator[Measurement]:
    """Measure each contestant (a peer and its model file), interleaved. One that fails is left out from then on."""
    living = dict(contestants)
    peers = list(living)
    try:
        for number in range(plan.rounds):
            todo = {peer: plan.round(number) for peer in living}
            while any(todo.values()):
                for peer in list(todo):
                    case = (shape, precision, number)
                    for measurement in _take_turn(plan, case, peer, living[peer], todo[peer], peers):
                        yield measurement
                        if measurement.error is not None:
                            del living[peer], todo[peer]
    finally:
        for peer in peers:
            peer.close()


def _take_turn(
    plan: Plan,
    case: tuple[str, str, int],
    peer: Peer,
    model: Path,
    workloads: list[Workload],
    peers: Sequence[Peer],
) -> Iterator[Measurement]:
    """Run and remove the first of `workloads`, or all of them if `peer` cannot stay loaded beside the others."""
    while workloads:
        measurement = _measure(case, peer, model, workloads.pop(0))
        yield measurement
        if measurement.error is not None:
            return
        if sum(each.rss_mib for each in peers) <= plan.memory_mib:
            return
    peer.close()


def _measure(case: tuple[str, str, int], peer: Peer, model: Path, workload: Workload) -> Measurement:
    """One workload once; a peer that fails is unloaded."""
    shape, precision, number = case
    what = (shape, precision, workload.name, number, peer.name)
    try:
        if not peer.is_loaded:
            peer.load(model, precision)
        neighbours = Neighbours(peer.cpu_time_s)
        figures = peer.run(workload)
        return Measurement(*what, figures, peer.peak_rss_mib, round(neighbours.share(), 4))
    except PeerError as error:
        peer.close()
        return Measurement(*what, error=str(error))
