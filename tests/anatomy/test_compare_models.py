"""Two models side by side: the changed module is named, and only where one was changed."""

import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.anatomy.compare_models import NotComparable, diff
from addnorm.cli import main


def gpt2(seed: int = 0) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=97, n_positions=32, n_embd=24, n_layer=3, n_head=4, **ends
        )
    )


class Block(nn.Module):
    """Pre-norm, as its parts are given."""

    def __init__(self, act: Any = F.gelu, residual: float = 1.0) -> None:
        super().__init__()
        self.act, self.residual = act, residual
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm1(x)
        x = self.residual * x + self.attn(u, u, u, need_weights=False)[0]
        return x + self.down(self.act(self.up(self.norm2(x))))


class Net(nn.Module):
    """Three blocks."""

    def __init__(self, **second: Any) -> None:
        super().__init__()
        self.tok = nn.Embedding(29, 16)
        self.blocks = nn.ModuleList([Block(), Block(**second), Block()])
        self.head = nn.Linear(16, 29)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


# --- GPT-2 of transformers, with one thing changed ------------------------------------------------


def test_the_same_model_is_the_same_whatever_its_weights_were() -> None:
    difference = diff(gpt2(0), gpt2(1))
    assert difference.same
    assert difference.largest == 0.0
    assert difference.dtype == "float64"
    assert difference.aligned_by == "path"
    own = diff(gpt2(0), gpt2(1), weights="own")
    assert own.forward is not None
    assert own.forward.module == "transformer.wte"


def test_a_changed_eps_is_named_with_its_numbers() -> None:
    b = gpt2()
    b.transformer.h[1].ln_2.eps = 1e-4
    difference = diff(gpt2(), b).forward
    assert difference is not None
    assert difference.module == difference.tap == "transformer.h.1.ln_2"
    assert difference.before == 0.0
    assert difference.after > 1e3 * difference.floor
    minus, plus = difference.operations
    assert minus.startswith("- native_layer_norm")
    assert "1e-05" in minus
    assert "0.0001" in plus


def test_a_changed_activation_is_named() -> None:
    b = gpt2()
    b.transformer.h[2].mlp.act = nn.ReLU()
    difference = diff(gpt2(), b).forward
    assert difference is not None
    assert difference.module == "transformer.h.2.mlp.act"
    assert "- mul(·, 0.5)" in difference.operations
    assert "+ relu(·)" in difference.operations


def test_a_lost_residual_is_the_blocks_although_its_parts_show_it() -> None:
    b = gpt2()
    block = b.transformer.h[1]

    kind = type(block)
    source = textwrap.dedent(inspect.getsource(kind.forward))
    assert "attn_output + residual" in source
    names = vars(inspect.getmodule(kind)).copy()
    exec(source.replace("attn_output + residual", "attn_output"), names)
    block.__class__ = type("Lost", (kind,), {"forward": names["forward"]})
    difference = diff(gpt2(), b).forward
    assert difference is not None
    assert difference.module == "transformer.h.1"
    assert difference.tap == "transformer.h.1.ln_2"
    assert difference.operations == ("- add(·, ·)",)


def test_a_changed_mask_is_named() -> None:
    b = gpt2()

    def all_seen(module: nn.Module, args: Any, kwargs: Any) -> Any:
        kwargs["attention_mask"] = torch.ones(1, 1, 7, 7, dtype=torch.bool)
        return args, kwargs

    b.transformer.h[1].attn.register_forward_pre_hook(all_seen, with_kwargs=True)
    ids = torch.arange(14).reshape(2, 7)
    difference = diff(gpt2(), b, ids).forward
    assert difference is not None
    assert difference.module.startswith("transformer.h.1")


def test_an_argument_by_name_is_named_with_both_values() -> None:
    difference = diff(Net(), Net(act=lambda x: F.gelu(x, approximate="tanh"))).forward
    assert difference is not None
    assert difference.operations == ("- gelu(·, approximate=none)", "+ gelu(·, approximate=tanh)")
    # What is left out of a call counts as what the operation takes for it.
    assert diff(Net(), Net(act=lambda x: F.gelu(x, approximate="none"))).same


def test_constants_that_look_alike_are_told_apart() -> None:
    difference = diff(Net(residual=1.0), Net(residual=1.0 + 1e-8)).forward
    assert difference is not None
    assert difference.operations == ("- mul(·, 1)", "+ mul(·, 1.0000000099999999)")


class Scaled(nn.Module):
    """A scale, among copies."""

    def __init__(self, scaled: Any) -> None:
        super().__init__()
        self.linear, self.scaled = nn.Linear(8, 8), scaled

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.linear(x))


def operations(a: Any, b: Any) -> tuple[str, ...]:
    difference = diff(Scaled(a), Scaled(b), torch.randn(8, 8)).forward
    assert difference is not None
    return difference.operations


def test_copies_do_not_bury_what_computes() -> None:
    def one(x: Tensor) -> Tensor:
        x = x.clone().contiguous().view(8, 2, 4).clone().reshape(8, 8).clone()
        return x.T.clone().T * 0.25

    assert operations(one, lambda x: x / 8) == (
        "- mul(·, 0.25)",
        "- permute(·, [1,0])",
        "- permute(·, [1,0])",
        "+ div(·, 8)",
    )
    # What only moves numbers is told where it is the difference, and what only reshapes as well.
    assert operations(lambda x: x.clone(), lambda x: x.transpose(0, 1)) == ("+ transpose(·, 0, 1)",)
    turned = operations(lambda x: x.view(2, 4, 8), lambda x: x.view(4, 2, 8))
    assert turned == ("- view(·, [2,4,8])", "+ view(·, [4,2,8])")


class Stack(nn.Module):
    """As many layers as are given."""

    def __init__(self, layers: int, tail: float = 1.0) -> None:
        super().__init__()
        self.tail = tail
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) * self.tail


def test_a_layer_less_is_told_as_that_layer() -> None:
    difference = diff(Stack(4), Stack(3))
    assert difference.forward is not None
    assert difference.forward.module == ""
    (line,) = difference.forward.operations
    assert re.fullmatch(r"- layers\.3, a module with [1-9]\d* operations", line)
    assert difference.verdict() == f"They differ: {line[2:]}, is only in A."
    lines = dict(difference.lines())
    assert lines["only in A"] == "layers.3, of the modules called"  # and its parameters go with it
    turned = diff(Stack(3), Stack(4))
    assert turned.verdict() == f"They differ: {line[2:]}, is only in B."


def test_a_difference_between_the_modules_is_the_outermost_forwards() -> None:
    difference = diff(Stack(2), Stack(2, tail=2.0))
    assert difference.verdict() == (
        "They differ in the outermost forward, between the modules that it calls."
    )
    assert "the model itself" not in "".join(text for _, text in difference.lines())


def test_gradients_are_told_in_a_sentence() -> None:
    both = dict(diff(Net(), Net(residual=0.9)).lines())["backward"]
    assert both.startswith("the gradients differ as well, as they must with a different forward")
    alone = dict(diff(Net(), Net(act=lambda x: F.gelu(x).detach())).lines())["backward"]
    assert alone.startswith("the forward is the same, and the gradient of blocks.1.up.")
    assert "parameters nearer to the outputs agree" in alone
    assert "detach" in alone


# --- other names, other weights, other dtypes -----------------------------------------------------


class Wrapped(nn.Module):
    """The same, under other names."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.words, self.layers, self.out = net.tok, nn.Sequential(*net.blocks), net.head

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.layers(self.words(tokens)))


def test_other_names_are_paired_by_order_and_shape() -> None:
    same = diff(Net(), Wrapped(Net()))
    assert same.aligned_by == "order"
    assert same.same
    assert same.unpaired == ((), ())
    difference = diff(Net(), Wrapped(Net(act=F.relu))).forward
    assert difference is not None
    assert difference.module == "blocks.1"  # its activation is a function, not a module
    assert difference.module_b == "layers.1"
    assert any("relu" in o for o in difference.operations)


def test_a_factor_on_the_stream_is_the_blocks() -> None:
    difference = diff(Net(), Net(residual=0.9)).forward
    assert difference is not None
    assert difference.module == "blocks.1"
    assert difference.operations == ("- mul(·, 1)", "+ mul(·, 0.9)")


class Cut(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        return 0.5 * g[0]


def test_a_wrong_gradient_is_found_where_outputs_agree() -> None:
    difference = diff(Net(), Net(act=lambda x: Cut.apply(F.gelu(x))))
    assert difference.forward is None
    assert difference.backward is not None
    # Behind the cut is the first matrix of the second block's MLP; its bias is read with it.
    assert difference.backward.parameter in ("blocks.1.up.weight", "blocks.1.up.bias")
    assert difference.backward.difference == pytest.approx(0.5)
    assert not difference.same


def test_a_gradient_that_is_lost_is_found() -> None:
    difference = diff(Net(), Net(act=lambda x: F.gelu(x).detach()))
    assert difference.forward is None
    assert difference.backward is not None
    assert difference.backward.parameter.startswith("blocks.1.up.")


def test_weights_that_have_no_partner_are_told() -> None:
    b = Net()
    b.blocks[1].up, b.blocks[1].down = nn.Linear(16, 41), nn.Linear(41, 16)
    difference = diff(Net(), b)
    assert difference.forward is not None
    assert difference.forward.module == "blocks.1.up"
    assert set(difference.unpaired[0]) == {
        "blocks.1.up.weight",
        "blocks.1.up.bias",
        "blocks.1.down.weight",
    }
    assert "Infinity" not in json.dumps(difference.to_json())


class Single(nn.Module):
    """It insists on float32."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.bias, self.linear = bias, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float()) + self.bias


def test_float32_where_float64_cannot_be() -> None:
    x = torch.randn(3, 5, 8)
    difference = diff(Single(0.0), Single(0.0), x)
    assert difference.same
    assert difference.dtype == "float32"
    assert not diff(Single(0.0), Single(0.1), x).same


def test_what_rounding_does_is_no_difference() -> None:
    """Another order of summation: 1e-16 at each step, through three layers and softmaxes."""

    class Turned(nn.Module):
        def __init__(self, a: nn.Linear) -> None:
            super().__init__()
            self.weight, self.bias = a.weight, a.bias

        def forward(self, x: Tensor) -> Tensor:
            order = torch.arange(x.shape[-1] - 1, -1, -1)
            return x[..., order] @ self.weight[:, order].T + self.bias

    b = Net()
    for block in b.blocks:
        block.up, block.down = Turned(block.up), Turned(block.down)
    difference = diff(Net(), b)
    assert difference.same
    assert 0 < difference.largest < 1e-13


def test_both_models_and_the_rng_are_left_alone() -> None:
    a, b = Net().train(), Net()
    before = {k: v.clone() for k, v in b.state_dict().items()}
    state = torch.get_rng_state()
    diff(a, b)
    assert a.training
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*a.modules(), *b.modules()))
    assert all(p.grad is None for p in a.parameters())


def test_what_cannot_be_compared_says_why() -> None:
    says = (
        r"B does not run on the inputs of A, which are \(3, 7\) of int64: its forward\(input\) "
        r"ended in RuntimeError: .*\. Two models are compared on the same input"
    )
    with pytest.raises(NotComparable, match=says):
        diff(Net(), nn.Linear(3, 3))


# --- the command ----------------------------------------------------------------------------------


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, eps in (("a", 1e-5), ("b", 1e-2)):
        (tmp_path / f"{name}.py").write_text(
            "from torch import nn\n"
            "def make():\n"
            f"    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8, eps={eps}))\n"
        )
    a, b = (f"{tmp_path / name}.py:make" for name in "ab")
    assert main(["lint", "--diff", a, a]) == 0
    assert "No difference in 3 outputs" in capsys.readouterr().out
    assert main(["lint", "--diff", a, b]) == 1
    output = capsys.readouterr().out
    assert "They differ, first in 1." in output
    assert "native_layer_norm" in output
    for words in (["--diff", a, b, "--json"], ["--diff", "--json", a, b], [a, b, "--diff"]):
        assert main(["lint", *words]) == 1
        if "--json" in words:
            assert json.loads(capsys.readouterr().out)["forward"]["module"] == "1"
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["lint", "--diff", a, b]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[3:])) <= 60  # after the paths of the two
    at = next(i for i, line in enumerate(lines) if line.startswith("backward"))
    assert lines[at + 1].startswith(" " * 10)
    assert main(["lint", "--diff", a]) == 2
    assert "takes exactly two targets" in capsys.readouterr().err
