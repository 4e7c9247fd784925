"""Models of speech: the front, padding that changes nothing, both heads, searches."""

from dataclasses import replace

import pytest
import torch

from addnorm import schemes
from addnorm.context import Here
from addnorm.errors import Mendable
from addnorm.models.frames import FrameFront, TimeConvolution
from addnorm.models.speech import Speech, SpeechConfig, SpeechLogits

BOTH = SpeechConfig(
    vocab_size=11,
    start_id=10,
    end_id=9,
    pad_id=10,
    n_mels=7,
    frames=64,
    context_length=12,
    dim=16,
    encoder_layers=2,
    decoder_layers=1,
    n_heads=2,
    kernel=3,
)


def speech(**changes: object) -> Speech:
    torch.manual_seed(0)
    return Speech(replace(BOTH, **changes)).eval()


FEATURES = torch.randn(2, 7, 29, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([[10, 3, 4], [10, 5, 10]])


def test_the_front_is_two_convolutions() -> None:
    front = FrameFront(7, 16, 4)
    h, valid = front(FEATURES, None)
    assert h.shape == (2, 8, 16)
    assert valid is None
    x = torch.nn.functional.pad(FEATURES, (1, 1))
    columns = x.unfold(2, 3, 2)  # (B, 7, 15, 3)
    first = torch.einsum("bmtk,dmk->bdt", columns, front.conv1.weight)
    assert front.conv1.bias is not None
    first = torch.nn.functional.gelu(first + front.conv1.bias[:, None])
    columns = torch.nn.functional.pad(first, (1, 1)).unfold(2, 3, 2)
    second = torch.einsum("bmtk,dmk->btd", columns, front.conv2.weight) + front.conv2.bias
    torch.testing.assert_close(h, torch.nn.functional.gelu(second))


def test_a_convolution_over_time_is_its_formula() -> None:
    branch = TimeConvolution(4, 3)
    u = torch.randn(1, 5, 4)
    a = branch.gate(u) * branch.up(u).sigmoid()
    w, b = branch.depthwise.weight[:, 0], branch.depthwise.bias
    padded = torch.nn.functional.pad(a, (0, 0, 1, 1))
    a = sum(padded[:, k : k + 5] * w[:, k] for k in range(3)) + b
    want = branch.out(torch.nn.functional.silu(branch.norm(a)))
    torch.testing.assert_close(branch(u, Here()), want)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal"])
def test_what_fills_a_row_up_changes_nothing(position: str) -> None:
    model = speech(position=position)
    valid = torch.arange(29) < torch.tensor([[29], [18]])
    both = model(FEATURES.where(valid[:, None], torch.tensor(5.0)), IDS, valid)
    assert isinstance(both, SpeechLogits)
    alone = model(FEATURES[1:, :, :18], IDS[1:])
    # sums of 32 values in another order
    torch.testing.assert_close(both.ctc[1:, :5], alone.ctc, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(both.text[1:], alone.text, atol=1e-5, rtol=1e-4)
    assert model.encode(FEATURES, valid).valid.sum(1).tolist() == [8, 5]


def test_the_heads_that_a_model_has() -> None:
    assert speech(decoder_layers=0)(FEATURES, None).shape == (2, 8, 11)
    assert speech(decoder_layers=0, strides=2)(FEATURES, None).shape == (2, 15, 11)
    assert speech(ctc=False)(FEATURES, IDS).shape == (2, 3, 11)
    with pytest.raises(Mendable, match="no head for CTC"):
        speech(ctc=False)(FEATURES, None)
    with pytest.raises(Mendable, match="no decoder"):
        speech(decoder_layers=0).bind(FEATURES)(IDS)


def test_the_decoder_sees_nothing_that_comes_later() -> None:
    model = speech()
    other = IDS.clone()
    other[:, 2] = 1
    torch.testing.assert_close(model(FEATURES, IDS).text[:, :2], model(FEATURES, other).text[:, :2])


def test_generate_writes_what_the_decoder_finds_best() -> None:
    """Token by token, without a cache."""
    model = speech()
    with torch.no_grad():
        model.tokens.weight.mul_(30)
    out = model.generate(FEATURES, 5)
    ids = torch.full((2, 1), 10)
    for _ in range(5):
        logits = model(FEATURES, ids).text[:, -1]
        logits[:, 10] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    for row, want in zip(out.tolist(), ids.tolist(), strict=True):
        end = want.index(9) + 1 if 9 in want else len(want)
        assert row[:end] == want[:end]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": 3}, "strides must be 2 or 4, got 3"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"ctc": False, "decoder_layers": 0}, "needs a decoder"),
        ({"end_id": 11}, "end_id=11 is outside the 11 ids"),
        ({"n_heads": 3}, "n_heads=3 does not divide dim=16"),
        ({"n_heads": 16}, "head's width 1 is odd"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"ctc": 1}, "ctc must be true or false, got 1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        replace(BOTH, **changes)


def test_features_of_another_shape_are_refused() -> None:
    for features, message in (
        (FEATURES[:, :5], r"features must be \(B, 7, frames\), got \(2, 5, 29\)"),
        (torch.zeros(1, 7, 65), "65 frames are more than the 64 that the model reads"),
    ):
        with pytest.raises(Mendable, match=message):
            speech()(features, IDS)


@pytest.mark.parametrize("scheme", ["post_norm", "deepnorm", "sub_ln"])
def test_other_schemes_learn(scheme: str) -> None:
    model = speech(scheme=scheme).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for step in range(1, 31):
        both = model(FEATURES, IDS[:, :2])
        loss = torch.nn.functional.cross_entropy(both.text.flatten(0, 1), IDS[:, 1:].flatten())
        loss = loss + both.ctc.log_softmax(-1)[:, :, 10].mean().neg()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes.names())
def test_every_scheme_goes_forward_and_back(scheme: str) -> None:
    model = speech(scheme=scheme).train()
    both = model(FEATURES, IDS)
    (both.ctc.sum() + both.text.sum()).backward()
