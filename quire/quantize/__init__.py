"""`quire quantize`: from a checkpoint in floats to one in integers, in the layout of compressed-tensors.

grid.py says what integers can stand for, rounding.py chooses them (rounding to nearest, GPTQ), awq.py makes weights easier to
round, calibration.py watches what a model's layers read, checkpoint.py reads and writes files, and pipeline.py puts it together.
"""
