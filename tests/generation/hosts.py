"""Models that write what they are told to, or anything, quickly."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.generation import generate
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from tests.nets import stir

BYTES = Tokenizer.bytes()
CHARACTERS = Tokenizer.characters("abcxyz .")  # no end of text, and not every byte
TEXT = "the cat and the café: 12, 123, 1234 naïve 日本語日本 the end of the theme " * 20
PAIRS = Tokenizer.train(TEXT, vocab_size=300)  # merges, some of them across characters
TOKENIZERS = {"bytes": BYTES, "characters": CHARACTERS, "pairs": PAIRS}
PROMPTS = ["a", "The cat", "12, 123, 1234, 12345", "日本", "the café and the theme of the end "]


def tiny(seed: int = 0, **changes: Any) -> GPT:
    """A small model moved away from its init, with a head of its own: one whose head is its token
    table repeats the last token for ever."""
    config = GPTConfig(
        vocab_size=300, context_length=400, dim=16, n_layers=2, n_heads=4, tied=False
    )
    torch.manual_seed(seed)
    model = GPT(dataclasses.replace(config, **changes))
    stir(model, seed)
    with torch.no_grad():
        # branches that say something even where nothing else is left; without any norm, less loud:
        # what grows from layer to layer enlarges rounding as much
        loud = 0.5 if model.config.scheme == "no_norm" else 1.0
        for p in model.stack.parameters():
            if p.dim() == 2:
                p.normal_(std=loud * p.shape[1] ** -0.5)
        model.tokens.weight.normal_()
        if model.head is not None:
            model.head.weight.normal_(std=0.3)
    return model.eval()


def prompt(length: int, seed: int = 0, batch: int = 1, vocab: int = 61) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(vocab, (batch, length), generator=g)


@dataclasses.dataclass(frozen=True)
class Shape:
    vocab_size: int = 300
    context_length: int = 10_000


class Scripted(nn.Module):
    """Says the given ids one after the other, whatever it reads: for one row."""

    def __init__(self, ids: list[int], sharp: float = 50.0, **shape: int) -> None:
        super().__init__()
        self.config = Shape(**shape)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.ids, self.sharp, self.said = ids, sharp, 0

    def forward(self, ids, valid=None, *, cache=None, last=None):
        cache.update(0, torch.zeros(len(ids), 1, ids.shape[1], 1), torch.zeros(1, 1, 1, 1))
        logits = torch.zeros(len(ids), 1, self.config.vocab_size)
        logits[:, :, self.ids[self.said]] = self.sharp
        self.said += 1
        return logits


class Bigrams(nn.Module):
    """The next token depends on the last one only: anything can be said, and quickly."""

    def __init__(self, seed: int, vocab_size: int = 300, scale: float = 3.0) -> None:
        super().__init__()
        self.config = Shape(vocab_size)
        g = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(scale * torch.randn(vocab_size, vocab_size, generator=g))

    def forward(self, ids, valid=None, *, cache=None, last=None):
        k = torch.zeros(len(ids), 1, ids.shape[1], 1)
        cache.update(0, k, k)
        return self.table[ids][:, -last:]


def say(text: str | bytes, tokenizer: Tokenizer = BYTES, prompt: str = "p", **options: Any) -> Any:
    """What ``generate`` makes of a model that says this, and then only spaces."""
    data = text.encode() if isinstance(text, str) else text
    ids = tokenizer.encode_bytes(data)
    model = Scripted(ids + tokenizer.encode(" ") * 200)
    options = {"temperature": 0, "max_new_tokens": len(ids), **options}
    return generate(model, prompt, tokenizer=tokenizer, **options)


@torch.no_grad()
def without_cache(model: GPT, ids: Any) -> Tensor:
    """The logits of a row's second token, of its third, ..., by one forward: (n - 1, V)."""
    return model(torch.as_tensor(ids)[None, :-1])[0]
