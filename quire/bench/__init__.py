"""Benchmarks behind `quire bench`: the same workloads against an engine in this process or against any
running server.
"""
