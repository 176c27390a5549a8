"""Ollama's protocol: `/api/generate`, `/api/chat` and the management of models."""
