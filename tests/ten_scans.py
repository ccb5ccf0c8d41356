"""How many synthetic scans small sweeps and benchmarks need: ten, which tests/conftest.py draws once for all of them."""

COUNTS = {"healthy_train": 4, "healthy_val": 1, "healthy_test": 1, "unhealthy_val": 2, "unhealthy_test": 2}
"""Settings below ``data.phantom``."""
