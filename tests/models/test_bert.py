"""BERT: its heads, any scheme, masks and types, and what its config refuses."""

import dataclasses
from typing import Any

import pytest
import torch

from addnorm import schemes
from addnorm.errors import Mendable
from addnorm.init import init_table
from addnorm.models.bert import Bert
from addnorm.models.bert_config import HEADS, PRESETS, BertConfig

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "context_length": 19,
    "dim": 20,
    "n_layers": 2,
    "n_heads": 5,
}


def tiny(**changes: Any) -> Bert:
    torch.manual_seed(0)
    return Bert(BertConfig(**{**SIZES, **changes}))


def ids(batch: int = 3, length: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "count"), [("bert-base", 109_514_298), ("bert-tiny", 4_416_698)])
def test_presets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = Bert(Bert.preset(name))
    assert sum(p.numel() for p in model.parameters()) == count  # BertForMaskedLM's
    assert len(PRESETS) == 6
    with pytest.raises(Mendable, match="unknown preset 'bert_base'; did you mean bert-base"):
        Bert.preset("bert_base")


@pytest.mark.parametrize("head", HEADS)
def test_heads(head: str) -> None:
    model, x = tiny(head=head, labels=7, dropout=0.1), ids()
    shape = {
        "none": (3, 11, 20),
        "masked": (3, 11, 61),
        "classify": (3, 7),
        "answer": (3, 11, 2),
        "tokens": (3, 11, 7),
    }[head]
    assert model(x).shape == shape
    unread = {n for n, p in model.named_parameters() if n.startswith("pooler") and head == "none"}
    model(x).sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == unread  # nothing is built and left unused, but a pooler to be asked for
    assert (model.pooler is not None) == (head in ("none", "classify"))


def test_only_the_places_that_are_asked_for() -> None:
    model, x = tiny().eval(), ids()
    at = torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.3
    with torch.no_grad():
        every, some = model(x), model(x, at=at)
        assert model(x, at=torch.zeros_like(at)).shape == (0, 61)
    # the same sums in another order: 1e3 roundings of 6e-8 at a size of 1
    assert torch.allclose(every[at], some, atol=1e-5)
    with pytest.raises(ValueError, match="at chooses places of the head masked"):
        tiny(head="answer")(x, at=at)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padding_changes_nothing(pooling: str) -> None:
    model, x = tiny(head="classify", pooling=pooling).eval(), ids(2, 9)
    longer = torch.cat((x, ids(2, 5, seed=1)), 1)
    valid = torch.arange(14).expand(2, 14) < 9
    with torch.no_grad():
        assert torch.allclose(model(x), model(longer, valid), atol=1e-6)
        types = torch.zeros_like(longer)
        assert torch.equal(model(longer, valid), model(longer, valid, types))
        types[0, 3] = 1
        far = (model(longer, valid) - model(longer, valid, types)).abs().amax(1)
    assert far[0] > 1e-4
    assert far[1] == 0


def test_with_rope_only_the_distance_counts() -> None:
    model, x = tiny(position="rope", dim=20, n_heads=5).eval(), ids(2, 9)
    later = torch.cat((ids(2, 3, seed=1), x), 1)
    valid = torch.arange(12).expand(2, 12) >= 3
    with torch.no_grad():
        # rotations by other angles: the same products but for their rounding
        assert torch.allclose(model(later, valid)[:, 3:], model(x), atol=1e-5)
        assert not torch.allclose(model(x.flip(1)).flip(1), model(x), atol=1e-3)
        learned = tiny(dim=20, n_heads=5).eval()
        assert not torch.allclose(learned(later, valid)[:, 3:], learned(x), atol=1e-3)


@pytest.mark.parametrize("name", ["pre_norm", "deepnorm", "ngpt", "rezero", "hyper_connections(2)"])
def test_any_scheme_learns(name: str) -> None:
    model, x = tiny(scheme=name, head="classify", labels=3), ids(6)
    y = torch.arange(6) % 3
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(1, 31):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_ends_are_filled_by_the_scheme() -> None:
    rows = {row.name: row for row in init_table(tiny(scheme="pre_norm", head="tokens"))}
    for name in ("tokens.weight", "positions.weight", "types.weight", "head.weight"):
        assert rows[name].declared == 0.02
    assert rows["head.bias"].measured == 0
    assert schemes.parse("post_norm") is schemes.post_norm


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 21}, "n_heads=5 does not divide dim=21"),
        ({"head": "mask"}, "unknown head 'mask'; did you mean masked"),
        ({"head": "classify", "pooling": "none"}, "the head classify reads what pooling makes"),
        ({"pooling": "last"}, "unknown pooling 'last'"),
        ({"position": "alibi"}, "unknown position 'alibi'"),
        ({"position": "rope", "dim": 15}, "RoPE rotates pairs: the head's width 3 is odd"),
        ({"types": 0}, "types must be a whole number of at least 1"),
        ({"hidden": 0}, "hidden must be"),
        ({"eps": -1.0}, "eps must be a number of at least 0"),
        ({"head_dropout": 1.0}, r"head_dropout must be in \[0, 1\)"),
        ({"scheme": "post_nrom"}, "did you mean post_norm"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        BertConfig(**{**SIZES, **changes})


def test_what_forward_refuses() -> None:
    model, x = tiny(), ids()
    for bad, message in (
        (x.float(), "must be whole numbers"),
        (x + 1, "id 61 is outside the vocabulary of 61"),
        (ids(1, 20), "longer than the context of 19"),
    ):
        with pytest.raises(Mendable, match=message):
            model(bad)
    with pytest.raises(Mendable, match="type 2 is outside the types of 2"):
        model(x, token_types=torch.full_like(x, 2))
    with pytest.raises(Mendable, match="must have the shape of ids"):
        model(x, token_types=x[:, :2])
    with pytest.raises(TypeError, match="valid must be boolean"):
        model(x, torch.ones_like(x))
    with pytest.raises(ValueError, match="has no pooler"):
        model.pooled(model.hidden(x, None, None))
    changed = dataclasses.replace(model.config, head="none")
    assert Bert(changed).pooled(torch.zeros(2, 3, 20)).shape == (2, 20)
