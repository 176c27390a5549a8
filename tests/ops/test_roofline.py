"""The roofline probe: every level can run it, arguments are checked, and the pool is left as it was. No figure is asserted."""

from __future__ import annotations

import pytest
import torch

from quire.ops import cpu

extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(extension is None, reason=f"no C++ kernels: {_reason}")
LEVELS = extension.levels() if extension is not None else []


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_measures_what_it_has(level):
    code = extension.LEVEL_NAMES.index(level)
    memory = extension.ProbeMemory(1 << 20)
    assert all(rate > 0 for rate in memory.read(1 << 20, 4, 1, 2, code))
    for kind in (extension.PROBE_FLOAT32, extension.PROBE_INT8):
        rates = extension.probe_arithmetic(kind, 1, 2, code)
        assert len(rates) == 2 and min(rates) > 0
    has_bfloat16 = bool(extension.probe_arithmetic(extension.PROBE_BFLOAT16, 1, 1, code))
    assert has_bfloat16 == (level in ("avx512_bf16", "avx512_amx"))


def test_the_memory_of_tensors_is_read():
    from quire.ops.cpu.roofline import read_rate

    tensors = [torch.zeros(300, 1024), torch.zeros(1 << 20, dtype=torch.int8)]
    assert read_rate(tensors, threads=1, num_runs=2) > 0


def test_the_pool_is_as_it_was_afterwards():
    from quire.ops.cpu.roofline import Probe

    before = extension.num_threads()
    measured = Probe(before + 1, memory_bytes=8 << 20).measure(before + 1, num_runs=1)
    assert measured.threads == before + 1
    assert extension.num_threads() == before


def test_wrong_arguments_are_refused():
    memory = extension.ProbeMemory(1 << 20)
    with pytest.raises(ValueError, match="fit the memory"):
        memory.read(1 << 30, 1, 1, 1, 0)
    with pytest.raises(ValueError, match="streams must be from 1 to 16"):
        memory.read(1 << 20, 0, 1, 1, 0)
    with pytest.raises(ValueError, match="threads must be"):
        memory.read(1 << 20, 1, extension.num_threads() + 1, 1, 0)
    with pytest.raises(ValueError, match="streams must be from 1 to 16"):
        extension.probe_read([], 17, 1, 1, 0)
    with pytest.raises(ValueError, match="kind must be"):
        extension.probe_arithmetic(9, 1, 1, 0)
