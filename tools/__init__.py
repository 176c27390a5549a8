"""Tools that build what Quire ships; nothing here is imported by the package."""
