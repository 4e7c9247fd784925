"""Lint: what is wired wrong in anybody's Transformer, before training.

``lint(model)`` runs the model a few times on inputs it makes up, looks at the operations that ran
and at who notices what, and returns findings with their evidence. Of classes it knows torch's own;
what other libraries call things counts as a claim. ``docs/lint.md`` tells how to read the findings;
``addnorm lint --explain RULE`` tells more.
"""

import addnorm.linting.rules  # noqa: F401  they register themselves
from addnorm.linting.findings import Finding, Ignore, IgnoredFinding, Unknown
from addnorm.linting.report import Report
from addnorm.linting.run import lint

__all__ = ["Finding", "Ignore", "IgnoredFinding", "Report", "Unknown", "lint"]
