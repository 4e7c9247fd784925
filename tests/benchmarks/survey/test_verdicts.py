"""The table of verdicts is whole, and a finding without one is told."""

from pathlib import Path

import pytest

from benchmarks.survey.verdicts import Verdict, unjudged, verdict_of, verdicts

ROOT = Path(__file__).parents[3]
FINDING = {"rule": "double-norm", "severity": "warning", "module": "h.1.norm"}


def test_the_table_can_be_read_and_its_tests_exist() -> None:
    for verdict in verdicts():
        if verdict.test:
            path, _, name = verdict.test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), verdict


def test_the_first_that_fits_decides() -> None:
    narrow = Verdict("a b*", "double-norm", "by design", "why", module="h.*")
    wide = Verdict("a *", "double-norm", "false", "why")
    assert verdict_of([narrow, wide], "a bc", FINDING) is narrow
    assert verdict_of([narrow, wide], "a c", FINDING) is wide
    assert verdict_of([narrow, wide], "b c", FINDING) is None
    assert verdict_of([wide], "a c", FINDING | {"rule": "no-residual"}) is None


def test_a_note_needs_no_verdict() -> None:
    results = [{"name": "a b", "findings": [FINDING, FINDING | {"severity": "note", "module": ""}]}]
    assert unjudged([], results) == [("a b", FINDING)]
    assert not unjudged([Verdict("a b", "double-norm", "false", "why")], results)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('judgement = "maybe"\nwhy = "w"', "must be one of"),
        ('judgement = "false"\nwhy = " "', "does not say why"),
        ('judgement = "true"\nwhy = "w"', "needs a test"),
    ],
)
def test_a_verdict_says_enough(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "verdicts.toml"
    path.write_text(f'[[verdict]]\narchitecture = "a"\nrule = "r"\n{lines}\n')
    with pytest.raises(ValueError, match=message):
        verdicts(path)
