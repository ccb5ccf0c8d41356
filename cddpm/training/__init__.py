"""One plain loop, its stages, and the worker that Ray Train runs."""
