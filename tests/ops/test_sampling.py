"""argmax, sample and rank_tokens: kernels against the numpy definition, every level and thread count against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire import ops
from quire.ops import cpu, registry
from quire.ops.sampling import reference
from quire.ops.sampling.edits import RowEdits, apply_edits, make_mask
from quire.ops.sampling.random import exponential_noise

_extension, _reason = cpu.load()
needs_extension = pytest.mark.skipif(_extension is None, reason=f"no C++ kernels: {_reason}")
CPU = torch.device("cpu")
VOCABS = [1, 15, 63, 64, 65, 1000, 17_003]


def make_logits(num_rows: int, vocab: int, seed: int = 0, scale: float = 3.0, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale
    return logits.bfloat16().float() if ties else logits


def sample_arguments(rng: np.random.Generator, num_rows: int) -> list[torch.Tensor]:
    """rows, temperature, min_p, typical_p, top_k, top_p, seeds, positions: every mix of filters."""

    def pick(values, dtype):
        return torch.tensor([values[rng.integers(len(values))] for _ in range(num_rows)], dtype=dtype)

    return [
        torch.arange(num_rows),
        pick([0.0, 0.3, 1.0, 1.7], torch.float64),
        pick([0.0, 0.0, 0.05], torch.float64),
        pick([1.0, 1.0, 1.0, 0.05, 0.5, 0.95], torch.float64),
        pick([0, 0, 1, 7, 300, 5000], torch.int64),
        pick([1.0, 1.0, 0.2, 0.9, 0.999, 1 - 1e-12], torch.float64),
        torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, num_rows)),
        torch.from_numpy(rng.integers(0, 2**20, num_rows)),
    ]


def make_edits(rng: np.random.Generator, vocab: int) -> RowEdits | None:
    """Every mix of edits, with lists of every length; a fifth of the rows have none."""
    if rng.random() < 0.2:
        return None

    def some() -> torch.Tensor | None:
        if rng.random() < 0.4:
            return None
        return torch.from_numpy(rng.permutation(vocab)[: rng.integers(0, vocab + 1)].astype(np.int64))

    edits = RowEdits(banned_ids=some(), bias_ids=some(), seen_ids=some())
    if rng.random() < 0.5:
        edits.allowed = make_mask(np.flatnonzero(rng.random(vocab) < rng.choice([0.02, 0.5, 1.0])), vocab)
    if edits.bias_ids is not None:
        edits.bias_values = torch.from_numpy(rng.normal(size=len(edits.bias_ids)).astype(np.float32) * 3)
    if edits.seen_ids is not None:
        edits.num_seen = len(edits.seen_ids) // 2
        edits.seen_counts = torch.from_numpy(rng.integers(0, 4, len(edits.seen_ids)).astype(np.float32))
        edits.repetition_penalty = float(rng.choice([1.0, 0.9, 1.3]))
        edits.frequency_penalty, edits.presence_penalty = rng.choice([0.0, -0.3, 0.7], 2).tolist()
    return edits


def with_backend(backend: str, op: str, *arguments):
    with registry.override(op, backend):
        return getattr(ops, op)(*arguments)


def levels() -> list[int]:
    return [_extension.LEVEL_NAMES.index(name) for name in _extension.levels()]


@pytest.fixture
def num_threads():
    before = _extension.num_threads()
    yield _extension.set_num_threads
    _extension.set_num_threads(before)


# -- argmax --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", registry.backends("argmax", CPU))
@pytest.mark.parametrize("vocab", [*VOCABS, 40_000])
def test_argmax_is_the_lowest_id_of_the_largest(backend, vocab):
    logits = make_logits(5, vocab, ties=True).round()
    logits[1] = -math.inf
    token_ids, best = with_backend(backend, "argmax", logits)
    assert token_ids.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert best.tolist() == logits.max(dim=1).values.tolist()
    token_ids, best = with_backend(backend, "argmax", logits, torch.tensor([3, 0]))
    assert token_ids.tolist() == [row.index(max(row)) for row in (logits[3].tolist(), logits[0].tolist())]


@pytest.mark.parametrize("backend", registry.backends("argmax", CPU))
@pytest.mark.parametrize("place", [0, 255, 256, 16_383, 16_384, 16_999])
def test_argmax_shows_a_nan_wherever_it_is(backend, place):
    logits = make_logits(3, 17_000)
    logits[1, place] = math.nan
    logits[1, (place + 40) % 17_000] = math.inf
    token_ids, best = with_backend(backend, "argmax", logits)
    assert best.isnan().tolist() == [False, True, False]
    assert token_ids[1] == place


# -- the draw ------------------------------------------------------------------------------------------------


@needs_extension
@settings(max_examples=60, deadline=None)
@given(
    vocab=st.sampled_from(VOCABS),
    case=st.integers(0, 2**31),
    ties=st.booleans(),
    scale=st.sampled_from([0.01, 1.0, 5.0]),
    is_edited=st.booleans(),
)
def test_sample_is_the_numpy_definition(vocab, case, ties, scale, is_edited):
    rng = np.random.default_rng(case)
    logits = make_logits(6, vocab, case, scale, ties)
    logits[torch.from_numpy(rng.random((6, vocab)) < 0.1)] = -math.inf
    logits[:, rng.integers(vocab)] = 0.0
    arguments = sample_arguments(rng, 6)
    ours, theirs = torch.empty(6, vocab), torch.empty(6, vocab)
    edits = [make_edits(rng, vocab) for _ in range(6)] if is_edited else None
    before = logits.clone()
    token_ids, best = with_backend("cpu", "sample", logits, *arguments, edits, ours)
    expected, expected_best = with_backend("reference", "sample", logits, *arguments, edits, theirs)
    assert torch.equal(best, expected_best) and torch.equal(logits, before)
    assert torch.equal(token_ids < 0, expected < 0)
    for i in (token_ids >= 0).nonzero()[:, 0].tolist():
        if torch.equal(ours[i], theirs[i]):
            assert token_ids[i] == expected[i]
        elif arguments[3][i] < 1:
            own = [column[i].item() for column in arguments]
            assert_parted_among_the_equally_typical(logits[i], edits and edits[i], own, ours[i], theirs[i])
        else:
            assert_parted_at_a_near_tie(ours[i], theirs[i])


def assert_parted_at_a_near_tie(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """The filters kept the same but for the last tokens of the nucleus, whose weight is that of a rounding error."""
    kept = torch.where(ours > theirs, ours, theirs).double().softmax(0)
    differing = kept[ours != theirs]
    assert len(differing) <= 1 + (kept == kept[kept > 0].min()).sum()
    assert differing.max() == kept[kept > 0].min()


def assert_parted_among_the_equally_typical(logits, edits, arguments, ours, theirs) -> None:
    """Typical_p kept other tokens of those whose distance from the entropy is that of the last one, up to rounding."""
    _, temperature, min_p, _, top_k, top_p, *_ = arguments
    row = reference.heat_and_filter(
        apply_edits(logits.numpy().copy(), edits or RowEdits()), temperature, min_p, 1.0, 0, 1.0
    ).astype(np.float64)
    distance = row.max() - row
    weights = np.exp(-distance)
    possible = weights > 0
    mean = (weights[possible] * distance[possible]).sum() / weights.sum()
    differing = np.abs(distance - mean)[(ours != theirs).numpy()]
    assert np.ptp(differing) < 1e-4 or top_k or top_p < 1


@needs_extension
def test_the_kernel_draws_the_noise_that_numpy_draws():
    """The spread of a token's logit over which it wins, found by halving, is its noise against that of a fixed rival."""
    noise = exponential_noise(77, 123, 200)
    gaps = np.log(noise) - np.log(noise[0])
    for token_id in (1, 2, 63, 64, 70, 199):
        for shift, wins in ((1e-6, True), (-1e-6, False)):
            logits = torch.full((1, 200), -math.inf)
            logits[0, 0], logits[0, token_id] = 0.0, float(np.float32(gaps[token_id] + shift))
            drawn, _ = ops.sample(logits, *one_row(seed=77, position=123))
            assert (drawn.item() == token_id) == wins


def one_row(seed=0, position=0, temperature=1.0, min_p=0.0, typical_p=1.0, top_k=0, top_p=1.0) -> list[torch.Tensor]:
    return [
        torch.tensor([0]),
        torch.tensor([temperature], dtype=torch.float64),
        torch.tensor([min_p], dtype=torch.float64),
        torch.tensor([typical_p], dtype=torch.float64),
        torch.tensor([top_k]),
        torch.tensor([top_p], dtype=torch.float64),
        torch.tensor([seed]),
        torch.tensor([position]),
    ]


@pytest.mark.parametrize("backend", registry.backends("sample", CPU))
def test_ties_at_the_border_go_to_the_lowest_ids(backend):
    """Top-k cuts a tie, and top-p then cuts what is left of it: ids 1, 3 and 5 of the five equal ones, then 1 and 3."""
    logits = torch.full((1, 300), -9.0)
    logits[0, [1, 3, 5, 100, 299]] = 2.0
    for filters, kept in (({"top_k": 3}, [1, 3, 5]), ({"top_k": 3, "top_p": 0.5}, [1, 3]), ({"top_p": 0.39}, [1, 3])):
        processed = torch.empty(1, 300)
        with_backend(backend, "sample", logits, *one_row(**filters), None, processed)
        assert processed.isfinite().nonzero()[:, 1].tolist() == kept


@pytest.mark.parametrize("backend", registry.backends("sample", CPU))
def test_typical_p_takes_equally_typical_tokens_by_id(backend):
    """Four equal tokens: each is as typical as the others, and two of them hold half."""
    logits = torch.full((1, 100), -math.inf)
    logits[0, [7, 20, 65, 99]] = 1.0
    processed = torch.empty(1, 100)
    with_backend(backend, "sample", logits, *one_row(typical_p=0.5), None, processed)
    assert processed.isfinite().nonzero()[:, 1].tolist() == [7, 20]


@pytest.mark.parametrize("backend", registry.backends("sample", CPU))
def test_a_row_that_edits_leave_empty_has_no_token(backend):
    logits = make_logits(2, 70)
    edits = [RowEdits(allowed=make_mask(np.array([69]), 70), banned_ids=torch.tensor([69])), None]
    arguments = [torch.cat([column, column]) for column in one_row(temperature=0.0)]
    arguments[0] = torch.arange(2)
    token_ids, best = with_backend(backend, "sample", logits, *arguments, edits)
    assert token_ids.tolist() == [-1, int(logits[1].argmax())]
    assert torch.equal(best, logits.max(dim=1).values)


@pytest.mark.parametrize("backend", registry.backends("sample", CPU))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_sample_marks_unsound_rows(backend, bad):
    logits = make_logits(3, 500)
    logits[1, 499] = bad
    logits[2] = -math.inf
    arguments = sample_arguments(np.random.default_rng(0), 3)
    token_ids, best = with_backend(backend, "sample", logits, *arguments)
    assert token_ids[0] >= 0 and token_ids[1:].tolist() == [-1, -1]
    assert best.isfinite().tolist() == [True, False, False]


@needs_extension
@settings(max_examples=25, deadline=None)
@given(vocab=st.sampled_from(VOCABS), case=st.integers(0, 2**31), ties=st.booleans())
def test_levels_agree_bit_for_bit(vocab, case, ties):
    from quire.ops.cpu import sampling

    logits = make_logits(4, vocab, case, ties=ties)
    arguments = sample_arguments(np.random.default_rng(case), 4)
    chosen = torch.from_numpy(np.random.default_rng(case).integers(0, vocab, 4))
    edits = [make_edits(np.random.default_rng(case + i), vocab) for i in range(4)]
    results = []
    for level in levels():
        processed = torch.zeros(4, vocab)
        drawn = sampling.sample_at_level(logits, *arguments, edits, processed, level)
        ranked = sampling.rank_tokens_at_level(logits, arguments[0], chosen, 9, level)
        results.append([*sampling.argmax_at_level(logits, None, level), *drawn, processed, *ranked])
    for other in results[1:]:
        for ours, first in zip(other, results[0], strict=True):
            assert torch.equal(ours, first)


@needs_extension
def test_a_row_alone_on_one_thread_is_the_row_in_a_batch_on_many(num_threads):
    logits = make_logits(9, 40_000, 3)
    arguments = sample_arguments(np.random.default_rng(3), 9)
    edits = [make_edits(np.random.default_rng(i), 40_000) for i in range(9)]

    def all_ops(columns: list[torch.Tensor], edits: list[RowEdits | None]) -> list[torch.Tensor]:
        rows = columns[0]
        ranked = ops.rank_tokens(logits, rows, rows, 5)
        return [*ops.argmax(logits, rows), *ops.sample(logits, *columns, edits), *ranked]

    num_threads(3)
    together = all_ops(arguments, edits)
    num_threads(1)
    for i in range(9):
        alone = all_ops([column[i : i + 1] for column in arguments], edits[i : i + 1])
        for ours, batch in zip(alone, together, strict=True):
            assert torch.equal(ours, batch[i : i + 1])


# -- ranks ---------------------------------------------------------------------------------------------------


@needs_extension
@settings(max_examples=40, deadline=None)
@given(
    vocab=st.sampled_from(VOCABS), case=st.integers(0, 2**31), ties=st.booleans(), num_top=st.sampled_from([0, 1, 20, 400])
)
def test_rank_tokens_is_the_numpy_definition(vocab, case, ties, num_top):
    rng = np.random.default_rng(case)
    logits = make_logits(3, vocab, case, ties=ties)
    logits[torch.from_numpy(rng.random((3, vocab)) < 0.3)] = -math.inf
    logits[:, rng.integers(vocab)] = -0.0
    rows, chosen = torch.tensor([2, 0]), torch.from_numpy(rng.integers(0, vocab, 2))
    ours = with_backend("cpu", "rank_tokens", logits, rows, chosen, num_top)
    theirs = with_backend("reference", "rank_tokens", logits, rows, chosen, num_top)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], torch.logsumexp(logits[rows].double(), 1), rtol=3e-7, atol=3e-7)
    torch.testing.assert_close(theirs[2], ours[2], rtol=3e-7, atol=3e-7)


# -- refusals ------------------------------------------------------------------------------------------------


@needs_extension
def test_wrong_arguments_are_refused_before_memory_is_touched():
    logits = make_logits(2, 10)
    with pytest.raises(ValueError, match=r"rows must be in \[0, 2\), got \[2\]"):
        ops.rank_tokens(logits, torch.tensor([2]), torch.tensor([0]), 1)
    with pytest.raises(ValueError, match=r"token_ids must be in \[0, 10\), got \[10\]"):
        ops.rank_tokens(logits, torch.tensor([1]), torch.tensor([10]), 1)
    with pytest.raises(ValueError, match="top_p must be a dense torch.float64"):
        ops.sample(logits, *one_row()[:5], torch.tensor([1.0]), *one_row()[6:])
    with pytest.raises(ValueError, match="processed must be"):
        ops.sample(logits, *one_row(), processed=torch.empty(2, 10))
    with pytest.raises(ValueError, match=r"token ids of edits must be in \[0, 10\), got 10"):
        ops.sample(logits, *one_row(), [RowEdits(banned_ids=torch.tensor([3, 10]))])
    with pytest.raises(ValueError, match=r"allowed must be a dense torch.int32 \[1\], got torch.int64 \[1\]"):
        ops.sample(logits, *one_row(), [RowEdits(allowed=torch.tensor([1]))])
    with pytest.raises(ValueError, match="edits must be 1, one for each row, got 2"):
        ops.sample(logits, *one_row(), [None, None])


def test_rows_per_race_is_no_part_of_the_result():
    num_rows = reference.ROWS_PER_RACE + 3
    logits = make_logits(num_rows, 200)
    arguments = sample_arguments(np.random.default_rng(1), num_rows)
    together, _ = with_backend("reference", "sample", logits, *arguments)
    last = [column[-1:] for column in arguments]
    assert with_backend("reference", "sample", logits, *last)[0].item() == together[-1].item()
