"""A check changes the model for a moment only, and says where it cannot be made."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from addnorm.anatomy.make_inputs import make_inputs
from addnorm.anatomy.specimen import Specimen
from addnorm.linting.report import Unknown
from addnorm.linting.subject import Subject
from tests.attention_hosts import (
    VOCAB,
    Encoder,
    TinyGPT,
    bert,
    built,
)
from tests.linting.asking import CHECKS, ask, the

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
    for check in CHECKS:
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
