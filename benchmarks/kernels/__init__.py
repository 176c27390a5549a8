"""Each kernel as a fraction of what the machine can do: `python -m benchmarks.kernels`."""
