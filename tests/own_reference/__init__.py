"""Reference arrays of this project's own making: the files and keys of the published code's, from our float64 networks.

They stand in for the published code's where those are not at hand (``FROZEN``, whose results are kept in ``results.npz``;
``PYTHONPATH=.:tests python -m own_reference --overwrite`` freezes them anew), and they show that the tests read every size
from the arrays (``OTHERS``, made anew).
"""
