"""Sequence to sequence: every design with a cache as without, what is refused, what is shared."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import schemes
from addnorm.errors import Mendable
from addnorm.generation.cache import StaticCache
from addnorm.init import init_table
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig

END, START = 1, 0


def tiny(**changes: Any) -> Seq2Seq:
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        **{
            "vocab_size": 31,
            "context_length": 12,
            "dim": 16,
            "encoder_layers": 2,
            "decoder_layers": 1,
            **changes,
        }
    )
    return Seq2Seq(config).eval()


def ids(*shape: int, seed: int = 0, most: int = 31) -> Tensor:
    return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed))


def flush_left(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("scheme", schemes.names())
def test_a_target_by_a_cache_is_as_at_once(scheme: str) -> None:
    """And what pads a source changes nothing, in every design."""
    model, source, target = tiny(scheme=scheme), ids(3, 7), ids(3, 5, seed=1)
    valid = flush_left([7, 4, 2])
    whole = model(source, target, valid)
    bound, cache, parts = model.bind(source, valid), StaticCache(12), []
    for new in target.split([1, 2, 1, 1], 1):
        cache.reserve(new.shape[1])
        parts.append(bound(new, cache=cache))
        cache.advance(new.shape[1])
    # rounding alone: sums over at most 7 tokens and 16 features in float32
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model(source[1:2, :4], target[1:2])[0], whole[1], atol=1e-5, rtol=1e-5
    )
    # no token of a target sees those behind it
    changed = model(source, torch.cat((target[:, :3], ids(3, 2, seed=9)), 1), valid)
    torch.testing.assert_close(changed[:, :3], whole[:, :3], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "tables"),
    [
        ({"position": "sinusoidal"}, {"tokens": "embed"}),
        ({"position": "sinusoidal", "tied": False}, {"tokens": "embed", "head": "head"}),
        (
            {"position": "sinusoidal", "target_vocab_size": 9},
            {"tokens": "embed", "target_tokens": "embed"},
        ),
        (
            {"position": "learned", "logits_bias": True},
            {"tokens": "embed", "positions": "embed", "target_positions": "embed"},
        ),
    ],
    ids=str,
)
def test_its_tables(changes: dict[str, Any], tables: dict[str, str]) -> None:
    model = tiny(scheme="ngpt", **changes)
    rows = {row.name: row for row in init_table(model)}
    assert {f"{name}.weight" for name in tables} == {
        n for n in rows if not n.startswith("body")
    } - {"logits_bias"}
    assert {name: rows[f"{name}.weight"].role for name in tables} == tables
    logits = model(ids(2, 3), ids(2, 4, most=9))
    assert logits.shape == (2, 4, model.config.targets)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    model.after_step(1)
    for name in tables:  # nGPT keeps its tables on the sphere
        if tables[name] == "embed":
            length = model.get_parameter(f"{name}.weight").norm(dim=-1)
            torch.testing.assert_close(length, torch.ones_like(length))


def test_positions_far_out_are_as_exact_as_float32_holds() -> None:
    """At place 400 an angle in float32 is wrong by 400 * 2**-24, 2e-5: a float64 is taken."""
    model = tiny(context_length=512, position="halves")
    with torch.no_grad():
        model.tokens.weight.zero_()
    place = 397
    h = model._embedded(torch.zeros(1, 1, dtype=torch.long), model.tokens, model.positions, place)
    angles = [place * 10000.0 ** (-2 * i / 16) for i in range(8)]
    want = torch.tensor(angles, dtype=torch.float64)
    want = torch.cat((want.sin(), want.cos())).float()
    torch.testing.assert_close(h[0, 0], want, atol=1e-6, rtol=0)


def test_dropout_is_where_it_is_asked_for() -> None:
    source, target = ids(2, 5), ids(2, 4)
    for name in ("dropout", "attention_dropout", "hidden_dropout"):
        model = tiny(**{name: 0.5})
        assert torch.equal(model(source, target), model(source, target))
        model.train()
        assert not torch.equal(model(source, target), model(source, target)), name


def test_generate_returns_rows_with_start_end_and_padding() -> None:
    model = tiny(logits_bias=True, start_id=2, pad_id=3)
    results = model.generate(ids(3, 5), 6, beams=3)
    assert results[:, 0].tolist() == [2, 2, 2]
    assert results.shape[1] <= 7
    for row in results.tolist():
        body = row[1:]
        assert 2 not in body
        if END in body:
            assert set(body[body.index(END) + 1 :]) <= {3}
    with torch.no_grad():
        model.logits_bias.data[END] = 100.0
    assert model.generate(ids(2, 5)).tolist() == [[2, END]] * 2
    assert model.generate(ids(0, 5), 4).shape[0] == 0
    assert model.generate(ids(2, 5), 0).tolist() == [[2], [2]]
    # what generates may be learned from afterwards
    model.train()(ids(3, 5), results.clamp(max=30)).sum().backward()
    assert model.training


def test_padding_is_left_out_where_nobody_says_what_is_real() -> None:
    model = tiny(pad_id=7, start_id=7)
    source = ids(2, 6, most=7)
    source[1, 3:] = 7
    valid = flush_left([6, 3])
    assert torch.equal(model.generate(source, 8), model.generate(source, 8, valid=valid))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 15}, "n_heads=4 does not divide dim=15"),
        ({"target_vocab_size": 1}, "target_vocab_size must be a whole number of at least 2"),
        ({"start_id": 31}, "start_id=31 is outside the target's 31 ids"),
        ({"position": "half"}, "unknown position 'half'; did you mean halves"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"scheme": "prenorm"}, "pre_norm"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"tied": 1}, "tied must be true or false, got 1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        dataclasses.replace(tiny().config, **changes)


def test_ids_that_cannot_be_are_refused() -> None:
    model = tiny(target_vocab_size=9)
    with pytest.raises(Mendable, match="source of 13 tokens is longer than the context of 12"):
        model(ids(1, 13), ids(1, 2, most=9))
    with pytest.raises(Mendable, match="id 30 of the target is outside its vocabulary of 9"):
        model(ids(1, 3), torch.tensor([[30]]))
    with pytest.raises(Mendable, match="source must be whole numbers"):
        model(torch.zeros(1, 3), ids(1, 2, most=9))
    with pytest.raises(Mendable, match="13 new tokens are more than the context of 12"):
        model.generate(ids(1, 3), 13)


def test_what_a_target_looks_at() -> None:
    model, source, target = tiny(decoder_layers=2), ids(2, 5), ids(2, 3, seed=1)
    valid = flush_left([5, 3])
    shares = model.attention(source, target, valid)
    assert shares.shape == (2, 3, 5)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 3))
    assert not shares[1, :, 3:].any()
    other = torch.cat((target[:, :2], ids(2, 1, seed=9)), 1)  # not at what stands behind
    assert torch.equal(model.attention(source, other, valid)[:, :2], shares[:, :2])
