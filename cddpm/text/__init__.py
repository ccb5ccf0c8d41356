"""Text for people: no line, in a terminal of any width or in a file, breaks a word, a path or a number.

``Console`` prints lines, ``Table`` rows and ``Tree`` what descends from what. Words are what spaces part; ``whole`` and
``path`` mark what stays together although it may hold spaces, ``name`` a dotted name, which may be broken after its dots.
``command`` joins the words of a shell command; every command that is printed is made by it.
All take and give Rich's markup.
"""

from cddpm.text.console import Console
from cddpm.text.table import Table
from cddpm.text.tree import Tree
from cddpm.text.words import command, name, near, path, printable, whole

__all__ = ["Console", "Table", "Tree", "command", "name", "near", "path", "printable", "whole"]
