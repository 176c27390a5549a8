"""The core: requests, blocks and the scheduler. Pure Python; imports no torch."""
