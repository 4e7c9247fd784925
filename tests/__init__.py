"""Tests of the library, with independent references in `tests.references`."""
