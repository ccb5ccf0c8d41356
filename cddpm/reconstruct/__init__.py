"""What a model makes of a volume, predicted once per noise level, seed and branch, and kept."""
