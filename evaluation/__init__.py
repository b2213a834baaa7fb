"""Measuring renders against ground truth: protocols, metrics beyond `training.evaluation`, reports.

`evaluate.py` is the command. Single views are measured by the same functions that measure them for
`render_emb.py` and `render_hash.py`, so that the numbers are the same.
"""
