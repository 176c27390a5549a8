"""Kept for imports written for vLLM's module paths; what is behind them lives in `quire.models`."""
