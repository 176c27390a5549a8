"""Quire beside its peers in one run: the same requests, bits and threads for each, interleaved. Start at `__main__`."""
