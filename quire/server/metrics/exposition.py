"""In which of Prometheus' two formats `/metrics` answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

_OPEN = "application/openmetrics-text"
_OPEN_TYPE = f"{_OPEN}; version=1.0.0; charset=utf-8"


def choose_format(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """(what makes bytes of a registry, their content type) for an `Accept` header: OpenMetrics 1.0 where it is asked for, else
    text. Names stay as they are: prometheus_client's own choice writes `vllm_` for `vllm:` to most scrapers.
    """
    if any(_is_open_metrics(media_type) for media_type in accept.split(",")):
        return partial(openmetrics.generate_latest, escaping=openmetrics.ALLOWUTF8), _OPEN_TYPE
    return generate_latest, CONTENT_TYPE_PLAIN_0_0_4


def _is_open_metrics(media_type: str) -> bool:
    """Version 1, or any; 0.0.1 is a draft."""
    name, *parameters = (part.strip() for part in media_type.split(";"))
    versions = [value for key, _, value in (part.partition("=") for part in parameters) if key == "version"]
    return name == _OPEN and (not versions or versions[0].startswith("1."))
