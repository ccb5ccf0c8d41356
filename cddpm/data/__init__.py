"""From split files and NIfTI to memory-mapped slices."""
