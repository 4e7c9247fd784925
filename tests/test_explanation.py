"""What explain says: read off the wiring, counted on an instance."""

import pytest

from addnorm import schemes
from addnorm.catalogue import entry
from addnorm.stream import Stack


@pytest.mark.parametrize("name", schemes.names())
def test_explain_counts_what_an_instance_has(name: str) -> None:
    explanation = schemes.explain(name, dim=24, n_heads=4, blocks=3, tokens=8)
    from functools import partial

    from addnorm.branches import MLP, Attention

    branches = [("attn", partial(Attention, 24, 4, causal=True)), ("mlp", partial(MLP, 24, 96))]
    stack = Stack(branches * 3, 24, schemes.parse(name))
    assert explanation.parameters == sum(p.numel() for p in stack.parameters())
    plain = 3 * (4 * (24 * 24 + 24) + 2 * 24 * 96 + 96 + 24)
    assert explanation.extra_parameters == explanation.parameters - plain
    final = stack.final is not None or stack.exit is not None
    assert explanation.final_norm == final
    text = str(explanation)
    assert entry(name).equation in text
    assert entry(name).paper in text
    assert str(entry(name).year) in text


def test_explain_counts_flops_and_bytes_by_hand() -> None:
    """One block at T = 8, dim 24: the products by hand; saved bytes against a run with memory."""
    explanation = schemes.explain("no_norm", dim=24, n_heads=4, blocks=1, tokens=8)
    projections = 2 * 8 * (4 * 24 * 24 + 2 * 24 * 96)
    attention = 2 * (2 * 8 * 8 * 24)  # q k^T and its product with v, the causal half included
    assert explanation.matmul_flops == projections + attention
    deeper = schemes.explain("no_norm", dim=24, n_heads=4, blocks=3, tokens=8)
    assert deeper.matmul_flops == 3 * explanation.matmul_flops
    # Not less than the inputs of the six products and the activation, which no run can avoid.
    assert explanation.saved_bytes >= 4 * 8 * (24 + 24 + 24 + 96 + 96)
    longer = schemes.explain("no_norm", dim=24, n_heads=4, blocks=1, tokens=16)
    assert 1.9 < longer.saved_bytes / explanation.saved_bytes < 2.6


def test_norms_cost_what_they_cost() -> None:
    shape = {"dim": 24, "n_heads": 4, "blocks": 2, "tokens": 8}
    none, pre = schemes.explain("no_norm", **shape), schemes.explain("pre_norm", **shape)
    two, hyper = schemes.explain("sandwich", **shape), schemes.explain("hyper_connections", **shape)
    assert none.elementwise < pre.elementwise < two.elementwise
    assert none.saved_bytes < pre.saved_bytes < two.saved_bytes < hyper.saved_bytes
    assert none.matmul_flops == pre.matmul_flops == two.matmul_flops < hyper.matmul_flops


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("pre_norm", "blocks 1 to 4: attn and mlp: before the branch"),
        ("post_norm", "blocks 1 to 4: attn and mlp: after the addition"),
        ("sandwich", "before the branch, the branch's output"),
        ("sub_ln", "before the branch, inside the branch"),
        ("mix_ln(0.25)", "block 1: attn and mlp: after the addition"),
        ("mix_ln(0.25)", "blocks 2 to 4: attn and mlp: before the branch"),
        ("rezero", "attn and mlp: nowhere"),
        ("ngpt", "the stream itself, to unit length"),
        ("residual_dual", "at the end, the second stream"),
        ("parallel(pre_norm)", "attn: before the branch; mlp: nowhere"),
        ("drop_path(ngpt)", "the stream itself, to unit length"),
    ],
)
def test_explain_says_where_the_stream_is_normalized(text: str, where: str) -> None:
    explanation = schemes.explain(text, dim=24, n_heads=4, blocks=4, tokens=8)
    assert where in "\n".join(explanation.normalized)


def test_explain_tells_a_composition_part_by_part() -> None:
    explanation = schemes.explain(
        "drop_path(mix_ln(0.25), p=0.1)", dim=24, n_heads=4, blocks=4, tokens=8
    )
    assert len(explanation.equations) == len(explanation.papers) == len(explanation.notes) == 2
    assert explanation.init == "normal, std 0.02"
