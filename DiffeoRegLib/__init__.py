"""Diffeomorphic registration of medical images in patient space, with explicit inverses."""

__version__ = "0.1.0"
