"""The page at `/` for browsers, and `/stats`, which feeds its live views."""
