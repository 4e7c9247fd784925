"""A model that acts: transformers' Decision Transformer on the same weights, and who sees what."""

from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm.errors import Mendable
from addnorm.models.decisions import DecisionConfig, DecisionModel, StepInput
from tests.nets import stir

TINY: dict[str, Any] = {"dim": 12, "n_layers": 2, "n_heads": 2, "context_length": 7, "longest": 9}


def moments(c: DecisionConfig, batch: int, length: int) -> dict[str, Tensor]:
    """Anything that such a model reads."""
    rng = torch.Generator().manual_seed(1)
    shape = batch, length

    def values(kind: str, size: int) -> Tensor:
        if kind == "number":
            return torch.randint(size, shape, generator=rng)
        return torch.randn(*shape, size, generator=rng)

    return {
        "returns": torch.randn(shape, generator=rng),
        "observations": values(c.state_kind, c.states),
        "actions": values(c.action_kind, c.actions),
        "times": torch.randint(c.longest, shape, generator=rng),
    }


def test_it_is_the_decision_transformer() -> None:
    """Of transformers, whose hub models are the paper's: random weights, odd shapes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.DecisionTransformerModel(
        transformers.DecisionTransformerConfig(
            state_dim=5, act_dim=3, hidden_size=12, max_ep_len=9, action_tanh=False, n_layer=2,
            n_head=2, n_inner=48, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip
    stir(theirs, 3).eval()
    config = DecisionConfig(**TINY, states=5, actions=3, state_kind="vector", action_kind="vector")
    ours = DecisionModel(config).eval()
    weights = theirs.state_dict()
    state = {
        "returns.weight": weights["embed_return.weight"],
        "returns.bias": weights["embed_return.bias"],
        "times.weight": weights["embed_timestep.weight"],
        "norm.weight": weights["embed_ln.weight"],
        # whatever the place, transformers adds the first row of a table that the paper has not
        "norm.bias": weights["embed_ln.bias"] + weights["encoder.wpe.weight"][0],
        "head.weight": weights["predict_action.0.weight"],
        "head.bias": weights["predict_action.0.bias"],
    }
    for name in ("state", "action"):
        for part in ("weight", "bias"):
            state[f"{name}s.linear.{part}"] = weights[f"embed_{name}.{part}"]
    buffers = {name: t for name, t in ours.state_dict().items() if name.endswith(BUFFERS)}
    stack = {name for name in ours.state_dict() if name.startswith("stack.")}
    for name in stack:
        state[name] = their_stack(name, weights)
    ours.load_state_dict({**buffers, **state})
    m = moments(config, 3, 5)
    with torch.no_grad():
        _, actions, _ = theirs(
            states=m["observations"],
            actions=m["actions"],
            returns_to_go=m["returns"][..., None],
            timesteps=m["times"],
            return_dict=False,
        )
        # float32, two layers: sums of at most 48 numbers of size 1
        torch.testing.assert_close(ours(**m), actions, atol=1e-5, rtol=1e-5)


BUFFERS = ("mean", "spread", "low", "high")


def their_stack(name: str, weights: dict[str, Tensor]) -> Tensor:
    """A parameter of our stack as transformers has it, whose linear layers are transposed."""
    part = name.rpartition(".")[2]
    if "final" in name:
        return weights[f"encoder.ln_f.{part}"]
    number = int(name.split(".")[2])
    layer = f"encoder.h.{number // 2}"
    if ".pre." in name:
        return weights[f"{layer}.ln_{number % 2 + 1}.{part}"]
    branch = name.split(".")[-2]
    theirs = {"out": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    t = weights[f"{layer}.{theirs.get(branch, 'attn.c_attn')}.{part}"]
    if branch in "qkv":
        t = t.chunk(3, -1)["qkv".index(branch)]
    return t.T if t.dim() > 1 else t


@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("kind", ["number", "vector"])
def test_who_sees_what(kind: str, returns: bool) -> None:
    """An action sees what was before and its own state and return; not itself, nothing later."""
    torch.manual_seed(0)
    c = DecisionConfig(
        **TINY, states=4, actions=3, state_kind=kind, action_kind=kind, returns=returns
    )
    model = stir(DecisionModel(c), 0).eval()
    m = moments(c, 2, 5)
    with torch.no_grad():
        before = model(**m)
        assert before.shape == (2, 5, 3)
        for name in ("returns", "observations", "actions"):
            other = {**m, name: m[name].clone()}
            other[name][:, 2] = (m[name][:, 2] + 1) % 3
            differs = (model(**other) != before).flatten(2).any(2).any(0).tolist()
            first = {"returns": 2, "observations": 2, "actions": 3}[name]
            if name == "returns" and not returns:
                first = 5
            assert differs == [i >= first for i in range(5)], name
        late = {**m, "times": m["times"] + 100}
        last = {**m, "times": torch.full_like(m["times"], c.longest - 1)}
        assert torch.equal(model(**late), model(**last))  # later times share the last embedding


def test_returns_and_vectors_are_read_in_their_own_units() -> None:
    torch.manual_seed(0)
    config = {**TINY, "states": 2, "actions": 1, "state_kind": "vector", "action_kind": "vector"}
    plain = stir(DecisionModel(DecisionConfig(**config)), 0).eval()
    other = DecisionModel(DecisionConfig(**config, return_mean=-50.0, return_scale=20.0)).eval()
    other.load_state_dict(plain.state_dict())
    data = torch.tensor([[0.0, 5.0], [4.0, 5.0], [2.0, 5.0]])
    other.states.adapt(data)
    other.actions.adapt(torch.tensor([[10.0], [30.0]]))
    assert other.states.spread.tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0])
    assert [other.actions.low.item(), other.actions.high.item()] == [10.0, 30.0]
    m = moments(plain.config, 2, 4)
    with torch.no_grad():
        before = plain(**m)
        after = other(
            m["returns"] * 20 - 50,
            m["observations"] * other.states.spread + other.states.mean,
            m["actions"] * 10 + 20,
            m["times"],
        )
    # 20 and 50 take five bits of a float32, and eight layers pass that on
    torch.testing.assert_close(after, before * 10 + 20, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"states": 0}, "states must be a whole number of at least 1, got 0"),
        ({"state_kind": "vectr"}, "unknown state_kind 'vectr'; did you mean vector"),
        ({"returns": 1}, "returns must be true or false, got 1"),
        ({"return_scale": 0.0}, "return_scale must be above 0, got 0"),
        ({"return_mean": float("nan")}, "return_mean must be a number, got nan"),
        ({"quartiles": (1.0, "x")}, "quartiles must be numbers"),
        ({"n_heads": 5}, "5 heads do not divide the width 12"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"activation": "rlu"}, "unknown activation 'rlu'; did you mean relu"),
        ({"scheme": "pre_nrm"}, "pre_norm"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        DecisionConfig(**{"states": 4, "actions": 2, **TINY, **changes})


def test_a_table_has_no_units() -> None:
    assert [name for name, _ in StepInput("number", 3, 8).named_buffers()] == []
