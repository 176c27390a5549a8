"""Saves the loss curves of both models beside the results, as JSON and as one small SVG."""

import json

import torch

from tools.folio.evaluate import RESULTS
from tools.folio.train import WORK

WIDTH, HEIGHT, MARGIN, MAX_LOSS = 640, 320, 40, 4.0
FONT = 'font-family="sans-serif" font-size="12"'
COLOURS = {"folio": "#1f5fa8", "folio-draft": "#b5622a"}


def read_log(name: str) -> list[dict]:
    return torch.load(WORK / name / "checkpoint.pt", weights_only=True)["log"]


def points(log: list[dict], key: str) -> str:
    """SVG coordinates of one curve; steps to the right, loss upwards, cut at MAX_LOSS."""
    last = log[-1]["step"]
    entries = [entry for entry in log if key in entry]
    xs = [MARGIN + (WIDTH - 2 * MARGIN) * entry["step"] / last for entry in entries]
    ys = [HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * min(entry[key], MAX_LOSS) / MAX_LOSS for entry in entries]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def draw(logs: dict[str, list[dict]]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in range(int(MAX_LOSS) + 1):
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * loss / MAX_LOSS
        lines.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{MARGIN - 14}" y="{y + 4}">{loss}</text>')
    for i, (name, log) in enumerate(logs.items()):
        colour = COLOURS[name]
        lines.append(f'<polyline fill="none" stroke="{colour}" points="{points(log, "loss")}"/>')
        lines.append(
            f'<polyline fill="none" stroke="{colour}" stroke-dasharray="4 3" points="{points(log, "held_out_loss")}"/>'
        )
        label = f"{name}: {log[-1]['step']} steps (dashed: held-out phrasings)"
        lines.append(f'<text x="{WIDTH // 3}" y="{MARGIN + 18 * i}" fill="{colour}">{label}</text>')
    lines.append(
        f'<text x="{WIDTH // 3}" y="{HEIGHT - 12}">training, left to right; loss per learned token</text>'
    )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    logs = {name: read_log(name) for name in COLOURS if (WORK / name / "checkpoint.pt").exists()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = {name: "[\n  " + ",\n  ".join(map(json.dumps, log)) + "\n ]" for name, log in logs.items()}
    body = ",\n ".join(f'"{name}": {text}' for name, text in rows.items())
    (RESULTS / "loss.json").write_text(f"{{\n {body}\n}}\n", encoding="utf-8")
    (RESULTS / "loss.svg").write_text(draw(logs), encoding="utf-8")


if __name__ == "__main__":
    main()
