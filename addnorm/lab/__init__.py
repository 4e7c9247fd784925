"""Comparing designs by measurement.

``measurement`` finds what a design does to signal and gradient at initialization, under the
conditions of a ``setup.Setup``; ``pages.schemes`` shows it.
"""
