"""Fixtures of the tests of the published code's part."""

from tiny_store import one_thread, store, store_path

__all__ = ["one_thread", "store", "store_path"]
