"""Puts the root of the repository on the path, where `tools` lives."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
