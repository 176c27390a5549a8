"""Quire: an LLM inference and serving engine. Public names live here and are imported lazily."""

__version__ = "0.1.0"
