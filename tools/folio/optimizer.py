"""Muon in float32 for the weight matrices and AdamW for the rest, with one schedule for both.

torch.optim.Muon orthogonalizes in bfloat16, which is slow on a CPU without it; this one stays in float32.
Muon: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Pushes the singular values towards 1 by a quintic Newton-Schulz iteration.

    Three rounds lift all but the smallest ones, which are mostly noise, and cost less than the usual five.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; the step is scaled by sqrt(max(1, rows / columns))."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        update = orthogonalize(parameter.grad.lerp(momentum, group["momentum"]))
        rows, columns = parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def adam(parameters: list[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)


class Optimizer:
    """All optimizers behind one `step(progress)`; progress runs from 0 to 1 over the training."""

    WARMUP, DECAY_FROM, FLOOR = 0.015, 0.5, 0.02

    def __init__(
        self, model: nn.Module, muon_lr: float = 0.01, embed_lr: float = 4e-3, norm_lr: float = 1e-3
    ):
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        embeddings = [p for name, p in model.named_parameters() if "embed" in name]
        norms = [p for p in model.parameters() if p.ndim == 1]
        self.parts = (Muon(matrices, lr=muon_lr), adam(embeddings), adam(norms))
        self.base = (muon_lr, embed_lr, norm_lr)

    def scale(self, progress: float) -> float:
        """Warm up, hold, then fall linearly to FLOOR."""
        warm = min(1.0, (progress + 1e-4) / self.WARMUP)
        fall = min(1.0, (1 - progress) / (1 - self.DECAY_FROM))
        return warm * max(self.FLOOR, fall)

    def step(self, progress: float) -> None:
        for part, base in zip(self.parts, self.base, strict=True):
            for group in part.param_groups:
                group["lr"] = base * self.scale(progress)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
