"""`Owners`: several clients of one core, each told of its own requests."""

from __future__ import annotations

from quire.core.request import RequestUpdate
from quire.engine.clients import ClientPlace
from quire.engine.inputs import InputProcessor
from quire.engine.owners import STATS_INTERVAL_S, Owners
from tests.engine.fakes import greedy, make_config


class Clock:
    """Time by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def ids(parts: dict[int, list[RequestUpdate]]) -> dict[int, list[str]]:
    return {client: [update.request_id for update in updates] for client, updates in parts.items()}


def test_one_client_gets_everything():
    owners = Owners()
    updates = [RequestUpdate("a", [1]), RequestUpdate("never heard of", [2])]
    assert owners.split(updates, is_idle=False) == {0: updates}


def test_everybody_gets_its_own():
    clock = Clock()
    owners = Owners(3, clock)
    owners.split([], is_idle=True)
    owners.add("a", 1)
    owners.add("b", 2)
    owners.add("c", 1)
    step = [RequestUpdate("a", [1]), RequestUpdate("b", [2], "stop"), RequestUpdate("c", [3])]
    assert ids(owners.split(step, is_idle=False)) == {1: ["a", "c"], 2: ["b"]}
    assert ids(owners.split(step, is_idle=False)) == {1: ["a", "c"]}, "b has ended"


def test_the_others_hear_of_the_numbers_now_and_then():
    clock = Clock()
    owners = Owners(2, clock)
    owners.add("a", 1)
    step = [RequestUpdate("a", [1])]
    assert set(owners.split(step, is_idle=False)) == {0, 1}
    clock.now += STATS_INTERVAL_S / 2
    assert set(owners.split(step, is_idle=False)) == {1}
    clock.now += STATS_INTERVAL_S / 2
    assert set(owners.split(step, is_idle=False)) == {0, 1}
    assert set(owners.split([RequestUpdate("a", [1], "stop")], is_idle=True)) == {0, 1}


def test_a_client_that_is_gone():
    owners = Owners(3)
    for request_id, client in (("a", 1), ("b", 2), ("c", 1)):
        owners.add(request_id, client)
    assert owners.forget(1) == ["a", "c"]
    assert ids(owners.split([RequestUpdate("a", [], "abort")], is_idle=True)) == {0: [], 2: []}
    assert owners.forget(1) == []


def test_ids_and_seeds_of_two_clients_differ(byte_tokenizer, make_engine):
    config, tokenizer = make_config(byte_tokenizer), make_engine().tokenizer
    found = []
    for index in (1, 2):
        inputs = InputProcessor(config.model, tokenizer, 64, ClientPlace(index, 3))
        found += [child for _ in range(3) for child in inputs.prepare("same", "x", greedy(n=2)).children]
    assert len({child.request_id for child in found}) == 4
    assert len({child.seed for child in found if child.fork_of is None}) == 6
    assert [child.client for child in found] == [1] * 6 + [2] * 6
    assert all(child.fork_of in (None, f"{child.client}/same#0") for child in found)
