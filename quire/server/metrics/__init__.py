"""`/metrics`: what the engines and the requests did, under the names of vLLM, TGI and llama.cpp, so that existing
dashboards work. One registry per application, nothing global.

`engine.py` reads the engines' snapshots, `memory.py` what the processes take; `vllm.py`, `tgi.py` and `llamacpp.py` each
write requests down under one server's names, `http.py` those of the HTTP layer; `watch.py` sees the requests pass.
`docs/metrics.md` lists every name; `python -m tools.metrics_page` writes it.
"""

from quire.server.metrics.requests import ModelMetrics, ServerMetrics
from quire.server.metrics.watch import RequestWatch

__all__ = ["ModelMetrics", "RequestWatch", "ServerMetrics"]
