"""A sweep: what is tried, in which order, and what came of it."""
