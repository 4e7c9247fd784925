"""GPT: the published shapes, every option, masks and the ends of the stack."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from addnorm import schemes
from addnorm.errors import Mendable
from addnorm.init import init_table, reset_parameters
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import MLPS, NORMS, POSITIONS, PRESETS, GPTConfig
from addnorm.positions import ALiBi, RoPE
from tests.nets import GrowingCache
from tests.references import attention as naive


def tiny(**changes: Any) -> GPT:
    config = GPTConfig(vocab_size=61, context_length=24, dim=16, n_layers=2, n_heads=4)
    return GPT(dataclasses.replace(config, **changes))


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))


# --- the published shapes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = GPT(GPT.preset(name))
    assert sum(p.numel() for p in model.parameters()) == count
    assert set(PRESETS) == {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}


def test_a_preset_can_be_changed() -> None:
    assert GPT.preset("gpt2", scheme="sandwich").scheme == "sandwich"
    with pytest.raises(ValueError, match="unknown preset 'gpt-2'; did you mean gpt2"):
        GPT.preset("gpt-2")


def test_init_is_gpt2s() -> None:
    model = GPT(GPTConfig(vocab_size=999, context_length=256, dim=128, n_layers=8, n_heads=4))
    rows = {row.name: row for row in init_table(model)}
    for name, row in rows.items():
        if row.role in ("out", "down"):
            want = 0.02 / 4
        elif row.role:
            want = 0.02
        else:
            assert row.measured == 0.0, name
            continue
        assert row.declared == pytest.approx(want)
        assert row.measured == pytest.approx(want, rel=0.03), name  # 4 standard errors at 128^2
    assert {r.role for r in rows.values()} >= {"embed", "q", "k", "v", "out", "up", "down"}


# --- a straight-line GPT-2 ------------------------------------------------------------------------


def test_forward_is_gpt2_written_out() -> None:
    """The published equations, in functions of torch, from the same weights; float64 rounding."""
    model = tiny().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    w = dict(model.named_parameters())
    x = ids()
    h = w["tokens.weight"][x] + w["positions.weight"][: x.shape[1]]
    mask = torch.ones(9, 9).tril().bool()

    def ln(name: str, u: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(u, (16,), w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], 1e-5)

    def lin(name: str, u: torch.Tensor) -> torch.Tensor:
        return u @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    for block in range(2):
        a, m = f"stack.subs.{2 * block}", f"stack.subs.{2 * block + 1}"
        u = ln(f"{a}.pre", h)
        q, k, v = (lin(f"{a}.branch.{n}", u).view(2, 9, 4, 4).transpose(1, 2) for n in "qkv")
        logits = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~mask, -torch.inf)
        y = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 9, 16)
        h = h + lin(f"{a}.branch.out", y)
        u = lin(f"{m}.branch.up", ln(f"{m}.pre", h))
        u = 0.5 * u * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
        h = h + lin(f"{m}.branch.down", u)
    want = ln("stack.final", h) @ w["tokens.weight"].T
    torch.testing.assert_close(model(x), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("position", POSITIONS)
def test_what_a_position_adds_and_where(position: str) -> None:
    """A table of the model's own, or the published sines beside tokens as large as they; of the
    others only attention knows.

    Sines of whole numbers are computed in float32: an angle below 9 is off by 28 half units of its
    last place (derived in test_positions.py), 2e-6.
    """
    model = tiny(position=position).double().eval()
    inputs: list[torch.Tensor] = []
    model.stack.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(ids())
    want = model.tokens.weight[ids()]
    if position == "learned":
        want = want + model.get_parameter("positions.weight")[:9]
    elif position == "sinusoidal":
        want = want * 16**0.5 + torch.tensor(naive.sinusoidal(9, 16))
    torch.testing.assert_close(inputs[0], want, rtol=0, atol=2e-6)
    in_attention = model.stack.subs[0].branch.position
    assert type(in_attention) is {"rope": RoPE, "alibi": ALiBi}.get(position, type(None))


# --- every option ---------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    *({"scheme": name} for name in schemes.names()),
    *({"norm": name} for name in NORMS),
    *({"position": name} for name in POSITIONS),
    *({"mlp": name} for name in MLPS),
    {"n_kv_heads": 2},
    {"n_kv_heads": 1, "position": "rope"},
    {"qk_norm": "rms"},
    {"window": 3},
    {"attention_softcap": 5.0, "softcap": 3.0},
    {"tied": False},
    {"bias": False},
    {"vocab_multiple": 64},
    {"hidden": 20},
    {"scheme": "drop_path(parallel(pre_norm), 0.1)", "position": "alibi", "norm": "rms"},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_runs_caches_and_trains(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tiny(**changes).double().eval()
    x = ids()
    logits = model(x)
    assert logits.shape == (2, 9, 61)
    cache = GrowingCache()
    steps = [model(part, cache=cache) for part in x.split([4, 1, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(steps, 1), logits, rtol=1e-11, atol=1e-11)
    later = x.clone()
    later[:, 5:] = 0
    torch.testing.assert_close(model(later)[:, :5], logits[:, :5])  # causal
    model.train()
    F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_padded_row_is_the_row_alone(position: str, side: str) -> None:
    """Wherever the padding is, and whatever is in it."""
    torch.manual_seed(0)
    model = tiny(position=position).double()
    lengths = [9, 5, 1]
    rows = [ids(1, n, seed=n)[0] for n in lengths]
    x = ids(3, 9, seed=7)  # the padding is made of real tokens
    valid = torch.zeros(3, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        start = {"left": 9 - len(row), "right": 0, "both": (9 - len(row)) // 2}[side]
        x[i, start : start + len(row)] = row
        valid[i, start : start + len(row)] = True
    logits = model(x, valid)
    for i, row in enumerate(rows):
        alone = model(row[None])[0]
        torch.testing.assert_close(logits[i, valid[i]], alone, rtol=1e-11, atol=1e-11)


def test_softcap_bounds_the_logits() -> None:
    model = tiny(softcap=2.0)
    with torch.no_grad():
        model.tokens.weight.mul_(1000)
    assert model(ids()).abs().max() <= 2.0


def test_the_padded_vocabulary_stays_inside() -> None:
    model = tiny(vocab_multiple=64)
    assert model.tokens.weight.shape == (64, 16)
    with torch.no_grad():
        model.tokens.weight[61:] = 1e6  # would win every argmax
    assert model(ids()).shape[-1] == 61
    torch.manual_seed(0)
    padded = tiny(vocab_multiple=64)
    exact = tiny()
    exact.load_state_dict(
        {k: v[:61] if k == "tokens.weight" else v for k, v in padded.state_dict().items()}
    )
    loss = [F.cross_entropy(m(ids()).flatten(0, 1), ids().flatten()) for m in (padded, exact)]
    torch.testing.assert_close(loss[0], loss[1])


def test_ngpt_keeps_its_tables_on_the_sphere_too() -> None:
    model = tiny(scheme="ngpt", tied=False, position="rope")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(ids()).square().sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="after_step"):
        model(ids())
    model.after_step(1)
    model(ids())
    for table in (model.tokens.weight, model.head.weight):
        torch.testing.assert_close(table.norm(dim=1), torch.ones(61))


def test_dropout_acts_in_training_only() -> None:
    model = tiny(dropout=0.5)
    assert not torch.equal(model(ids()), model(ids()))
    model.eval()
    assert torch.equal(model(ids()), model(ids()))


def test_a_model_without_memory_is_filled_later() -> None:
    with torch.device("meta"):
        model = tiny(scheme="deepnorm", tied=False)
    model.to_empty(device="cpu")
    reset_parameters(model)
    assert model(ids()).isfinite().all()
    assert model.tokens.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"n_layers": 2.0}, "n_layers must be a whole number"),
        ({"n_heads": 3}, "n_heads=3 does not divide dim=16"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 do not divide n_heads=4"),
        ({"norm": "layernorm"}, "unknown norm 'layernorm'; did you mean layer"),
        ({"qk_norm": "layr"}, "unknown qk_norm 'layr'; did you mean layer"),
        ({"position": "rotary"}, "unknown position 'rotary'"),
        ({"mlp": "swiglu"}, "unknown mlp 'swiglu'"),
        ({"activation": "gleu"}, "unknown activation 'gleu'; did you mean gelu"),
        ({"scheme": "prenorm"}, "unknown scheme 'prenorm'; did you mean pre_norm"),
        ({"dim": 12, "position": "rope"}, "RoPE rotates pairs"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"vocab_multiple": 0}, "vocab_multiple must be"),
    ],
)
def test_a_wrong_config_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_wrong_ids_are_named_before_any_kernel_sees_them() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="id 61 is outside the vocabulary of 61"):
        model(torch.tensor([[0, 61]]))
    with pytest.raises(ValueError, match="id -1 is outside"):
        model(torch.tensor([[0, -1]]))
    with pytest.raises(ValueError, match="25 tokens is longer than the context of 24"):
        model(torch.zeros(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match=r"whole numbers of shape \(B, T\)"):
        model(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"whole numbers of shape \(B, T\)"):
        model(torch.zeros(5, dtype=torch.long))
    for dtype in (torch.uint8, torch.bool, torch.int16):
        with pytest.raises(Mendable, match=rf"in int64 or int32, got \(1, 5\) in {dtype}"):
            model(torch.zeros(1, 5, dtype=dtype))
    tiny(position="rope")(torch.zeros(1, 25, dtype=torch.long))  # has no table to run out of


def test_the_last_places_are_as_many_as_asked_for() -> None:
    model, x = tiny(), torch.arange(10).reshape(2, 5)
    logits = model(x)
    for last in (0, 1, 3, 5, 9):
        # not to the bit: how a product of matrices sums may depend on how many rows it has
        torch.testing.assert_close(model(x, last=last), logits[:, 5 - min(last, 5) :])
    with pytest.raises(
        Mendable, match="last must be the number of places at the end, at least 0, got -1"
    ):
        model(x, last=-1)


def test_a_mask_that_is_not_boolean_is_named() -> None:
    for dtype in (torch.float32, torch.long):
        with pytest.raises(
            TypeError, match=f"valid must be boolean, True = real token, got {dtype}"
        ):
            tiny()(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=dtype))
