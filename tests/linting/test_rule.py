"""A rule is an object: what it does not declare cannot be said."""

from typing import Any

import pytest
import torch

from addnorm.linting import run
from addnorm.linting.check import Answers, Check
from addnorm.linting.rule import Case, Rule, Undeclared
from addnorm.linting.subject import Subject

TOY = Rule(
    "toy",
    "a model that somebody calls a toy",
    family="Toys",
    evidence={"weights": "how many there are", "size_*": "of each kind"},
    cases={
        "small": Case("note", "{module} has {weights:,} {kind} weights.", "Play with it."),
        "large": Case("error", "It has {weights:,} weights.", "Do not play with it."),
    },
)


def test_a_finding_has_the_words_and_the_severity_of_its_case() -> None:
    finding = TOY("small", "a.b", weights=1234, size_of_a=3.0, words={"kind": "red"})
    assert (finding.rule, finding.severity, finding.module) == ("toy", "note", "a.b")
    assert finding.message == "a.b has 1,234 red weights."
    assert finding.remedy == "Play with it."
    assert finding.evidence == {"weights": 1234, "size_of_a": 3.0}
    assert TOY.severities == ("error", "note")
    unknown = TOY.unknown("it is broken", "a")
    assert (unknown.rule, unknown.module, unknown.why) == ("toy", "a", "it is broken")


@pytest.mark.parametrize(
    ("case", "words", "evidence", "says"),
    [
        ("smal", {}, {"weights": 1}, "'smal' is none of its cases: small, large"),
        ("large", {}, {"weight": 1}, "does not declare weight"),
        ("large", {"kind": "red"}, {"weights": 1}, "no sentence has kind"),
        ("small", {}, {"weights": 1}, "KeyError: 'kind'"),
        ("large", {}, {"weights": "many"}, "ValueError"),
    ],
)
def test_what_a_rule_does_not_declare_cannot_be_said(
    case: str, words: dict[str, str], evidence: dict[str, Any], says: str
) -> None:
    with pytest.raises(Undeclared, match=says):
        TOY(case, "", words=words, **evidence)


def test_a_rule_is_declared_rightly_or_not_at_all() -> None:
    with pytest.raises(Undeclared, match="severity 'grave'"):
        Rule("toy", "", family="", evidence={}, cases={"a": Case("grave", "", "")})
    with pytest.raises(Undeclared, match="module or words"):
        Rule("toy", "", family="", evidence={"module": ""}, cases={})


def test_a_mistake_in_a_check_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(subject: Subject) -> Answers:
        yield TOY("huge", "", weights=1)

    monkeypatch.setattr(run, "CHECKS", [Check((TOY,), wrong)])
    with pytest.raises(Undeclared, match="'huge'"):
        run.lint(torch.nn.Linear(2, 2))
