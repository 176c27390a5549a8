"""Architectures without a file in Quire, on the classes of transformers: which there are, their layers, attention and names."""
