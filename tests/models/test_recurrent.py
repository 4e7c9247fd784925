"""Recurrent language models: what they compute, from where they go on, and what they refuse.

``ALLOWED``: the same float32 operations in another grouping of rows and steps. Outputs of a cell
are at most 1 in size, and each logit sums 16 products of them with tokens at most 0.1: 16 * 1.6 *
6e-8 for one, times the 2 * 9 steps and layers that an error may pass through: 3e-5 at worst, 1.6e-7
measured.
"""

from typing import Any

import pytest
import torch
from torch import nn

from addnorm.errors import Mendable
from addnorm.generation.cache import StaticCache
from addnorm.generation.decode import Decoder
from addnorm.generation.sampling import Sampling
from addnorm.models.recurrent import CELLS, RecurrentConfig, RecurrentLM
from tests.nets import stir

ALLOWED = 3e-5
GREEDY = Sampling(temperature=0)


def tiny(cell: str, **changes: Any) -> RecurrentLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "context_length": 12, "dim": 16, "n_layers": 2, **changes}
    return stir(RecurrentLM(RecurrentConfig(cell=cell, **shape))).eval()


def ids(batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(1))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=ALLOWED, rtol=ALLOWED)


@pytest.fixture(params=CELLS)
def model(request: pytest.FixtureRequest) -> RecurrentLM:
    return tiny(request.param)


# --- what it is -----------------------------------------------------------------------------------


def test_forward_is_tokens_cell_tokens(model: RecurrentLM) -> None:
    x, table = ids(), model.tokens.weight
    h = model.body.cell(table[x])[0]
    close(model(x), h @ table.T)
    close(model(x, last=2), model(x)[:, -2:])
    assert model(x[:, :0]).shape == (3, 0, 61)


def test_cells_begin_alike_with_the_norm_and_without() -> None:
    shape = {"vocab_size": 61, "dim": 16, "n_layers": 1}
    for name, gates in (("lstm", 4), ("gru", 3)):
        torch.manual_seed(0)
        cell = RecurrentLM(RecurrentConfig(cell=name, **shape)).body.cell
        assert isinstance(cell, nn.RNNBase)
        of_input, of_state, *biases = (p.detach() for p in cell.all_weights[0])
        for gate in of_state.chunk(gates):
            torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
        assert of_input.abs().max() <= (6 / 32) ** 0.5  # of each gate, not of all together
        assert of_input.abs().max() > (6 / (16 + 16 * gates)) ** 0.5
        bias = sum(biases, torch.zeros(16 * gates))
        if name == "lstm":
            other: Any = RecurrentLM(RecurrentConfig(cell="layer_norm_lstm", **shape)).body.cell
            assert torch.equal(bias, other.layers[0].bias)
        else:
            assert not bias.any()


def test_dropout_leaves_the_recurrence_alone(model: RecurrentLM) -> None:
    """Zeros are of whole tokens' features, so that the state itself is never thinned out."""
    torch.manual_seed(0)
    wild = RecurrentLM(RecurrentConfig(cell=model.config.cell, vocab_size=61, dim=16, dropout=0.5))
    wild.load_state_dict(model.state_dict())
    assert not torch.equal(wild.train()(ids()), wild(ids()))
    close(wild.eval()(ids()), model(ids()))


# --- where it goes on from ------------------------------------------------------------------------


def test_parts_of_a_text_are_as_the_whole(model: RecurrentLM) -> None:
    """A forward that nobody advanced after has changed nothing."""
    x, cache = ids(), StaticCache()
    parts = []
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        cache.reserve(end - begin)
        model(x[:, begin:end].flip(0), cache=cache)
        parts.append(model(x[:, begin:end], cache=cache))
        cache.advance(end - begin)
    close(torch.cat(parts, 1), model(x))
    cache.keep(torch.tensor([2, 0]))
    cache.reserve(1)
    both = model(torch.tensor([[5], [7]]), cache=cache)
    close(both[1], model(torch.cat([x[:1], torch.tensor([[7]])], 1), last=1)[0])


def test_padding_changes_nothing(model: RecurrentLM) -> None:
    """Wherever it is; of a row that is nothing else, too."""
    x, valid = ids(4), torch.ones(4, 9, dtype=torch.bool)
    valid[0, :3] = False
    valid[1, [1, 4, 8]] = False
    valid[3] = False
    y = model(x, valid)
    for row in range(3):
        close(y[row, valid[row]], model(x[row, valid[row]][None])[0])
    assert not y[3].any()
    cache = StaticCache()
    cache.reserve(9)
    model(x, valid, cache=cache)
    cache.advance(9)
    cache.reserve(2)
    new, more = ids(4, 2), torch.ones(4, 20, dtype=torch.bool)
    more[:, :9], more[2, 9] = valid, False
    y = model(new, more, cache=cache)
    close(y[0], model(torch.cat([x[0, valid[0]], new[0]])[None], last=2)[0])
    close(y[2, 1:], model(torch.cat([x[2], new[2, 1:]])[None], last=1)[0])
    close(y[3], model(new[3:])[0])
    assert not model(x, torch.zeros_like(valid)).any()


def test_a_document_begins_without_a_past(model: RecurrentLM) -> None:
    x = ids()
    documents = torch.tensor([[0] * 4 + [1] * 5, [7] * 9, [2] + [3] * 8])
    y = model(x, documents=documents)
    close(y[0], torch.cat([model(x[:1, :4])[0], model(x[:1, 4:])[0]]))
    close(y[1], model(x[1:2])[0])
    close(y[2, 1:], model(x[2:, 1:])[0])
    valid = torch.ones_like(x, dtype=torch.bool)
    valid[0, 2:6] = False
    y = model(x, valid, documents=documents)
    close(y[0, 6:], model(x[:1, 6:])[0])


def test_rows_are_decoded_as_each_alone(model: RecurrentLM) -> None:
    """Prompts of three lengths, one of which ends early; beyond the context by both rules."""
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    for beyond in ("slide", "extend"):
        alone = []
        for prompt in prompts:
            decoder = Decoder(model, [prompt], GREEDY, [0], beyond)
            for _ in range(20):
                decoder.step()
            alone.append(decoder.ids[0])
        decoder = Decoder(model, prompts, GREEDY, [0, 0, 0], beyond)
        for step in range(20):
            decoder.step()
            if step == 7:
                decoder.drop([1])
        assert decoder.ids[0] == alone[0]
        assert decoder.ids[2] == alone[2]
        if beyond == "extend":  # one state, carried from the first token to the last
            by_hand = list(prompts[0])
            for _ in range(20):
                by_hand.append(int(model(torch.tensor([by_hand]))[0, -1].argmax()))
            assert by_hand == alone[0]


def test_generate(model: RecurrentLM) -> None:
    new = model.generate(ids(), 5, temperature=0)
    assert torch.equal(new[:, :9], ids())
    assert torch.equal(model.generate(new[:, :11], 3, temperature=0), new)


# --- precision ------------------------------------------------------------------------------------


def test_autocast_and_half_precision(model: RecurrentLM) -> None:
    """The state goes on from step to step whatever the dtype."""
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[0, :3] = False
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.train()(ids(), valid)
        logits.float().sum().backward()
        model.eval().generate(ids(), 3, valid=valid)
    assert all(p.grad is not None for p in model.parameters())
    close(logits.float()[0, -1:] / 1e3, model(ids()[:1, 3:])[0, -1:] / 1e3)  # bf16: 3 digits
    half = model.to(torch.bfloat16)
    assert half(ids()).dtype == torch.bfloat16
    assert half.generate(ids(), 3).shape == (3, 12)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": "lstmm"}, "unknown cell 'lstmm'; did you mean lstm"),
        ({"dim": 0}, "dim must be a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Mendable, match=words):
        RecurrentConfig(**{"vocab_size": 5, **changes})


def test_input_that_makes_no_sense() -> None:
    model = tiny("gru")
    with pytest.raises(Mendable, match="id 61 is outside the vocabulary of 61"):
        model(torch.tensor([[61]]))
    with pytest.raises(Mendable, match=r"whole numbers of shape \(B, T\)"):
        model(torch.zeros(3))
    with pytest.raises(TypeError, match="valid must be boolean"):
        model(ids(), torch.ones(3, 9))
    with pytest.raises(Mendable, match="last must be the number of places at the end"):
        model(ids(), last=-1)
    cache = StaticCache()
    cache.reserve(9)
    model(ids(), cache=cache)
    cache.advance(9)
    with pytest.raises(Mendable, match="leave out documents, or the cache"):
        model(ids(), cache=cache, documents=ids())
