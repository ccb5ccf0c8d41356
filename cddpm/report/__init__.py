"""Sweeps and scans as HTML pages that open anywhere."""
