"""Norms in anybody's model: the formulas there are, one module under probes, and where they are."""
