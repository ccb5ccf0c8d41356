"""A benchmark: methods on folds and data sets, measured, compared and tabled."""
