"""Small models with attention in three styles (written out, torch.nn, transformers with a line
changed), right and wrong, for the tests that ask who sees whom."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

W, HEADS, VOCAB, LONGEST = 24, 4, 61, 32


def built(make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return make(**options).eval()


class Attention(nn.Module):
    def __init__(
        self,
        mask: str = "causal",
        fill: float = float("-inf"),
        swapped: bool = False,
        scrambled: bool = False,
    ) -> None:
        super().__init__()
        self.mask, self.fill, self.swapped, self.scrambled = mask, fill, swapped, scrambled
        self.qkv, self.proj = nn.Linear(W, 3 * W), nn.Linear(W, W)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if self.swapped:
            x = x.transpose(0, 1)
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in self.qkv(x).split(W, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(W // HEADS)
        ones = torch.ones(t, t, dtype=torch.bool)
        mask = {
            "causal": ones.tril(),
            "off by one": ones.tril(1),
            "upside down": ones.triu(),
            "none": ones,
        }[self.mask]
        scores = scores.masked_fill(~mask, self.fill)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None, :], self.fill)
        y = scores.softmax(-1) @ v  # (b, heads, t, head)
        y = self.proj((y if self.scrambled else y.transpose(1, 2)).reshape(b, t, W))
        return y.transpose(0, 1) if self.swapped else y


class Block(nn.Module):
    def __init__(self, extra: nn.Module | None = None, **attention: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(W), nn.LayerNorm(W)
        self.attn = Attention(**attention)
        self.mlp = nn.Sequential(nn.Linear(W, 2 * W), nn.GELU(), nn.Linear(2 * W, W))
        self.extra = nn.Identity() if extra is None else extra

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), keep)
        return self.extra(x + self.mlp(self.ln_2(x)))


class TinyGPT(nn.Module):
    """As tutorials write it. ``at`` is the block that takes the edit; None: all."""

    def __init__(self, at: int | None = None, positions: bool = True, **edit: Any) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCAB, W)
        self.wpe = nn.Embedding(LONGEST, W) if positions else None
        self.h = nn.ModuleList(Block(**(edit if at in (None, i) else {})) for i in range(3))
        self.ln_f, self.head = nn.LayerNorm(W), nn.Linear(W, VOCAB)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        x = self.wte(idx)
        if self.wpe is not None:
            x = x + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss


class Encoder(nn.Module):
    """Torch's layers behind tokens; what is not None is an edit."""

    def __init__(
        self,
        batch_first: bool = True,
        positions: bool = True,
        mask: bool = False,
        pass_padding: bool = True,
        pool: str = "",
        drop: Callable[[Tensor], Tensor] | None = None,
        p: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, W)
        self.pos = nn.Parameter(torch.randn(1, LONGEST, W)) if positions else None
        layer = nn.TransformerEncoderLayer(W, HEADS, 32, p, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(W, 5)
        self.mask, self.pass_padding, self.pool = mask, pass_padding, pool
        self.drop = drop or (lambda x: x)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        h = self.tokens(x)
        if self.pos is not None:
            h = h + self.pos[:, : x.shape[1]]
        h = self.drop(h)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.mask else None
        if mask is not None:
            mask = mask.to(h.dtype)
        h = self.encoder(h, mask, padding_mask if self.pass_padding else None)
        if self.pool == "mean":
            h = h.mean(1)
        elif self.pool == "real mean":
            real = torch.ones_like(x, dtype=h.dtype) if padding_mask is None else ~padding_mask
            h = (h * real.to(h)[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return self.head(h)


class Transformer(nn.Module):
    """nn.Transformer with tokens: a translator."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.tokens = nn.Embedding(VOCAB, W)
        self.pos = nn.Parameter(torch.randn(1, LONGEST, W))
        self.inner = nn.Transformer(W, HEADS, 2, 2, 32, batch_first=True)
        self.head = nn.Linear(W, VOCAB)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        def front(ids: Tensor) -> Tensor:
            return self.tokens(ids) + self.pos[:, : ids.shape[1]]

        mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1]).to(self.pos.dtype)
        memory = self.inner.encoder(front(src))
        if self.wrong == "zeros":
            memory = memory * 0
        if self.wrong == "itself":
            memory = front(tgt)[:, :1]
        return self.head(
            self.inner.decoder(front(tgt), memory, None if self.wrong == "mask" else mask)
        )


def gpt2(**config: Any) -> nn.Module:
    t = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": VOCAB,
        "n_positions": LONGEST,
        "n_embd": W,
        "n_layer": 2,
        "n_head": HEADS,
    }
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return t.GPT2LMHeadModel(t.GPT2Config(**sizes, **ids, **config))


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": W,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 32,
    "max_position_embeddings": LONGEST,
}


def bert() -> nn.Module:
    t = pytest.importorskip("transformers")
    return t.BertForMaskedLM(t.BertConfig(**SMALL))


def llama() -> nn.Module:
    t = pytest.importorskip("transformers")
    return t.LlamaForCausalLM(t.LlamaConfig(**SMALL, bos_token_id=1, eos_token_id=2))


def t5() -> nn.Module:
    t = pytest.importorskip("transformers")
    config = t.T5Config(vocab_size=VOCAB, d_model=W, d_kv=6, d_ff=32, num_layers=2, num_heads=HEADS)
    return t.T5ForConditionalGeneration(config)


def edited(
    model: nn.Module, path: str, edit: Callable[[Any, Callable[..., Any]], Any]
) -> nn.Module:
    """One module's forward replaced by ``edit(module, forward)``, by class: copies copy it."""
    module = model.get_submodule(path)
    old = type(module).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return edit(self, lambda *a, **k: old(self, *(a or args), **{**kwargs, **k}))

    kind = type(type(module).__name__, (type(module),), {"forward": forward})
    module.__class__ = kind
    return model


class MeanOverTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class BatchCentre(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Conv(nn.Module):
    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.sides = (left, right)
        self.conv = nn.Conv1d(W, W, left + right + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.pad(x.transpose(1, 2), self.sides)).transpose(1, 2)


class Captioner(nn.Module):
    """Captions of features: nobody but the caller knows where these stand."""

    def __init__(self, reads: str = "features", width: int = 20) -> None:
        super().__init__()
        self.reads = reads
        self.tokens, self.positions = nn.Embedding(VOCAB, W), nn.Embedding(LONGEST, W)
        self.inner = nn.Linear(width, W)
        layer = nn.TransformerDecoderLayer(W, HEADS, 32, batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 2, nn.LayerNorm(W))
        self.head = nn.Linear(W, VOCAB)

    def front(self, features: Tensor) -> Tensor:
        return self.inner(features)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        n = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(n))
        mask = nn.Transformer.generate_square_subsequent_mask(n).to(x.dtype)
        memory = self.front(features) if self.reads == "features" else x[:, :1]
        return self.head(self.layers(x, memory, mask))


class Listener(Captioner):
    """Cuts its frames from a spectrogram itself, so that they are its own to place."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(20, W, 3, 3)
        self.hears = nn.TransformerEncoderLayer(W, HEADS, 32, batch_first=True)

    def front(self, features: Tensor) -> Tensor:
        return self.hears(self.frames(features.transpose(1, 2)).transpose(1, 2))


class Patches(nn.Module):
    """Pixels or samples of sound in patches; ``swapped`` blocks attend over the batch."""

    def __init__(
        self, swapped: tuple[int, ...] = (), pool: str = "class", sound: bool = False
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(1, W, 20, 20) if sound else nn.Conv2d(3, W, 4, 4)
        self.cut, self.sound, self.pool, self.swapped = conv, sound, pool, swapped
        self.first = nn.Parameter(torch.randn(1, 1, W))
        self.pos = nn.Parameter(torch.randn(1, LONGEST, W))
        self.h = nn.ModuleList(Block(mask="none", swapped=i in swapped) for i in range(2))
        self.norm, self.head = nn.LayerNorm(W), nn.Linear(W, 5)

    def forward(self, input_values: Tensor) -> Tensor:
        x = self.cut(input_values[:, None] if self.sound else input_values)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        x = x + self.pos[:, : x.shape[1]]
        for block in self.h:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0] if self.pool == "class" else x.mean(1) if self.pool else x)


class Pictures(Patches):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return super().forward(pixel_values)


class Inline(nn.Module):
    """A model whose only attention is in its own forward; ``edit`` is done to the embeddings."""

    def __init__(self, edit: Callable[[Tensor], Tensor], causal: bool = True) -> None:
        super().__init__()
        self.edit, self.causal = edit, causal
        self.wte, self.wpe = nn.Embedding(VOCAB, W), nn.Embedding(LONGEST, W)
        self.qkv, self.proj, self.norm = nn.Linear(W, 3 * W), nn.Linear(W, W), nn.LayerNorm(W)
        self.head = nn.Linear(W, VOCAB)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.edit(self.wte(idx) + self.wpe(torch.arange(idx.shape[1])))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        return self.head(x)


class Told(Encoder):
    """A causal encoder of torch's with something done to its embeddings."""

    def __init__(self, edit: Callable[[Tensor], Tensor]) -> None:
        super().__init__(mask=True, drop=edit)


class Fourier(nn.Module):
    """Mixes places without any attention."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(VOCAB, W), nn.Linear(W, VOCAB)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.wte(idx)
        return self.head(x + torch.fft.fft2(x).real)


OPEN = torch.zeros(1, 1, 7, 7)  # added to the scores: nothing is hidden


def no_mask(module: Any, forward: Callable[..., Any]) -> Any:
    """An edit of transformers' models: what is given to this module is not."""
    return forward(attention_mask=None)


class Padded(nn.Module):
    """Two own layers that take what is to be kept."""

    def __init__(self, fill: float, mask: str = "none", ignore: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, W), nn.Embedding(LONGEST, W)
        self.h = nn.ModuleList(Block(mask=mask, fill=fill) for _ in range(2))
        self.ignore = ignore

    def forward(self, idx: Tensor, valid: Tensor, scale: bool = False) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        if scale and not self.ignore:
            x = 2 * x
        for block in self.h:
            x = block(x, None if self.ignore else valid.bool())
        return x
