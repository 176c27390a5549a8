"""The layers whose shapes are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dimensions:
    """One layer of a model, and its vocabulary."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int | None
    """None: the output head is not measured."""

    def matrices(self) -> dict[str, tuple[int, int]]:
        """[outputs, inputs] of each linear layer."""
        q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        found = {
            "qkv": (q_size + 2 * kv_size, self.hidden),
            "o": (self.hidden, q_size),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }
        return found | ({"lm_head": (self.vocab, self.hidden)} if self.vocab else {})


MODELS = {
    "S": Dimensions(896, 4864, 14, 2, 64, 151936),
    "M": Dimensions(2048, 5632, 32, 4, 64, 32000),
    "8B": Dimensions(4096, 14336, 32, 8, 128, None),
    "T": Dimensions(64, 128, 4, 2, 16, 256),
}
"""S: Qwen2.5-0.5B, M: TinyLlama-1.1B, 8B: Llama-3-8B without its output head, T: a smoke test."""
