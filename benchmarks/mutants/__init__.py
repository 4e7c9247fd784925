"""Looks for holes in the tests: breaks the code in one place at a time, and asks who notices."""
