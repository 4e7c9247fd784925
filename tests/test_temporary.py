"""What changes for a moment is put back, also when something fails inside."""

import random
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn

from addnorm.temporary import evaluation_mode, fixed_seed, hooked, isolated, undisturbed


class Failure(Exception):
    pass


def net():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3))
    model[2].eval()
    return model


def modes(model):
    return [m.training for m in model.modules()]


def test_evaluation_mode():
    model = net()
    before = modes(model)
    with suppress(Failure), evaluation_mode(model.modules()):
        assert not any(modes(model))
        raise Failure
    assert modes(model) == before == [True, True, True, False]


def test_a_fixed_seed():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draws = []
    for seed in (1, 1, 2):
        with fixed_seed(seed):
            draws.append(torch.rand(5))
    with pytest.raises(Failure), fixed_seed():
        raise Failure
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(5), draws[0])


@pytest.mark.parametrize("gradients", [True, False, None])
@pytest.mark.parametrize("callers", [True, False])
def test_a_model_is_undisturbed(gradients, callers):
    model = net()
    state, before = torch.get_rng_state(), modes(model)
    with torch.set_grad_enabled(callers):
        with suppress(Failure), undisturbed(model, gradients=gradients):
            warnings.warn("not heard", stacklevel=1)
            assert not any(modes(model))
            assert torch.is_grad_enabled() is (callers if gradients is None else gradients)
            torch.rand(1)
            model[0].train()
            raise Failure
        assert torch.is_grad_enabled() is callers
    assert modes(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_evaluates_in_a_way_of_its_own():
    class Frozen(nn.Linear):
        def train(self, mode=True):
            self.calls = [*getattr(self, "calls", []), mode]
            return super().train(mode)

    model = Frozen(2, 2)
    with undisturbed(model):
        assert model.calls == [False]


def test_isolated():
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    with torch.no_grad(), suppress(Failure), isolated():
        random.random(), np.random.rand(), torch.rand(1)
        assert torch.is_grad_enabled()
        raise Failure
    after = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


def test_hooks_are_removed():
    model = net().eval()
    events = []
    x = torch.ones(2, 3)
    plain = model(x)

    def before(module, args, kwargs):
        events.append(("before", module))
        return (args[0] * 2, *args[1:]), kwargs

    def after(module, args, kwargs, out):
        events.append(("after", module))
        return out + 1

    with hooked(model[:1], before=before, after=after):
        torch.testing.assert_close(model(x), model[1:](model[0].forward(x * 2) + 1))
    assert events[:2] == [("before", model[0]), ("after", model[0])]
    with pytest.raises(Failure), hooked(model.modules(), after=after):
        raise Failure
    events.clear()
    assert torch.equal(model(x), plain)
    assert not events


def test_hooks_are_removed_if_one_of_them_cannot_be_made():
    class Closed(nn.Identity):
        def register_forward_hook(self, *args, **kwargs):
            raise Failure

    model = nn.Linear(2, 2)
    with pytest.raises(Failure), hooked([model, Closed()], after=lambda *_: None):
        pass
    assert not model._forward_hooks
