"""Numba's compiler, with a place for what it has compiled also where neither this package nor the home can be written."""

import numba

from cddpm.host import settle_cache

__all__ = ["njit"]

_FOLDER = settle_cache("NUMBA_CACHE_DIR")
if _FOLDER is not None:
    # it may have been imported, and have looked, before; its settings are made when it is imported, so no type knows them
    numba.config.CACHE_DIR = str(_FOLDER)  # type: ignore[attr-defined]
njit = numba.njit
