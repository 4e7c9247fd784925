"""nanoGPT's CPU recipe on tiny Shakespeare in plain PyTorch, as an independent reference.

    python benchmarks/plain_char.py --data PATH --seeds 1 2 3

A bias-free pre-norm GPT of 4 layers, 4 heads and width 128 reads 64 characters and trains for 2000
steps on batches of 12. Nothing here comes from `addnorm`; attention, the norms' place, the schedule
and the clipping are written out. Per seed it prints the last and the best of the estimates of the
validation loss (20 random batches, every 250 steps), the exact loss after the last step (every
character of the validation part but the first predicted once, in consecutive windows of 64, the
last one shorter), and the seconds taken.
"""

import argparse
import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, LR, MIN_LR = 2000, 100, 1e-3, 1e-4
EVAL_EVERY, EVAL_BATCHES = 250, 20


class Model(nn.Module):
    def __init__(self, vocab: int, rng: torch.Generator) -> None:
        super().__init__()

        def normal(rows: int, columns: int, std: float = 0.02) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, columns).normal_(0.0, std, generator=rng))

        residual_std = 0.02 / math.sqrt(2 * LAYERS)  # two writers per layer
        self.tokens = normal(vocab, WIDTH)  # the embedding, and the head as well
        self.positions = normal(CONTEXT, WIDTH)
        self.final_norm = nn.Parameter(torch.ones(WIDTH))
        self.layers = nn.ModuleList(
            nn.ParameterDict(
                {
                    "attention_norm": nn.Parameter(torch.ones(WIDTH)),
                    "qkv": normal(3 * WIDTH, WIDTH),
                    "attention_out": normal(WIDTH, WIDTH, residual_std),
                    "mlp_norm": nn.Parameter(torch.ones(WIDTH)),
                    "mlp_in": normal(4 * WIDTH, WIDTH),
                    "mlp_out": normal(WIDTH, 4 * WIDTH, residual_std),
                }
            )
            for _ in range(LAYERS)
        )

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)  # [T, T], True: hidden
        x = self.tokens[ids] + self.positions[:length]  # [B, T, C]
        for layer in self.layers:
            assert isinstance(layer, nn.ParameterDict)
            x = x + attention(norm(x, layer["attention_norm"]), layer, future)
            hidden = F.gelu(norm(x, layer["mlp_norm"]) @ layer["mlp_in"].T)  # [B, T, 4C], erf
            x = x + hidden @ layer["mlp_out"].T
        return norm(x, self.final_norm) @ self.tokens.T  # [B, T, V]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), weight, bias=None, eps=1e-5)


def attention(x: Tensor, layer: nn.ParameterDict, future: Tensor) -> Tensor:
    batch, length, _ = x.shape
    qkv = (x @ layer["qkv"].T).view(batch, length, 3, HEADS, WIDTH // HEADS)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
    scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)  # [B, H, T, T]
    weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
    heads = (weights @ v).transpose(1, 2)  # [B, T, H, D]
    return heads.reshape(batch, length, WIDTH) @ layer["attention_out"].T  # [B, T, C]


def loss_of(model: Model, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction=reduction)


def draw(part: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of windows from uniformly random places, and their next characters."""
    starts = torch.randint(len(part) - CONTEXT, (BATCH, 1), generator=rng)
    windows = part[starts + torch.arange(CONTEXT + 1)]  # [B, T + 1]
    return windows[:, :-1], windows[:, 1:]


@torch.no_grad()
def estimate(model: Model, part: Tensor, rng: torch.Generator) -> float:
    losses = [loss_of(model, *draw(part, rng)).item() for _ in range(EVAL_BATCHES)]
    return sum(losses) / len(losses)


@torch.no_grad()
def exact(model: Model, part: Tensor) -> float:
    inputs, targets = part[:-1], part[1:]  # [N]
    total = 0.0
    for window, following in zip(inputs.split(CONTEXT), targets.split(CONTEXT), strict=True):
        total += loss_of(model, window[None], following[None], reduction="sum").item()
    return total / len(targets)


def learning_rate(step: int) -> float:
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)  # 0 to 1
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def run(train: Tensor, valid: Tensor, vocab: int, seed: int) -> tuple[list[float], float]:
    rng = torch.Generator().manual_seed(seed)  # the initial weights and every batch
    model = Model(vocab, rng)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), eps=1e-8)
    estimates = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.zero_grad()
        loss_of(model, *draw(train, rng)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % EVAL_EVERY == 0:
            estimates.append(estimate(model, valid, rng))
    return estimates, exact(model, valid)


def main() -> None:
    parser = argparse.ArgumentParser(description="nanoGPT's CPU recipe in plain PyTorch")
    parser.add_argument("--data", required=True, help="tinyshakespeare.txt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(args.data, encoding="utf-8", newline="") as file:  # the characters as they are
        text = file.read()
    ids = {character: i for i, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])  # [N]
    cut = int(0.9 * len(data))
    for seed in args.seeds:
        start = time.perf_counter()
        estimates, loss = run(data[:cut], data[cut:], len(ids), seed)
        print(
            f"seed {seed}: last estimate {estimates[-1]:.4f}, best estimate {min(estimates):.4f}, "
            f"exact {loss:.4f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
