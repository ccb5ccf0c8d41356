"""A quarter of an hour on a GPU: what must be right there, and how fast it is. ``tests/gpu/check.sh`` runs it.

command -> run (one process per part, its time limit) -> part -> ceilings, correct, train, reconstruct, learn, profile
                                                           -> record (one JSON file a part) -> table, baseline
"""
