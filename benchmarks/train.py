"""Training steps beside a plain PyTorch loop over transformers' GPT-2: same shape, same precision.

    python benchmarks/train.py --shapes small gpt2 --precisions fp32 bf16

Both get the same batches, AdamW with the same groups, clipping and autocast; ours is the step of
``addnorm train`` with everything it does besides (counting, checking for NaN, the schedule). Each
round runs both once, in turns of who goes first; the figures are medians, the ratio the median of
the rounds' ratios.
"""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from turns import in_turns, rates_in_words

from addnorm.models.gpt_config import GPTConfig
from addnorm.tasks.language import LanguageSettings
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World

# name -> dim, layers, heads, context, rows, vocabulary (of the plain loop and of ours alike)
SHAPES = {
    "small": (128, 4, 4, 64, 12, 257),
    "medium": (256, 4, 4, 256, 16, 257),
    "gpt2": (768, 12, 12, 256, 2, 50257),
}


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=SHAPES)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import transformers

    print(
        f"{args.rounds} rounds, {args.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )
    print(f"{'shape':7} {'precision':9} {'ours':>9} {'plain':>9}   ours/plain (tokens/s)")
    for shape in args.shapes:
        for precision in args.precisions:
            compare(shape, precision, args.rounds)


def compare(shape: str, precision: str, rounds: int) -> None:
    """One case: rounds of both, and a line."""
    _, _, _, context, rows, _ = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        runs = [ours(shape, precision, Path(folder)), plain(shape, precision)]
        for run in runs:
            run()
        seconds = in_turns(runs, rounds)
    print(f"{shape:7} {precision:9} {rates_in_words(seconds, rows * context)}", flush=True)


def ours(shape: str, precision: str, folder: Path) -> Callable[[], object]:
    """A step of ``addnorm train``."""
    dim, layers, heads, context, rows, vocab = SHAPES[shape]
    text = folder / "text.txt"
    text.write_text("".join(chr(97 + i % 26) for i in range(rows * context * 40)))
    settings = LanguageSettings(
        data=str(text),
        tokens_per_step=rows * context,
        cache=folder / "cache",
        model=GPTConfig(
            vocab_size=1, context_length=context, dim=dim, n_layers=layers, n_heads=heads
        ),
    )
    task = settings.build()
    object.__setattr__(task.config, "vocab_size", vocab)  # bytes have 257; the head is what costs
    loop = LoopSettings(steps=10_000, precision=precision, watch_every=0)
    return Trainer(task, loop, World(0, 1, torch.device("cpu"))).step


def plain(shape: str, precision: str) -> Callable[[], object]:
    """What one writes by hand over ``GPT2LMHeadModel``."""
    from transformers import GPT2Config, GPT2LMHeadModel

    dim, layers, heads, context, rows, vocab = SHAPES[shape]
    config = GPT2Config(
        vocab_size=vocab,
        n_positions=context,
        n_embd=dim,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).train()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    ids = torch.randint(97, 123, (rows, context + 1))

    def step() -> None:
        autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with autocast:
            logits = model(ids[:, :-1]).logits.float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


if __name__ == "__main__":
    main()
