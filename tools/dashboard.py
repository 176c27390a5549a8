"""`python -m tools.dashboard` writes deploy/grafana/quire.json, a Grafana dashboard over the names of docs/metrics.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "quire.json"

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_MODEL = '{model_name=~"$model"}'
_RATE = "[$__rate_interval]"
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
"""Of a panel, in Grafana's grid of 24 columns."""


@dataclass(frozen=True)
class Panel:
    """A graph: its lines are (query, legend)."""

    title: str
    unit: str
    """One of Grafana's names of units."""
    lines: tuple[tuple[str, str], ...]


def _rate(name: str, labels: str = _MODEL) -> str:
    return f"sum(rate({name}{labels}{_RATE}))"


def _times(name: str) -> tuple[tuple[str, str], ...]:
    """Percentiles of a histogram."""
    buckets = f"sum by (le) (rate({name}_bucket{_MODEL}{_RATE}))"
    return tuple((f"histogram_quantile({share}, {buckets})", f"p{100 * share:.0f}") for share in (0.5, 0.95, 0.99))


def _per_step(name: str, most: str) -> str:
    return f"{_rate(name)} / {_rate('quire:engine_steps_total')} / max({most}{_MODEL})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Traffic",
        (
            Panel("Requests", "reqps", ((f"sum by (handler) (rate(http_requests_total{_RATE}))", "{{handler}}"),)),
            Panel("Sequences by their end", "reqps", (
                (f"sum by (finished_reason) (rate(vllm:request_success_total{_MODEL}{_RATE}))", "{{finished_reason}}"),
            )),
            Panel("Running and waiting", "short", (
                (f"sum(vllm:num_requests_running{_MODEL})", "running"),
                (f"sum(vllm:num_requests_waiting{_MODEL})", "waiting"),
                (f"sum(vllm:num_requests_swapped{_MODEL})", "swapped"),
            )),
        ),
    ),
    (
        "Latency",
        (
            Panel("Time to first token", "s", _times("vllm:time_to_first_token_seconds")),
            Panel("Time between tokens", "s", _times("vllm:inter_token_latency_seconds")),
            Panel("End to end", "s", _times("vllm:e2e_request_latency_seconds")),
            Panel("Queue", "s", _times("vllm:request_queue_time_seconds")),
            Panel("Prefill", "s", _times("vllm:request_prefill_time_seconds")),
            Panel("Decode", "s", _times("vllm:request_decode_time_seconds")),
        ),
    ),
    (
        "Tokens",
        (
            Panel("Throughput", "short", (
                (_rate("vllm:prompt_tokens_total"), "prompt tokens/s"),
                (_rate("vllm:generation_tokens_total"), "generated tokens/s"),
            )),
            Panel("Prompt length", "short", _times("vllm:request_prompt_tokens")),
            Panel("Output length", "short", _times("vllm:request_generation_tokens")),
        ),
    ),
    (
        "Batch",
        (
            Panel("Batch efficiency", "percentunit", (
                (_per_step("quire:engine_step_requests_total", "quire:engine_step_max_requests"), "seats taken"),
                (_per_step("quire:engine_step_tokens_total", "quire:engine_step_max_tokens"), "token budget used"),
            )),
            Panel("Tokens per step", "short", _times("vllm:iteration_tokens_total")),
            Panel("Time per step", "s", (
                (f"{_rate('quire:engine_step_seconds_total')} / {_rate('quire:engine_steps_total')}", "mean"),
            )),
        ),
    ),
    (
        "KV cache",
        (
            Panel("KV cache in use", "percentunit", (
                (f"vllm:kv_cache_usage_perc{_MODEL}", "{{model_name}}"),
                (f"vllm:cpu_cache_usage_perc{_MODEL}", "{{model_name}} on the host"),
            )),
            Panel("Prefix hits", "percentunit", (
                (f"{_rate('vllm:prefix_cache_hits_total')} / {_rate('vllm:prefix_cache_queries_total')}", "tokens found"),
            )),
            Panel("Preemptions", "short", ((_rate("vllm:num_preemptions_total"), "per second"),)),
        ),
    ),
    (
        "Errors and restarts",
        (
            Panel("Responses by status", "reqps", (
                (f"sum by (code) (rate(quire:http_responses_total{_RATE}))", "{{code}}"),
            )),
            Panel("Failures", "reqps", (
                (f"sum by (err) (rate(tgi_request_failure{_RATE}))", "{{err}}"),
                (_rate("vllm:admission_rejections_total"), "not admitted"),
                (_rate("quire:engine_failed_requests_total"), "failed in the engine"),
            )),
            Panel("Engines up and restarts", "short", (
                (f"quire:engine_up{_MODEL}", "{{model_name}} up"),
                (f"sum(increase(quire:engine_restarts_total{_MODEL}[1h]))", "restarts of an engine within an hour"),
                ("changes(process_start_time_seconds[1h])", "restarts of the server within an hour"),
            )),
        ),
    ),
    (
        "Machine",
        (
            Panel("Memory", "bytes", (
                ("quire:process_resident_memory_bytes", "{{process}}"),
                (f"quire:weight_bytes{_MODEL}", "{{model_name}} weights"),
                (f"quire:kv_cache_bytes{_MODEL}", "{{model_name}} KV cache"),
            )),
            Panel("Processors", "short", ((f"rate(quire:process_cpu_seconds_total{_RATE})", "{{process}}"),)),
            Panel("Open files", "short", (("process_open_fds", "server"),)),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's JSON model."""
    return {
        "uid": "quire",
        "title": "Quire",
        "description": "Traffic, latency, batching, KV cache and health of Quire.",
        "tags": ["llm", "quire"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "refresh": "10s",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_source_variable(), _model_variable()]},
        "panels": _panels(),
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "hide": 0, "refresh": 1}


def _model_variable() -> dict[str, Any]:
    query = "label_values(vllm:num_requests_running, model_name)"
    return {
        "name": "model",
        "label": "Model",
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "model"},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "refresh": 2,
        "sort": 1,
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        for index, panel in enumerate(row):
            line, column = divmod(index, _PER_ROW)
            place = {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": y + line * _HEIGHT}
            panels.append(_graph(len(panels) + 1, panel, place))
        y += -(-len(row) // _PER_ROW) * _HEIGHT
    return panels


def _graph(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
        for index, (expression, legend) in enumerate(panel.lines)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n")
