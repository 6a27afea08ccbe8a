"""The exception for data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: the message names the file, the item, what was expected and the remedy."""
