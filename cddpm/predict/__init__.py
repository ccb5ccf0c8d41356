"""A model on scans of any grid: found, predicted, written beside each other."""
