"""What a person judged of a finding, kept in ``verdicts.toml``.

    [[verdict]]
    architecture = "transformers GPT2LMHeadModel*"   # as fnmatch
    rule = "double-norm"
    module = "*.ln_f"                                # any, where it is left out
    judgement = "true"                               # "true", "by design" or "false"
    why = "what exactly is wrong, or why it is right"
    test = "tests/...py::test_name"                  # of what is true: measured without lint
    since = "5.9"                                    # of what is true, where it is known

Every error and every warning of the survey must have one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("verdicts.toml")
JUDGEMENTS = ("true", "by design", "false")


@dataclass(frozen=True)
class Verdict:
    """One judgement, of every finding that it fits."""

    architecture: str
    rule: str
    judgement: str
    why: str
    module: str = "*"
    test: str = ""
    since: str = ""

    def fits(self, architecture: str, finding: dict[str, Any]) -> bool:
        """Whether it is about this finding."""
        return (
            self.rule == finding["rule"]
            and fnmatchcase(architecture, self.architecture)
            and fnmatchcase(finding["module"], self.module)
        )


def verdicts(path: Path = PATH) -> list[Verdict]:
    """All of a table; a ``ValueError`` names one that says too little."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("verdict", [])
    table = [Verdict(**entry) for entry in entries]
    for verdict in table:
        if verdict.judgement not in JUDGEMENTS:
            raise ValueError(f"{verdict}: the judgement must be one of {', '.join(JUDGEMENTS)}")
        if not verdict.why.strip():
            raise ValueError(f"{verdict}: it does not say why")
        if verdict.judgement == "true" and not verdict.test:
            raise ValueError(f"{verdict}: what is true needs a test that measures it without lint")
    return table


def verdict_of(
    table: Sequence[Verdict], architecture: str, finding: dict[str, Any]
) -> Verdict | None:
    """The first that fits, so that the narrower stand before the wider."""
    return next((v for v in table if v.fits(architecture, finding)), None)


def unjudged(
    table: Sequence[Verdict], results: Iterable[dict[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    """(architecture, finding) of each error and warning that has no verdict."""
    return [
        (result["name"], finding)
        for result in results
        for finding in result["findings"]
        if finding["severity"] != "note" and verdict_of(table, result["name"], finding) is None
    ]
