"""The version of this package: the one place that says it, for the code and for the build."""

__version__ = "0.1.0"
