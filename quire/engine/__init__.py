"""Requests in, outputs out: tokenizing, the step loop, detokenizing,
and the border between the two processes.
"""
