"""`python -m tools.metrics_page` writes the tables of docs/metrics.md from what a server exposes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import Metric

from quire.config.types import EngineConfig, HFConfig, ModelConfig
from quire.engine.stats import EngineStats
from quire.server.metrics import ServerMetrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
MARK = "<!-- From here on: python -m tools.metrics_page -->\n"

_ORIGINS = (
    ("vllm:", "vLLM's names"),
    ("tgi_", "Text Generation Inference's names"),
    ("llamacpp:", "llama.cpp's names"),
    ("http_", "HTTP, as prometheus-fastapi-instrumentator names it (vLLM too)"),
    ("quire:", "Quire's own"),
    ("", "The server's process, as prometheus_client names it"),
)
_UNITS = (("_seconds", "s"), ("_bytes", "bytes"), ("_perc", "share"), ("tokens", "tokens"), ("prefix_cache", "tokens"))
"""By the first that a name holds."""
_OTHER_UNITS = {
    "llamacpp:prompt_tokens_seconds": "tokens/s",
    "llamacpp:predicted_tokens_seconds": "tokens/s",
    "llamacpp:n_busy_slots_per_decode": "tokens",
    "tgi_request_duration": "s",
    "tgi_request_validation_duration": "s",
    "tgi_request_queue_duration": "s",
    "tgi_request_inference_duration": "s",
    "tgi_request_mean_time_per_token_duration": "s",
    "tgi_request_input_length": "tokens",
}
_AMENDED_LABELS = {"le", "quantile"}


def exposed() -> list[Metric]:
    """Every family of a server with one model, each with a sample."""
    hf = HFConfig("Mock", "mock", 8, 8, 8, 1, 1, 1, 8, 4096)
    metrics = ServerMetrics(4096)
    config = EngineConfig(ModelConfig("mock", "", "", hf, "float32", 4096, ("mock",)))
    metrics.of_model("mock", EngineStats, config)
    metrics.count_http("/health", "GET", 200, 0.0, 0, 0)
    families: list[Metric] = []
    metrics.render(lambda registry: families.extend(registry.collect()) or b"")
    return families


def name_of(family: Metric) -> str:
    """As a query names it: counters end in `_total`."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(family: Metric) -> list[str]:
    """Its labels, without those that the type brings."""
    return sorted({label for sample in family.samples for label in sample.labels} - _AMENDED_LABELS)


def unit_of(name: str) -> str:
    """Of its values; empty for counts of requests, steps and the like."""
    return _OTHER_UNITS.get(name) or next((unit for part, unit in _UNITS if part in name), "")


def tables(families: Iterable[Metric]) -> str:
    """A table for each origin of names."""
    rest = sorted(families, key=name_of)
    parts = []
    for prefix, title in _ORIGINS:
        mine = [family for family in rest if family.name.startswith(prefix)]
        rest = [family for family in rest if family not in mine]
        rows = [
            f"| `{name_of(family)}` | {family.type} | {', '.join(labels_of(family))} | {unit_of(name_of(family))} "
            f"| {family.documentation} |"
            for family in mine
        ]
        head = [f"\n## {title}\n", "| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
        parts.append("\n".join([*head, *rows, ""]))
    return "".join(parts)


def updated(page: str) -> str:
    """The page with the tables of today."""
    return page[: page.index(MARK) + len(MARK)] + tables(exposed())


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
