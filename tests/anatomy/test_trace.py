"""A trace holds every operation of a forward, and changing one shows what depends on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from addnorm.anatomy.trace import Op, Trace, altered, record


class Small(nn.Module):
    """x + down(gelu(up(norm(x)))), and a residual that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        h = x.clone()
        h += self.down(F.gelu(self.up(self.norm(x))))
        return h


def op(trace: Trace, name: str, at: int = 0) -> Op:
    return [o for o in trace.ops if o.name == name][at]


def test_operations_know_their_module_and_their_inputs():
    torch.manual_seed(0)
    model, x = Small(), torch.randn(2, 3, 8)
    trace = record(lambda: model(x), model)
    assert [o.module for o in trace.ops if o.name == "addmm"] == ["up", "down"]
    assert [c.path for c in trace.calls] == ["", "norm", "up", "down"]
    norm = op(trace, "native_layer_norm")
    assert {v.name for v in norm.inputs if v.name} == {"norm.weight", "norm.bias"}
    assert trace.parameters() == {n for n, _ in model.named_parameters()}
    add = op(trace, "add")
    assert trace.result is add.outputs[0]
    assert norm.outputs[0] in trace.ancestors(add.outputs[0])
    assert add.outputs[0] in trace.descendants(trace.calls[0].inputs[0])
    assert torch.equal(trace.outputs[0], model(x))


def test_what_is_written_over_is_kept_as_it_was():
    x = torch.arange(6.0)

    def run():
        a = x * 2
        b = a.view(2, 3)
        b.add_(1)  # through a view: a is another value from here on
        return a * 1

    trace = record(run, nn.Module())
    first = op(trace, "mul").outputs[0]
    assert torch.equal(first.tensor, torch.arange(6.0) * 2)
    assert op(trace, "add").outputs[0] in trace.ancestors(trace.result)
    assert torch.equal(trace.result.tensor, torch.arange(6.0) * 2 + 1)


def test_slices_written_into_a_buffer_reach_the_buffer():
    x = torch.randn(2, 3)

    def run():
        out = torch.zeros(2, 6)
        out[:, 3:] = x * 5
        return out + 0

    trace = record(run, nn.Module())
    assert op(trace, "mul").outputs[0] in trace.ancestors(trace.result)


@pytest.mark.parametrize("masked", ["causal", "mask", "none"])
def test_fused_attention_is_opened(masked):
    """Also where the model itself asks for a kernel; the result is the kernel's."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    mask = torch.rand(5, 5) > 0.3 if masked == "mask" else None

    def run():
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=masked == "causal") * 1

    trace = record(run, nn.Module())
    weights = [o for o in trace.ops if o.name in ("_softmax", "_safe_softmax")]
    assert len(weights) == 1
    assert torch.allclose(trace.outputs[0], run(), atol=1e-6)
    mixed = [o for o in trace.ops if o.name == "bmm"][-1].outputs[0]
    # the operations written down compute what the kernel gave, up to float32 rounding of 8 terms
    assert torch.allclose(mixed.tensor.reshape(q.shape), trace.outputs[0], atol=1e-5)
    assert mixed in trace.ancestors(trace.result)


def test_altering_one_operation_changes_what_depends_on_it_and_nothing_else():
    torch.manual_seed(0)
    model, x = Small(), torch.randn(2, 3, 8)
    trace = record(lambda: model(x), model)
    add = op(trace, "add")
    out = altered(lambda: model(x), {add: lambda args: (args[0], torch.zeros_like(args[1]))})
    assert torch.equal(out, x)
    same = altered(lambda: model(x), {})
    assert torch.equal(same, model(x))


def test_gradients_flow_to_what_was_recorded():
    torch.manual_seed(0)
    model, x = Small(), torch.randn(2, 3, 8)
    trace = record(lambda: model(x), model)
    gelu = op(trace, "gelu").outputs[0].tensor
    (gradient,) = torch.autograd.grad(trace.outputs[0].sum(), [gelu])
    expected = torch.ones(2, 3, 8) @ model.down.weight
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_encoder_layers_of_torch_are_recorded_in_evaluation_mode():
    """Their fused path would be one operation."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        trace = record(lambda: layer(torch.randn(2, 3, 8)), layer)
    assert sum(o.name == "native_layer_norm" for o in trace.ops) == 2
    assert torch.backends.mha.get_fastpath_enabled()
