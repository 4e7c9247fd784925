"""Generation beside transformers' generate: the same weights, greedy, interleaved in one process.

    python benchmarks/generate.py --size gpt2 --prompts 1 8 --dtypes float32 bfloat16

Random weights at the size asked for, saved once and loaded by both. Every round runs ours and
theirs once, in turns of who goes first; the figures are medians over the rounds, and the ratio is
the median of the rounds' ratios. In float32 the tokens of both must be the same.
"""

import argparse
import tempfile
from collections.abc import Callable

import torch
from turns import in_turns, rates_in_words

from addnorm.generation import lay_out_for_decoding
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import PRESETS


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="gpt2", choices=PRESETS)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--length", type=int, default=32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate")
    parser.add_argument("--usual-layout", action="store_true", help="ours as it was loaded")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    import transformers

    print(
        f"{args.size}, {args.length} tokens + {args.new} new, {args.rounds} rounds, "
        f"{args.threads} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(f"{'dtype':9} {'prompts':>7} {'ours':>9} {'theirs':>9}   ours/theirs (tokens/s)")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT(GPT.preset(args.size)).save_pretrained(folder)
        for name in args.dtypes:
            dtype = getattr(torch, name)
            ours = GPT.from_pretrained(folder, dtype=dtype)
            if not args.usual_layout:
                lay_out_for_decoding(ours)  # as ``addnorm generate`` does
            theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()
            for prompts in args.prompts:
                compare(name, ours, theirs, torch.randint(50257, (prompts, args.length)), args)


def compare(
    name: str,
    ours: GPT,
    theirs: torch.nn.Module,
    ids: torch.Tensor,
    args: argparse.Namespace,
) -> None:
    """One case: rounds of both, and a line."""
    mask = torch.ones_like(ids)
    runs: list[Callable[[], torch.Tensor]] = [
        lambda: ours.generate(ids, args.new, temperature=0),
        lambda: theirs.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=args.new,
            min_new_tokens=args.new,
            do_sample=False,
            pad_token_id=0,
        ),
    ]
    outputs = [run() for run in runs]  # to warm up
    assert outputs[0].shape == outputs[1].shape, "both write as much"
    if name == "float32":
        assert torch.equal(*outputs), "the same weights say the same"
    tokens = args.new * len(ids)
    line = rates_in_words(in_turns(runs, args.rounds), tokens, digits=1)
    print(f"{name:9} {len(ids):7} {line}", flush=True)


if __name__ == "__main__":
    main()
