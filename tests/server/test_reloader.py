"""What an order makes of the engine's options, and which orders the disk and the memory do not allow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quire import platform
from quire.config import EngineConfig
from quire.config.engine_args import EngineArgs
from quire.engine.stats import EngineStats
from quire.errors import InvalidRequestError
from quire.server.model_loader import kv_bytes, weight_bytes
from quire.server.models import ReloadOrder
from quire.server.reloader import PROCESS_BYTES, EngineReloader, ReloadPlan
from tests.server.fake_models import add_checkpoint

NUM_BLOCKS = 100


@dataclass
class Serving:
    """What the reloader asks of the engine that serves."""

    config: EngineConfig
    numbers: EngineStats = field(default_factory=lambda: EngineStats(num_blocks=NUM_BLOCKS))

    def stats(self) -> EngineStats:
        return self.numbers


def make(**args: Any) -> tuple[EngineReloader, Serving]:
    options = EngineArgs(**args)
    config = options.create_engine_config()
    return EngineReloader(options, config), Serving(config)


def plan(given: tuple[EngineReloader, Serving], **order: Any) -> ReloadPlan:
    reloader, serving = given
    return reloader.plan(ReloadOrder(**order), serving)  # type: ignore[arg-type]


def test_without_changes_all_stays() -> None:
    made = plan(make(model="folio", max_num_seqs=7, quantization="int8", served_model_name=["x", "y"]))
    assert (made.args.max_num_seqs, made.args.quantization, made.args.model) == (7, "int8", "folio")
    assert made.args.served_model_name == ["x", "y"]


def test_changes_add_up_over_reloads() -> None:
    server = make(model="folio", revision="v1")
    first = plan(server, quantization="int8", revision="v2")
    assert (first.args.quantization, first.args.revision) == ("int8", "v2")
    server[0].accept(first)
    second = plan(server, model="folio-draft")
    assert (second.args.quantization, second.args.revision) == ("int8", None)
    assert plan(server, quantization="none").args.quantization is None


def test_names_that_were_not_given_are_added_to() -> None:
    reloader, serving = make()
    first = plan((reloader, serving), model="folio-draft")
    assert first.args.served_model_name == ["folio-draft", "folio"]
    reloader.accept(first)
    again = plan((reloader, Serving(first.args.create_engine_config())), model="folio")
    assert again.args.served_model_name == ["folio", "folio-draft"]


def test_the_kv_cache_keeps_its_size() -> None:
    server = make(model="folio", max_model_len=64)
    had = kv_bytes(server[1].config, 16 * NUM_BLOCKS)
    assert plan(server).args.kv_cache_memory_bytes == plan(server).num_kv_bytes == had
    assert plan(server).options.kv_cache_memory_bytes is None
    server[1].numbers.num_blocks = 1
    assert plan(server).num_kv_bytes == kv_bytes(server[1].config, 64)
    server[1].numbers.num_blocks = 10**6
    assert plan(server).num_kv_bytes == kv_bytes(server[1].config, 64) * server[1].config.scheduler.max_num_seqs
    assert plan(server, kv_cache_memory_bytes="32M").num_kv_bytes == 32 * 2**20
    assert plan(make(num_gpu_blocks_override=20)).args.kv_cache_memory_bytes is None
    assert plan(make(num_gpu_blocks_override=20), kv_cache_memory_bytes="32M").num_kv_bytes == 32 * 2**20


@pytest.mark.parametrize(
    ("order", "parameter"),
    [
        ({"model": "/nowhere"}, "model"),
        ({"quantization": "int3"}, "quantization"),
        ({"quantization": "gptq"}, "quantization"),
        ({"kv_cache_memory_bytes": "much"}, "kv_cache_memory_bytes"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes"),
    ],
)
def test_orders_that_name_nothing_known(order: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        plan(make(model="folio"), **order)
    assert caught.value.parameter == parameter


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = add_checkpoint(tmp_path, "empty")
    with pytest.raises(InvalidRequestError):
        plan(make(model="folio"), model=str(folder))


def test_memory_that_does_not_hold_both(monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(model="folio")
    needed, weights = plan(server).num_bytes, weight_bytes(server[1].config)
    assert needed == weights + plan(server).num_kv_bytes + PROCESS_BYTES
    monkeypatch.setattr(platform, "available_memory_bytes", lambda: needed)
    plan(server)
    monkeypatch.setattr(platform, "available_memory_bytes", lambda: needed - 1)
    with pytest.raises(InvalidRequestError, match=f"needs {needed / 2**30:.2f} GiB.*beside the engine.*mode 'drain'"):
        plan(server)
    plan(server, mode="drain")
    monkeypatch.setattr(platform, "available_memory_bytes", lambda: needed - weights - 1)
    with pytest.raises(InvalidRequestError, match="even after the engine that serves is unloaded"):
        plan(server, mode="drain")


def test_a_gpu_cannot_hold_two_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    server = make(model="folio")
    server[0]._options.device = "cuda"
    with pytest.raises(InvalidRequestError, match="mode must be 'drain' on a GPU"):
        plan(server)
    assert plan(server, mode="drain").args.device == "cuda"
