"""A check changes a model for a moment only, and says where it cannot be made; the set is open."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from addnorm import cli, lint
from addnorm.anatomy.make_inputs import make_inputs
from addnorm.anatomy.specimen import Specimen
from addnorm.linting.check import CHECKS, Answers, decides
from addnorm.linting.findings import Unknown
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from tests.attention_hosts import (
    VOCAB,
    Encoder,
    TinyGPT,
    bert,
    built,
)
from tests.linting.asking import CHECKS_ON_CHANGES, ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


@pytest.fixture(params=[TinyGPT, lambda: Encoder(pool="mean"), bert])
def subject(request: pytest.FixtureRequest) -> Subject:
    model = built(request.param)
    probe = copy.deepcopy(model).eval()
    return Subject(model, Specimen(probe, make_inputs(probe)))


def test_nothing_is_left_behind(subject: Subject) -> None:
    def state(model: nn.Module) -> list[Any]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [(p.requires_grad, p.grad) for p in model.parameters()]
        return [hooks, [m.training for m in model.modules()], flags]

    models = (subject.original, subject.model)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    states, rng = [state(m) for m in models], torch.get_rng_state()
    for check in CHECKS_ON_CHANGES:
        list(check.run(subject))
    assert torch.equal(rng, torch.get_rng_state())
    assert [state(m) for m in models] == states
    for model, old in zip(models, before, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, old[name]), name


def test_inputs_of_the_user_are_taken_as_they_are() -> None:
    model = built(TinyGPT, mask="off by one")
    for given in (torch.randint(0, VOCAB, (5, 5)), {"idx": torch.randint(0, VOCAB, (2, 16))}):
        assert the(ask(model, "future-leak", inputs=given), "future-leak").module
    one = ask(model, "batch-leak", inputs=torch.randint(0, VOCAB, (1, 8)))
    assert [type(u) for u in one] == [Unknown]


def test_no_sequence_is_an_unknown() -> None:
    said = ask(nn.Linear(4, 3), "future-leak", "batch-leak", inputs=torch.tensor(1.0).expand(4))
    assert said
    assert all(isinstance(one, Unknown) for one in said)


# --- the register ---------------------------------------------------------------------------------


@pytest.fixture
def toy() -> Iterator[Rule]:
    """A rule of somebody else's, for as long as a test lasts."""
    before = [*CHECKS]
    rule = Rule(
        "bias-in-branch",
        "matrices with a bias, which nobody here likes",
        family="Toys",
        evidence={"biases": "how many there are"},
        cases={"some": Case("note", "{module} has {biases} biases.", "Build it without.")},
    )

    @decides(rule)
    def biases(subject: Subject) -> Answers:
        for path, module in subject.original.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                yield rule("some", path, biases=module.bias.numel())

    yield rule
    CHECKS[:] = before


def test_a_rule_from_elsewhere_is_a_rule(
    toy: Rule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = lint(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    assert toy.name in report.checked
    (finding,) = [f for f in report.findings if f.rule == toy.name]
    assert (finding.module, finding.message) == ("0", "0 has 3 biases.")
    assert toy.name not in report.without([toy.name]).to_json()

    assert cli.main(["lint", "--rules"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=1) == [toy.name, toy.finds]
    assert cli.main(["lint", "--explain", toy.name]) == 0
    assert capsys.readouterr().out == (
        "# bias-in-branch\n\nIt finds matrices with a bias, which nobody here likes.\n\n"
        "- note: {module} has {biases} biases.\n\n"
        "| evidence | is |\n|---|---|\n| `biases` | how many there are |\n"
    )
    path = tmp_path / "net.py"
    path.write_text("import torch\ndef net(): return torch.nn.Linear(4, 3), torch.ones(2, 4)\n")
    assert cli.main(["lint", f"{path}:net", "--json"]) == 0
    assert toy.name in capsys.readouterr().out
    assert cli.main(["lint", f"{path}:net", "--json", "--ignore", toy.name]) == 0
    report = json.loads(capsys.readouterr().out)
    assert toy.name not in {f["rule"] for f in report["findings"]}
    assert {one["finding"]["rule"] for one in report["ignored"]} == {toy.name}


def test_a_name_belongs_to_one_rule(toy: Rule) -> None:
    before = [*CHECKS]
    with pytest.raises(ValueError, match="another rule that is called bias-in-branch"):
        decides(replace(toy, finds="something else"))(lambda subject: iter(()))
    assert before == CHECKS
