"""Thin aliases for module paths that deployments already use; nothing here does work of its own."""
