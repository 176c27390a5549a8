"""Which experts of a mixture a token goes to, and what each weighs: the rule of `ops.route` as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scoring = Literal["softmax", "sigmoid"]
GroupScore = Literal["max", "sum_of_top_2"]

SCORINGS = ("softmax", "sigmoid")
GROUP_SCORES = ("max", "sum_of_top_2")

SMALLEST_SUM = 1e-20
"""Added to the sum that weights are divided by: all sigmoids of a token may be zero."""


@dataclass(frozen=True)
class Routing:
    """From a token's logits [num_experts] to `top_k` experts, the best first, and their weights.

    1. score = softmax or sigmoid of the logits; choice = score + the expert's correction bias, if there is one (2408.15664).
    2. With groups (2405.04434, 2412.19437): experts lie in `num_groups` runs of one size. A group's score is that of its best
       choice, or the sum of its two best; the experts of the `top_groups` best groups stay.
    3. The `top_k` largest choices are taken. Ties go to the lowest expert, or group.
    4. weight = score, divided by the sum of the token's top_k scores where they are `renormalized`, times `scale`.
    """

    num_experts: int
    top_k: int
    scoring: Scoring = "softmax"
    renormalized: bool = False
    scale: float = 1.0
    num_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"

    def __post_init__(self) -> None:
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, got {self.scoring!r}")
        if self.group_score not in GROUP_SCORES:
            raise ValueError(
                f"group_score must be one of {', '.join(GROUP_SCORES)}, got {self.group_score!r}"
            )
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        if self.num_groups < 1 or self.num_experts % self.num_groups:
            raise ValueError(
                f"num_groups must be a divisor of num_experts ({self.num_experts}), got {self.num_groups}"
            )
        if not 1 <= self.top_groups <= self.num_groups:
            raise ValueError(
                f"top_groups must be between 1 and num_groups ({self.num_groups}), got {self.top_groups}"
            )
        if self.group_score == "sum_of_top_2" and self.group_size < 2:
            raise ValueError(
                f"group_score sum_of_top_2 needs groups of at least 2 experts, got {self.group_size}"
            )
        if not 1 <= self.top_k <= self.num_candidates:
            raise ValueError(f"top_k must be between 1 and {self.num_candidates}, got {self.top_k}")

    @property
    def group_size(self) -> int:
        """Experts of a group."""
        return self.num_experts // self.num_groups

    @property
    def num_candidates(self) -> int:
        """Experts that a token may choose from."""
        return self.group_size * self.top_groups
