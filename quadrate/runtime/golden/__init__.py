"""Golden vectors: what a model gave where it was known to be right, compared with what it gives here whenever it is loaded.

The file holds texts and rankings of its own, with the vectors and raw scores that belong to them, made in float32; best by other software
than ours, such as the model's own. A model that was damaged, misread, or is run by arithmetic that does not suit it does not match, and is
not served. How near is near enough depends on the class of arithmetic: LIMITS.
"""

from quadrate.runtime.golden.cases import Case, cases, check
from quadrate.runtime.golden.comparison import LIMITS, Limit
from quadrate.runtime.golden.file import Golden, GoldenRanking, GoldenSparse, GoldenText, packed, read, write
from quadrate.runtime.golden.making import DOCUMENTS, QUERY, TEXTS, make

__all__ = [
    "DOCUMENTS",
    "LIMITS",
    "QUERY",
    "TEXTS",
    "Case",
    "Golden",
    "GoldenRanking",
    "GoldenSparse",
    "GoldenText",
    "Limit",
    "cases",
    "check",
    "make",
    "packed",
    "read",
    "write",
]
