"""`/metrics`: what the engines and the requests did, under the names of vLLM, TGI and llama.cpp, so that existing
dashboards work. One registry per application, nothing global.

`engine.py` reads the engines' snapshots; `vllm.py`, `tgi.py` and `llamacpp.py` each write requests down under one
server's names; `requests.py` sees the requests pass.
"""

from quire.server.metrics.requests import ModelMetrics, RequestWatch, ServerMetrics

__all__ = ["ModelMetrics", "RequestWatch", "ServerMetrics"]
