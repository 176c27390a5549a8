"""Trains folio, or its draft model, on the CPU: `python -m tools.folio.train --name folio`.

Fixed seed, fixed number of steps. Writes checkpoints and the loss curve under `build/folio/<name>/`;
`--resume` continues from the last checkpoint with the same data it would have seen.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from tools.folio.batches import Batch, Packer
from tools.folio.generate import make_chat, stream
from tools.folio.model import SHAPES, SmallLlama
from tools.folio.optimizer import Optimizer
from tools.folio.tokenizer import save_tokenizer, train_tokenizer

WORK = Path("build/folio")
SEED = 20_26
TOKENIZER_SEED, HELD_OUT_SEED = 7, 99
LOG_EVERY, SAVE_EVERY = 10, 100


@dataclass(frozen=True)
class Plan:
    """How long and on what shape of batch; the last `LONG_FROM` of the steps see rows of full length."""

    steps: int
    tokens_per_step: int = 2048
    length: int = 256
    long_length: int = 1024
    long_from: float = 0.86

    def shape(self, step: int) -> tuple[int, int]:
        length = self.long_length if step >= self.long_from * self.steps else self.length
        return self.tokens_per_step // length, length


PLANS = {"folio": Plan(steps=1600), "folio-draft": Plan(steps=1500)}


def load_tokenizer() -> Tokenizer:
    """The tokenizer in the work folder, trained first if it is not there."""
    folder = WORK / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_tokenizer(TOKENIZER_SEED), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def load_model(path: Path) -> SmallLlama:
    """A model from a checkpoint of this file."""
    saved = torch.load(path, weights_only=True, mmap=True)
    model = SmallLlama(SHAPES[saved["name"]])
    model.load_state_dict(saved["model"])
    return model.eval()


def learned_loss(model: SmallLlama, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy over the counted labels only; other rows never reach the vocabulary."""
    counted = labels >= 0
    return F.cross_entropy(model.logits(hidden[counted]), labels[counted])


def distilled_loss(model: SmallLlama, hidden: Tensor, batch: Batch, teacher: SmallLlama) -> Tensor:
    """Half cross entropy, half divergence from the teacher's distribution."""
    counted = batch.labels >= 0
    with torch.no_grad():
        target = F.log_softmax(teacher.logits(teacher(batch.inputs)[counted]), dim=-1)
    logits = model.logits(hidden[counted])
    divergence = F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean", log_target=True)
    return 0.5 * F.cross_entropy(logits, batch.labels[counted]) + 0.5 * divergence


class Training:
    """The state of one run: model, optimizer, data, step and the log."""

    def __init__(self, name: str, plan: Plan, teacher: SmallLlama | None = None, compile_model: bool = True):
        torch.manual_seed(SEED)
        self.name, self.plan, self.teacher = name, plan, teacher
        self.folder = WORK / name
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer()
        self.model = SmallLlama(SHAPES[name])
        self.optimizer = Optimizer(self.model)
        self.forward: Callable = torch.compile(self.model, dynamic=False) if compile_model else self.model
        self.data = Packer(stream(SEED), tokenizer)
        rng = Random(HELD_OUT_SEED)
        held_out = (make_chat(rng, "held_out") for _ in iter(int, 1))
        self.held_out = Packer(held_out, tokenizer).batch(16, plan.length)
        self.step = 0
        self.log: list[dict] = []
        self.seconds = 0.0

    def resume(self) -> None:
        saved = torch.load(self.folder / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.log, self.seconds = saved["step"], saved["log"], saved["seconds"]
        for step in range(self.step):
            self.data.batch(*self.plan.shape(step))

    def save(self) -> None:
        state = {
            "name": self.name, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "log": self.log, "seconds": self.seconds,
        }  # fmt: skip
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def loss(self, batch: Batch) -> Tensor:
        hidden = self.forward(batch.inputs)
        if self.teacher is not None:
            return distilled_loss(self.model, hidden, batch, self.teacher)
        return learned_loss(self.model, hidden, batch.labels)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        return learned_loss(self.model, self.model(self.held_out.inputs), self.held_out.labels).item()

    def run(self) -> None:
        started, recent = time.perf_counter(), []
        while self.step < self.plan.steps:
            loss = self.loss(self.data.batch(*self.plan.shape(self.step)))
            loss.backward()
            self.optimizer.step(self.step / self.plan.steps)
            self.step += 1
            recent.append(loss.item())
            if self.step % LOG_EVERY == 0:
                now = time.perf_counter()
                self.seconds += now - started
                self.record(
                    sum(recent) / len(recent), len(recent) * self.plan.tokens_per_step / (now - started)
                )
                started, recent = now, []
            if self.step % SAVE_EVERY == 0 or self.step == self.plan.steps:
                self.save()

    def record(self, loss: float, rate: float) -> None:
        entry = {
            "step": self.step,
            "seconds": round(self.seconds),
            "loss": round(loss, 4),
            "rate": round(rate),
        }
        if self.step % SAVE_EVERY == 0:
            entry["held_out_loss"] = round(self.held_out_loss(), 4)
        self.log.append(entry)
        print(json.dumps(entry), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=sorted(SHAPES), default="folio")
    parser.add_argument("--steps", type=int, help="number of steps; the plan of the model by default")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--teacher", type=Path, help="a checkpoint to distil from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = Plan(steps=args.steps) if args.steps else PLANS[args.name]
    teacher = load_model(args.teacher) if args.teacher else None
    training = Training(args.name, plan, teacher, not args.no_compile)
    if args.resume:
        training.resume()
    training.run()


if __name__ == "__main__":
    main()
