"""The machinery of `benchmarks/gpu_check.py`."""
