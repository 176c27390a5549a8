"""What a model reads and says on sample text: the inputs of its linear layers, and its perplexity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from quire.config.types import KVCacheSpec, LoadConfig, ModelConfig
from quire.errors import ConfigError
from quire.layers.context import ForwardContext, forward_context
from quire.loader import load_model
from quire.ops.activations import ActivationName
from quire.ops.capture import RowFunction
from quire.quant import Quantizable, QuantMethod
from quire.runner.kv_cache import KVCache
from quire.tokenizer import Tokenizer, render_chat

Report = Callable[[str, int], Callable[[], None]]
"""(what begins, its number of steps) -> a function to call after each step."""
_BLOCK_SIZE = 16
_ROWS_AT_ONCE = 128


def read_texts(file: Path, tokenizer: Tokenizer, max_tokens: int, count: int) -> list[list[int]]:
    """At most `count` pieces of at most `max_tokens` token ids out of a file.

    A .jsonl file has an object a line: `messages` go through the chat template, `text` is taken as it is. Any other file is one
    text. Raises ConfigError where the file cannot be read or holds too little.
    """
    try:
        content = file.read_text(encoding="utf-8")
        lines = content.splitlines() if file.suffix == ".jsonl" else None
        texts = [tokenizer.encode(content)] if lines is None else [_encode(line, tokenizer) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"calibration {file} cannot be read: {error}") from error
    pieces: list[list[int]] = []
    for ids in texts:
        pieces += [ids[i : i + max_tokens] for i in range(0, len(ids), max_tokens)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise ConfigError(f"calibration {file} holds no text of two tokens or more")
    step = max(1, len(pieces) // count)
    return pieces[::step][:count]


def _encode(line: str, tokenizer: Tokenizer) -> list[int]:
    entry = json.loads(line)
    if "messages" in entry:
        chat = render_chat(tokenizer, entry["messages"], add_generation_prompt=False)
        return tokenizer.encode(chat, add_special_tokens=False)
    return tokenizer.encode(entry["text"])


class Forward:
    """A loaded model, run op by op on one sequence at a time."""

    def __init__(self, model: nn.Module, config: ModelConfig, max_tokens: int) -> None:
        self.model = model
        num_blocks = -(-max_tokens // _BLOCK_SIZE)
        spec = KVCacheSpec(num_blocks, 0, _BLOCK_SIZE, 0)
        self._cache = KVCache(spec, config.hf, torch.float32, torch.device("cpu"))
        self._blocks = torch.arange(num_blocks, dtype=torch.int32).unsqueeze(0)

    @torch.inference_mode()
    def __call__(self, ids: list[int]) -> Tensor:
        """Hidden states [T, hidden_size]."""
        positions = torch.arange(len(ids))
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        pools = self._cache.device_pools
        with forward_context(ForwardContext(pools, positions, self._blocks, ends, ends[1:], _BLOCK_SIZE)):
            return cast(Tensor, self.model(torch.tensor(ids), positions))

    @torch.inference_mode()
    def loss(self, ids: list[int]) -> float:
        """Sum of the negative log-probabilities of all tokens but the first."""
        hidden, total = self(ids)[:-1], 0.0
        targets = torch.tensor(ids[1:])
        for rows, wanted in zip(hidden.split(_ROWS_AT_ONCE), targets.split(_ROWS_AT_ONCE), strict=True):
            logits = cast(RowFunction, self.model.compute_logits)(rows)
            total -= float(logits.log_softmax(-1).gather(1, wanted[:, None]).sum())
        return total


class LoadedModel:
    """A model in memory that can be asked for its perplexity."""

    def __init__(self, config: ModelConfig, max_tokens: int) -> None:
        self.model = load_model(config, LoadConfig(), torch.device("cpu"))
        self.forward = Forward(self.model, config, max_tokens)

    def perplexity(self, texts: list[list[int]], report: Report) -> float | None:
        """On these texts; None if there are none."""
        if not texts:
            return None
        return perplexity(self.forward, texts, report("perplexity", len(texts)))


def perplexity(forward: Forward, texts: list[list[int]], report: Callable[[], None]) -> float:
    """exp of the mean negative log-probability of a token; `report` is called after each text."""
    total = 0.0
    for ids in texts:
        total += forward.loss(ids)
        report()
    return math.exp(total / sum(len(ids) - 1 for ids in texts))


class Inputs:
    """What one layer read: sums over its inputs x [K]."""

    def __init__(self, size: int) -> None:
        self.count, self._squares, self._magnitudes = 0, torch.zeros(size, size), torch.zeros(size)

    def add(self, x: Tensor) -> None:
        """Rows x [..., K]."""
        rows = x.reshape(-1, x.shape[-1]).float()
        self.count += len(rows)
        self._squares += rows.T @ rows
        self._magnitudes += rows.abs().sum(0)

    @property
    def hessian(self) -> Tensor:
        """The mean of x x^T, [K, K]."""
        return self._squares / max(self.count, 1)

    @property
    def magnitudes(self) -> Tensor:
        """The mean of |x|, [K]."""
        return self._magnitudes / max(self.count, 1)


class _Watching(QuantMethod):
    """A layer's own method, with a look at what the layer reads."""

    def __init__(self, inner: QuantMethod, inputs: Inputs) -> None:
        self.inner, self._inputs = inner, inputs

    def apply(
        self, layer: Quantizable, x: Tensor, bias: Tensor | None = None, activation: ActivationName | None = None
    ) -> Tensor:
        self._inputs.add(x)
        return self.inner.apply(layer, x, bias, activation)

    def apply_gate_up(
        self, layer: Quantizable, x: Tensor, bias: Tensor | None = None, activation: ActivationName = "silu"
    ) -> Tensor:
        self._inputs.add(x)
        return self.inner.apply_gate_up(layer, x, bias, activation)


@contextmanager
def watching(layers: list[Quantizable]) -> Iterator[dict[Quantizable, Inputs]]:
    """Gathers what these layers read within the context."""
    inputs = {layer: Inputs(layer.shard.input_size) for layer in layers}
    for layer, own in inputs.items():
        layer.quant = _Watching(layer.quant, own)
    try:
        yield inputs
    finally:
        for layer in layers:
            layer.quant = cast(_Watching, layer.quant).inner
