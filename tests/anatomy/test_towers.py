"""What a call leaves out for want of an image is told from what nobody calls."""

import pytest
import torch
from torch import Tensor, nn

from addnorm import lint
from addnorm.anatomy.inputs import inputs_from
from addnorm.anatomy.towers import omitted_inputs

WIDTH, WORDS = 24, 61


class Block(nn.Module):
    """A pre-norm sublayer; its second norm can be forgotten."""

    def __init__(self, forgotten: bool = False) -> None:
        super().__init__()
        self.forgotten = forgotten
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.down(self.up(self.norm(x)).relu())
        out: Tensor = x + (branch if self.forgotten else self.last(branch))
        return out


class Eye(nn.Module):
    """Patches of an image, as vectors."""

    def __init__(self, forgotten: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.block = Block(forgotten)

    def forward(self, image: Tensor) -> Tensor:
        vectors: Tensor = self.block(self.patches(image).flatten(2).mT)
        return vectors


class Ear(nn.Module):
    """A wave in frames, as vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.mix = nn.Conv1d(1, WIDTH, 8, 8), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, wave: Tensor) -> Tensor:
        vectors: Tensor = self.norm(self.mix(self.frames(wave[:, None]).mT))
        return vectors


class Captions(nn.Module):
    """Text, and before it the patches of an image if there is one; a norm leads from one to the
    other."""

    def __init__(self, eye: Eye | None = None, text: Block | None = None) -> None:
        super().__init__()
        self.embed, self.text = nn.Embedding(WORDS, WIDTH), text or Block()
        self.eye, self.bridge = eye or Eye(), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, pixel_values: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        if pixel_values is not None:
            x = torch.cat([self.bridge(self.eye(pixel_values)), x], 1)
        logits: Tensor = self.head(self.text(x))
        return logits


class Speech(nn.Module):
    """Text with an optional wave, and a vector that stands between the two."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleDict({"embed": nn.Embedding(WORDS, WIDTH), "block": Block()})
        self.ear, self.gap = Ear(), nn.Parameter(torch.randn(WIDTH))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, speech: Tensor | None = None) -> Tensor:
        x = self.text["embed"](ids)
        if speech is not None:
            x = torch.cat([self.ear(speech), self.gap.expand(len(x), 1, -1), x], 1)
        logits: Tensor = self.head(self.text["block"](x))
        return logits


class Blind(Captions):
    """It has the tower and no way to give it anything."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(ids)


IDS = torch.arange(14).reshape(2, 7)
BOTH = {"ids": IDS, "pixel_values": torch.randn(2, 3, 8, 8)}


def unused(model: nn.Module, inputs: object) -> tuple[set[str], set[str]]:
    """The modules of which a rule about unused parameters says something, and those of which it
    says that it cannot tell."""
    report = lint(model, inputs)
    return (
        {f.module for f in report.findings if f.rule.startswith("unused")},
        {u.module for u in report.unknown if u.rule.startswith("unused")},
    )


@pytest.mark.parametrize(("model", "tower"), [(Captions(), "eye"), (Speech(), "ear")])
def test_a_tower_without_its_input_is_unknown(model: nn.Module, tower: str) -> None:
    """So is what stands beside it, a norm and a parameter."""
    assert unused(model, IDS) == (set(), {tower})


def test_a_norm_that_the_text_does_not_call_is_still_told() -> None:
    assert unused(Captions(text=Block(forgotten=True)), IDS) == ({"text.last"}, {"eye"})


def test_with_an_image_the_tower_runs_and_its_mistake_is_told() -> None:
    assert unused(Captions(), BOTH) == (set(), set())
    assert unused(Captions(Eye(forgotten=True)), BOTH) == ({"eye.block.last"}, set())


def test_a_tower_that_nothing_could_reach_is_a_mistake() -> None:
    modules, unknown = unused(Blind(), IDS)
    assert {"bridge", "eye.patches"} <= modules
    assert not unknown


def test_which_inputs_are_left_out() -> None:
    def forward(
        ids: Tensor,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        image_sizes: Tensor | None = None,
        output_features: bool | None = None,
        labels: Tensor | None = None,
        video: int = 3,
    ) -> Tensor:
        return ids

    model = nn.Module()
    model.forward = forward
    assert omitted_inputs(model, inputs_from(IDS)) == ["pixel_values", "input_features"]
    assert omitted_inputs(model, inputs_from((IDS, IDS))) == ["input_features"]
