"""Small programs that make each mistake in the ways that no other test shows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.linting import run
from addnorm.linting.check import CHECKS
from tests.linting.asking import cases_said
from tests.norm_hosts import IDS, Bare, Host, LayerNorm, mean, standard, var

DIM, HEADS, WIDTH = 24, 3, 8
FEATURES = torch.randn(2, 9, DIM, generator=torch.Generator().manual_seed(0))
Weigh = Callable[[Tensor, Tensor], Tensor]


def usual(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(WIDTH)).softmax(-1)


class Attention(nn.Module):
    """What a query takes of each key is up to ``weigh``."""

    def __init__(self, weigh: Weigh = usual):
        super().__init__()
        self.weigh = weigh
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], HEADS, WIDTH)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out((self.weigh(q, k) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, weigh: Weigh = usual, init: Callable[[nn.Module], None] = lambda m: None):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = Attention(weigh)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        for matrix in (p for p in self.parameters() if p.dim() > 1):
            nn.init.normal_(matrix, std=0.02)
        init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.down(F.gelu(self.up(self.n2(x))))


def stack(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(*blocks, nn.LayerNorm(DIM), nn.Linear(DIM, 5))


# --- attention ------------------------------------------------------------------------------------


def with_sink(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(WIDTH)
    sink = torch.zeros_like(scores[..., :1])
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


def masked_afterwards(q: Tensor, k: Tensor) -> Tensor:
    return usual(q, k).tril()


def decayed(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(WIDTH)) * torch.exp(-q.square().mean(-1, keepdim=True))


def decayed_over_queries(q: Tensor, k: Tensor) -> Tensor:
    weights = (q @ k.mT / math.sqrt(WIDTH)).exp()
    return weights * (1 / weights.sum(-2, keepdim=True))


def smaller_queries(block: nn.Module) -> None:
    nn.init.normal_(block.attention.q.weight, std=0.02 / math.sqrt(WIDTH))


WEIGHS: dict[tuple[str, str], Weigh] = {
    ("attention-scale", "after the softmax only"): lambda q, k: (
        (q @ k.mT).softmax(-1) / math.sqrt(WIDTH)
    ),
    ("attention-scale", "twice"): lambda q, k: (  # torch's attention scales both by a root
        ((q * WIDTH**-0.5) * WIDTH**-0.25 @ (k * WIDTH**-0.25).mT).softmax(-1)
    ),
    ("attention-scale", "above 1"): lambda q, k: (q @ k.mT * math.sqrt(WIDTH)).softmax(-1),
    ("attention-scale", "unusual"): lambda q, k: (q @ k.mT * 0.25).softmax(-1),
    ("attention-scale", "far off"): lambda q, k: (q @ k.mT * 0.01).softmax(-1),
    ("attention-not-normalized", "sink"): with_sink,
    ("attention-not-normalized", "masked afterwards"): masked_afterwards,
    ("attention-not-normalized", "changed afterwards"): lambda q, k: usual(q, k).square(),
    ("attention-not-normalized", "decays"): decayed,
    ("attention-not-normalized", "over the queries, decayed"): decayed_over_queries,
}

# --- norms ----------------------------------------------------------------------------------------


class Bent(torch.autograd.Function):
    """The identity, with a gradient that is not its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -5.0 * grad


class HalfBias(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.body(x) + (0.5 * self.beta + 0.5 * self.beta.detach())


class StoredNorm(nn.Module):
    """As a frozen BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.randn(DIM))
        self.register_buffer("scale", torch.rand(DIM) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) * self.scale


class Rescale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


class CalledNorm(nn.Module):
    """What is called a norm by the name of its place only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.mix = nn.Embedding(13, DIM), Rescale(), nn.Linear(DIM, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return x + self.mix(F.gelu(self.norm(x)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, DIM, 4, 4), nn.BatchNorm2d(DIM)
        self.block = Block()

    def forward(self, image: Tensor) -> Tensor:
        return self.block(F.relu(self.norm(self.patches(image))).flatten(2).mT)


class BatchNormed(nn.Module):
    """In the forward of the model itself, outside of all blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(F.batch_norm(x.mT, None, None, training=True).mT)


NORMS: dict[tuple[str, str], nn.Module] = {
    ("norm-bad-gradient", "detached"): Bare(lambda x: standard(x).detach()),
    ("norm-bad-gradient", "no mean"): LayerNorm(
        lambda x: (x - mean(x).detach()) / (var(x) + 1e-5).sqrt()
    ),
    ("norm-bad-gradient", "of parameters"): HalfBias(standard),
    ("norm-bad-gradient", "wrong"): LayerNorm(lambda x: Bent.apply(standard(x))),
    ("norm-not-normalizing", "grows"): LayerNorm(
        lambda x: x * x.abs().mean(-1, keepdim=True).sqrt()
    ),
    ("norm-not-normalizing", "stored numbers"): StoredNorm(),
}

# --- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A model and what lint is told of it."""

    model: nn.Module
    inputs: Any = None
    causal: bool | None = None
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None


def scaled_by(factor: float) -> Callable[[nn.Module], None]:
    """The matrices that write to the stream, times a factor."""

    def init(block: nn.Module) -> None:
        for matrix in (block.attention.out.weight, block.down.weight):
            nn.init.normal_(matrix, std=0.02 * factor)

    return init


def without_norms(std: float) -> Callable[[nn.Module], None]:
    """Each branch multiplies what it reads, and nothing divides it again."""

    def init(block: nn.Module) -> None:
        block.n1, block.n2 = nn.Identity(), nn.Identity()
        for matrix in (block.up.weight, block.down.weight):
            nn.init.normal_(matrix, std=std)

    return init


class Tied(nn.Module):
    """With a configuration that says so, and weights that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(tie_word_embeddings=True)
        self.embed, self.block, self.head = nn.Embedding(13, DIM), Block(), nn.Linear(DIM, 13)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.block(self.embed(ids)))


class Masking(nn.Module):
    """A token in place of some, while training."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.token = Block(), nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = torch.where(torch.rand(x.shape[:2])[..., None] < 0.2, self.token, x)
        return self.block(x)


class Reinjected(Block):
    """The input is added once more, through no branch."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.extra * 3.0)


class BareMLP(Block):
    """Nothing goes around its MLP."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.n2(x + self.attention(self.n1(x))))))


class NormedOperand(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.n1(x) + self.attention(self.n2(x))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class BatchNormedBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        normal = F.batch_norm(x.mT, None, None, training=True).mT
        return x + self.down(F.gelu(self.up(normal)))


class Steep(Block):
    """Small changes of what it reads are large ones of what it writes."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.n1(x))
        return x + self.down(torch.sin(self.times * self.up(self.n2(x))))


def infinite(block: nn.Module) -> None:
    nn.init.constant_(block.down.bias, math.inf)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), weight_decay=0.0)


PROGRAMS: dict[tuple[str, str], Callable[[], Program]] = {
    ("attention-scale", "in the initialization"): lambda: Program(
        stack(*(Block(lambda q, k: (q @ k.mT).softmax(-1), smaller_queries) for _ in range(2))),
        FEATURES,
    ),
    ("norm-not-normalizing", "pointwise"): lambda: Program(CalledNorm(), IDS),
    ("norm-batch-dependent", "among convolutions"): lambda: Program(
        ConvNet(), torch.randn(2, 3, 16, 16)
    ),
    ("norm-batch-dependent", "function"): lambda: Program(BatchNormed(), FEATURES),
    ("linear-mlp", "elsewhere"): lambda: Program(
        nn.Sequential(Block(), nn.Linear(DIM, 2 * DIM), nn.Linear(2 * DIM, DIM)), FEATURES
    ),
    ("missing-final-norm", "returned"): lambda: Program(
        nn.Sequential(Block(), Block(), Block()), FEATURES
    ),
    ("init-residual-scale", "unscaled"): lambda: Program(
        stack(*(Block() for _ in range(4))), FEATURES
    ),
    ("init-residual-scale", "1/branches"): lambda: Program(
        stack(*(Block(init=scaled_by(1 / 8)) for _ in range(4))), FEATURES
    ),
    ("init-residual-scale", "1/sqrt(layers)"): lambda: Program(
        stack(*(Block(init=scaled_by(1 / 2)) for _ in range(4))), FEATURES
    ),
    ("init-residual-scale", "louder"): lambda: Program(
        stack(*(Block(init=scaled_by(3.0)) for _ in range(4))), FEATURES
    ),
    ("init-unstable", "not finite"): lambda: Program(stack(Block(init=infinite)), FEATURES),
    ("init-unstable", "gradient explodes"): lambda: Program(
        stack(*(Steep(1000.0) for _ in range(4))), FEATURES
    ),
    ("init-unstable", "gradient grows"): lambda: Program(
        stack(*(Steep(200.0) for _ in range(4))), FEATURES
    ),
    ("init-unstable", "stream explodes"): lambda: Program(
        stack(*(Block(init=without_norms(0.7)) for _ in range(4))), FEATURES
    ),
    ("init-unstable", "stream grows"): lambda: Program(
        stack(*(Block(init=without_norms(0.3)) for _ in range(4))), FEATURES
    ),
    ("no-residual", "products"): lambda: Program(stack(Block(), BareMLP(), Block()), FEATURES),
    ("norm-batch-dependent", "function in a block"): lambda: Program(
        stack(Block(), BatchNormedBlock()), FEATURES
    ),
    ("residual-wrong-tensor", "normed operand"): lambda: Program(
        stack(Block(), NormedOperand()), FEATURES
    ),
    ("batch-time-swapped", "everywhere, of a causal model"): lambda: Program(
        nn.Sequential(nn.Embedding(13, DIM), nn.TransformerEncoderLayer(DIM, HEADS)),
        IDS,
        causal=True,
    ),
    ("residual-wrong-tensor", "something else"): lambda: Program(
        stack(Block(), Reinjected()), FEATURES
    ),
    ("untied-weights", "declared"): lambda: Program(Tied(), IDS),
    ("unused-parameter", "read in training"): lambda: Program(Masking(), FEATURES),
    ("not-in-optimizer", "most"): lambda: Program(
        stack(Block()), FEATURES, optimizer=lambda model: adamw(list(model.children())[-1])
    ),
    ("not-in-optimizer", "foreign"): lambda: Program(
        stack(Block()),
        FEATURES,
        optimizer=lambda model: adamw(nn.ModuleList([model, nn.Linear(2, 2)])),
    ),
    ("not-in-optimizer", "some, and foreign"): lambda: Program(
        stack(Block()),
        FEATURES,
        optimizer=lambda model: adamw(nn.ModuleList([next(model.children()), nn.Linear(2, 2)])),
    ),
}


def attending(weigh: Weigh) -> Program:
    return Program(stack(Block(weigh), Block(weigh)), FEATURES)


def normed(norm: nn.Module) -> Program:
    return Program(Host(norm), IDS)


PROGRAMS |= {key: partial(attending, weigh) for key, weigh in WEIGHS.items()}
PROGRAMS |= {key: partial(normed, norm) for key, norm in NORMS.items()}


@pytest.mark.parametrize(("rule", "case"), PROGRAMS, ids=[f"{r}: {c}" for r, c in PROGRAMS])
def test_a_case_is_said(rule: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    program = PROGRAMS[rule, case]()
    monkeypatch.setattr(run, "CHECKS", [check for check in CHECKS if rule in check.names])
    optimizer = None if program.optimizer is None else program.optimizer(program.model)
    with cases_said() as cases:
        report = run.lint(program.model, program.inputs, causal=program.causal, optimizer=optimizer)
    assert (rule, case) in cases, (cases, report)
