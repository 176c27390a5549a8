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
from typing import NamedTuple

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
LOG_EVERY, SAVE_EVERY = 10, 50


class Stage(NamedTuple):
    """A number of steps on batches of one shape; `isolated` hides the other documents of a row."""

    steps: int
    rows: int
    length: int
    isolated: bool

    def num_tokens(self) -> int:
        return self.steps * self.rows * self.length


@dataclass(frozen=True)
class Plan:
    """Stages in order: rows of documents by themselves, then rows of full length, at last short ones again."""

    stages: tuple[Stage, ...]

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("the plan has ended")


PLANS = {
    "folio": Plan(
        (Stage(1920, 4, 256, True), Stage(1300, 8, 256, True), Stage(160, 2, 1024, False), Stage(340, 8, 256, True))
    ),
    "folio-draft": Plan((Stage(1000, 4, 256, True), Stage(20, 1, 1024, False))),
}


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


def distilled_loss(
    model: SmallLlama, hidden: Tensor, batch: Batch, teacher_hidden: Tensor, teacher: SmallLlama
) -> Tensor:
    """Half cross entropy, half divergence from the teacher's distribution."""
    counted = batch.labels >= 0
    with torch.no_grad():
        target = F.log_softmax(teacher.logits(teacher_hidden[counted]), dim=-1)
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
        self.compiled: Callable = torch.compile(self.model, dynamic=False) if compile_model else self.model
        self.data = Packer(stream(SEED), tokenizer)
        rng = Random(HELD_OUT_SEED)
        held_out = (make_chat(rng, "held_out") for _ in iter(int, 1))
        self.held_out = Packer(held_out, tokenizer).batch(16, 256)
        self.step = 0
        self.log: list[dict] = []
        self.seconds = 0.0

    def resume(self) -> None:
        """Go on from the checkpoint if there is one; the data continue where they were."""
        if not (self.folder / "checkpoint.pt").exists():
            return
        saved = torch.load(self.folder / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.log, self.seconds = saved["step"], saved["log"], saved["seconds"]
        for step in range(self.step):
            self.batch(step)

    def save(self) -> None:
        state = {
            "name": self.name, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "step": self.step, "log": self.log, "seconds": self.seconds,
        }  # fmt: skip
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def batch(self, step: int) -> Batch:
        stage = self.plan.stage(step)
        return self.data.batch(stage.rows, stage.length)

    def loss(self, batch: Batch, stage: Stage) -> Tensor:
        mask = batch.mask() if stage.isolated else None
        # Only the longest stage is worth the minute that compiling for a shape takes.
        forward = self.compiled if stage == max(self.plan.stages, key=Stage.num_tokens) else self.model
        hidden = forward(batch.inputs, mask)
        if self.teacher is None:
            return learned_loss(self.model, hidden, batch.labels)
        with torch.no_grad():
            teacher_hidden = self.teacher(batch.inputs, mask)
        return distilled_loss(self.model, hidden, batch, teacher_hidden, self.teacher)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        hidden = self.model(self.held_out.inputs, self.held_out.mask())
        return learned_loss(self.model, hidden, self.held_out.labels).item()

    def run(self) -> None:
        started, recent, num_tokens = time.perf_counter(), [], 0
        while self.step < self.plan.steps:
            batch = self.batch(self.step)
            loss = self.loss(batch, self.plan.stage(self.step))
            loss.backward()
            self.optimizer.step(self.step / self.plan.steps)
            self.step += 1
            recent.append(loss.item())
            num_tokens += batch.inputs.numel()
            if self.step % LOG_EVERY == 0 or self.step == self.plan.steps:
                now = time.perf_counter()
                self.seconds += now - started
                self.record(sum(recent) / len(recent), num_tokens / (now - started))
                started, recent, num_tokens = now, [], 0
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
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument("--teacher", type=Path, help="a checkpoint to distil from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    teacher = load_model(args.teacher) if args.teacher else None
    training = Training(args.name, PLANS[args.name], teacher, not args.no_compile)
    if args.resume:
        training.resume()
    training.run()


if __name__ == "__main__":
    main()
