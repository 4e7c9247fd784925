"""Correct Transformers, and two ways to break them in one place.

A host is a function without arguments that returns a ``Case``: a model, and what its user would
hand to ``lint`` with it. Some are written as people write them: a GPT after the tutorials, a
post-norm encoder as of 2017, an encoder-decoder, a decoder as of today, a GPT from a lecture, a
classifier. The others are transformers', torch's and x-transformers' own. Nothing is made of
addnorm's parts: what lint knows of our own models must not help it with others'.

``edited`` and ``patched`` make the faulty twin by a change of the program's text: one expression,
which must be there exactly once, is replaced by another.
"""
# mypy: ignore-errors
# ruff: noqa: RUF059
# Programs as their authors write them: without annotations, and some names unused.

import ast
import hashlib
import importlib.util
import inspect
import linecache
import math
import sys
import textwrap
import types
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LAYERS, VOCAB, CONTEXT = 48, 4, 3, 97, 32


@dataclass(frozen=True)
class Case:
    """A model and what its user hands to lint with it; None: lint finds out for itself."""

    model: nn.Module
    inputs: Any = None
    causal: bool | None = None
    optimizer: torch.optim.Optimizer | None = None


Make = Callable[[], Case]


@dataclass(frozen=True)
class Fault:
    """One edit of a correct twin, and the rule that has to notice."""

    name: str
    rule: str
    host: str
    make: Make
    also: tuple[str, ...] = ()
    """Other rules that the same edit truthfully breaks."""
    either: bool = False
    """Any of ``also`` names the mistake as well as ``rule`` does, and counts as having found it."""


FAMILIES: dict[str, tuple[str, ...]] = {
    "norms": (
        "norm-not-normalizing",
        "norm-wrong-axis",
        "norm-unbiased-variance",
        "norm-eps-outside-sqrt",
        "norm-batch-dependent",
        "norm-bad-gradient",
        "norm-low-precision",
    ),
    "wiring": (
        "no-residual",
        "residual-wrong-tensor",
        "double-norm",
        "missing-final-norm",
        "shared-norm",
        "unused-norm",
    ),
    "branches": (
        "linear-mlp",
        "dead-branch",
        "one-signed-branch",
        "identical-layers",
        "unused-parameter",
        "ignored-argument",
        "module-in-forward",
    ),
    "sight": (
        "future-leak",
        "no-causal-mask",
        "batch-leak",
        "batch-time-swapped",
        "padding-leak",
        "mask-nan",
        "position-blind",
        "positions-on-ids",
        "ignores-memory",
    ),
    "attention": ("attention-scale", "attention-not-normalized"),
    "initialization": ("init-residual-scale", "init-unstable"),
    "training": (
        "decay-on-norm",
        "not-in-optimizer",
        "duplicated-in-optimizer",
        "frozen-in-optimizer",
        "untied-weights",
        "dropout-in-eval",
    ),
}
"""Every rule that has faults here, by what it is about."""
RULES = tuple(rule for rules in FAMILIES.values() for rule in rules)

HOSTS: dict[str, Make] = {}


def host(make: Make) -> Make:
    """Register a correct model under its function's name."""
    HOSTS[make.__name__] = make
    return make


def built(name: str, make: Make) -> Case:
    """The case from the seed that its name gives."""
    torch.manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    return make()


def importable(package: str) -> bool:
    """Is an optional package there?"""
    return importlib.util.find_spec(package) is not None


def available(host: str) -> bool:
    """Is the package there whose model a host is?"""
    package = {"hf": "transformers", "x": "x_transformers"}.get(host.split("_")[0])
    return package is None or importable(package)


# --- the two ways to break a model ----------------------------------------------------------------

_numbers = count()


def replaced(text: str, old: str, new: str, where: str) -> str:
    """The text with its only ``old`` replaced."""
    if text.count(old) != 1:
        raise ValueError(f"{old!r} is there {text.count(old)} times in {where}, not once")
    return text.replace(old, new)


def edited(make: Make, where: str, old: str, new: str) -> Make:
    """A host of the file it stands in, after one edit in its class, function or method ``where``.

    The whole file is run again with that edit, so that __init__ and helpers can be edited as well
    as forward.
    """

    def made() -> Case:
        home = sys.modules[make.__module__]
        source = Path(home.__file__).read_text()
        segment = _segment(source, where)
        source = replaced(source, segment, replaced(segment, old, new, where), where)
        module = types.ModuleType(f"{home.__name__}_{next(_numbers)}")
        module.__file__ = f"<{module.__name__}>"
        sys.modules[module.__name__] = module  # dataclasses and inspect look there
        _remember(module.__file__, source)
        exec(compile(source, module.__file__, "exec"), vars(module))
        case = getattr(module, make.__name__)()
        return Case(case.model, case.inputs, case.causal, case.optimizer)

    return made


def patched(
    make: Make, where: str, old: str, new: str, *, through: str = "", only: int | None = None
) -> Make:
    """Somebody else's model, one method (``Class.method``) of its instances edited.

    ``through``: not the method itself but a function of its file that it calls. ``only``: just the
    one instance of this number.
    """
    class_name, method = where.split(".")

    def made() -> Case:
        case = make()
        found = [m for m in case.model.modules() if type(m).__name__ == class_name]
        if not found:
            raise ValueError(f"no {class_name} in {type(case.model).__name__}")
        cls = type(found[0])
        owner = next(c for c in cls.__mro__ if method in vars(c))
        names = dict(vars(sys.modules[owner.__module__]))
        source = _source(vars(owner)[method])
        if through:
            called = replaced(_source(names[through]), old, new, through)
            names[through] = _function(called, through, names, owner)
        else:
            source = replaced(source, old, new, where)
        function = _function(source, method, names, owner)
        inside = {method: function, "__module__": cls.__module__}
        broken = type(class_name, (cls,), inside)
        for module in found if only is None else [found[only]]:
            module.__class__ = broken
        return case

    return made


def changed(make: Make, change: Callable[[nn.Module], None]) -> Make:
    """The case after one statement about its model: ``model.ln_2 = model.ln_1``."""

    def made() -> Case:
        case = make()
        change(case.model)
        return case

    return made


@cache
def _tree(source: str) -> ast.Module:
    return ast.parse(source)


def _segment(source: str, where: str) -> str:
    """The lines of a class, function or method."""
    node: Any = _tree(source)
    for part in where.split("."):
        node = next(n for n in node.body if getattr(n, "name", None) == part)
    return "".join(source.splitlines(keepends=True)[node.lineno - 1 : node.end_lineno])


def _source(function: Any) -> str:
    """inspect.getsource, without its look at every module there is."""
    code = inspect.unwrap(function).__code__
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    return textwrap.dedent("".join(inspect.getblock(lines)))


def _function(source: str, name: str, names: dict[str, Any], owner: type) -> Any:
    """The function of a text; super() in it works as in a class."""
    inner = textwrap.indent(source, "    ")
    text = f"def _outer(__class__):\n{inner}\n    return {name}\n"
    filename = f"<edited {name} {next(_numbers)}>"
    _remember(filename, text)
    exec(compile(text, filename, "exec"), names)
    return names.pop("_outer")(owner)


def _remember(filename: str, source: str) -> None:
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


class Faults(list[Fault]):
    """A list of faults, each added by what was edited."""

    def add(
        self, name: str, rule: str, host: Make, make: Make, *also: str, either: bool = False
    ) -> None:
        """A fault made in any way."""
        if available(host.__name__):
            self.append(Fault(name, rule, host.__name__, make, also, either))

    def edit(
        self,
        name: str,
        rule: str,
        host: Make,
        where: str,
        old: str,
        new: str,
        *also: str,
        either: bool = False,
    ) -> None:
        """An edit of a host's own text."""
        self.add(name, rule, host, edited(host, where, old, new), *also, either=either)

    def patch(
        self,
        name: str,
        rule: str,
        host: Make,
        where: str,
        old: str,
        new: str,
        *also: str,
        through: str = "",
        only: int | None = None,
        either: bool = False,
    ) -> None:
        """An edit of a method of somebody else's model."""
        make = patched(host, where, old, new, through=through, only=only)
        self.add(name, rule, host, make, *also, either=either)

    def change(
        self,
        name: str,
        rule: str,
        host: Make,
        change: Callable[[nn.Module], Any],
        *also: str,
        either: bool = False,
    ) -> None:
        """A statement about a model that is built."""
        self.add(name, rule, host, changed(host, change), *also, either=either)


# --- a small GPT after the tutorials: causal, pre-norm, learned positions, a tied head ------------


class GPTNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, unbiased=False)
        x_hat = (x - mean) / torch.sqrt(var + self.eps)
        return self.weight * x_hat + self.bias


class GPTAttention(nn.Module):
    def __init__(self, dim, heads, context, dropout):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.c_proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(dropout)
        mask = torch.tril(torch.ones(context, context, dtype=torch.bool))
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q = q.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        k = k.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        v = v.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        scores = q @ k.transpose(-2, -1) / math.sqrt(C // self.heads)
        scores = scores.masked_fill(~self.mask[:T, :T], float("-inf"))
        weights = F.softmax(scores, dim=-1)
        weights = self.attn_drop(weights)
        out = weights @ v
        out = out.transpose(1, 2).contiguous().view(B, T, C)
        return self.c_proj(out)


class GPTMLP(nn.Module):
    def __init__(self, dim, dropout):
        super().__init__()
        self.c_fc = nn.Linear(dim, 4 * dim)
        self.c_proj = nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = F.gelu(self.c_fc(x))
        return self.drop(self.c_proj(x))


class GPTBlock(nn.Module):
    def __init__(self, dim, heads, context, dropout):
        super().__init__()
        self.ln_1 = GPTNorm(dim)
        self.attn = GPTAttention(dim, heads, context, dropout)
        self.ln_2 = GPTNorm(dim)
        self.mlp = GPTMLP(dim, dropout)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, vocab, context, dim, layers, heads, dropout=0.1):
        super().__init__()
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(context, dim)
        self.drop = nn.Dropout(dropout)
        blocks = [GPTBlock(dim, heads, context, dropout) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_f = GPTNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.apply(self.init)
        self.head.weight = self.tok.weight
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers))

    def init(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids):
        B, T = ids.shape
        x = self.tok(ids) + self.pos(torch.arange(T, device=ids.device))
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


@host
def gpt():
    return Case(GPT(VOCAB, CONTEXT, WIDTH, LAYERS, HEADS), causal=True)


@host
def gpt_with_optimizer():
    model = GPT(VOCAB, CONTEXT, WIDTH, LAYERS, HEADS)
    params = [p for p in model.parameters() if p.requires_grad]
    decay = [p for p in params if p.dim() >= 2]
    no_decay = [p for p in params if p.dim() < 2]
    groups = [
        {"params": decay, "weight_decay": 0.1},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    return Case(model, causal=True, optimizer=optimizer)


# --- an encoder in the manner of 2017: post-norm, sinusoidal positions, a padding mask ------------


class EncoderNorm(nn.Module):
    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return self.gamma * (x - mean) * torch.rsqrt(variance + self.eps) + self.beta


class EncoderPositions(nn.Module):
    def __init__(self, dim, longest):
        super().__init__()
        table = torch.zeros(longest, dim)
        position = torch.arange(longest).float().unsqueeze(1)
        rate = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000.0) / dim))
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.register_buffer("table", table.unsqueeze(0))

    def forward(self, x):
        return x + self.table[:, : x.size(1)]


class EncoderAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.d_k = heads, dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.1)

    def split(self, x):
        return x.reshape(x.size(0), x.size(1), self.heads, self.d_k).permute(0, 2, 1, 3)

    def forward(self, x, mask=None):
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(2, 3)) * self.d_k**-0.5
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e9)
        attention = self.dropout(torch.softmax(scores, dim=-1))
        context = torch.matmul(attention, v).permute(0, 2, 1, 3)
        return self.out(context.reshape(x.size(0), x.size(1), -1))


class EncoderFeedForward(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w_1 = nn.Linear(dim, hidden)
        self.w_2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.w_2(torch.relu(self.w_1(x)))


class EncoderLayer(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.attention = EncoderAttention(dim, heads)
        self.norm1 = EncoderNorm(dim)
        self.ffn = EncoderFeedForward(dim, hidden)
        self.norm2 = EncoderNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask=None):
        h = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(h + self.dropout(self.ffn(h)))


class Encoder(nn.Module):
    def __init__(self, vocab, dim, heads, hidden, layers, longest):
        super().__init__()
        self.scale = math.sqrt(dim)
        self.embed = nn.Embedding(vocab, dim)
        self.positions = EncoderPositions(dim, longest)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList([EncoderLayer(dim, heads, hidden) for _ in range(layers)])
        self.to_vocab = nn.Linear(dim, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)

    def forward(self, ids, mask=None):
        x = self.dropout(self.positions(self.embed(ids) * self.scale))
        for layer in self.layers:
            x = layer(x, mask)
        return self.to_vocab(x)


def padded_ids(batch=3, time=11):
    """Ids without 0, and a mask: 1 where there is a token, 0 where there is padding."""
    ids = torch.randint(1, VOCAB, (batch, time))
    lengths = torch.tensor([time, time - 3, time - 5])[:batch]
    mask = (torch.arange(time) < lengths[:, None]).long()
    return ids * mask, mask


@host
def encoder2017():
    ids, mask = padded_ids()
    model = Encoder(VOCAB, WIDTH, HEADS, 4 * WIDTH, LAYERS, CONTEXT)
    return Case(model, {"ids": ids, "mask": mask}, causal=False)


# --- an encoder-decoder, annotated: sublayer connections around functions -------------------------


class AnnotatedNorm(nn.Module):
    def __init__(self, features, eps=1e-6):
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(features))
        self.b_2 = nn.Parameter(torch.zeros(features))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        std = torch.sqrt(x.var(-1, keepdim=True, correction=0) + self.eps)
        return self.a_2 * (x - mean) / std + self.b_2


class SublayerConnection(nn.Module):
    def __init__(self, size, dropout):
        super().__init__()
        self.norm = AnnotatedNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, sublayer):
        return x + self.dropout(sublayer(self.norm(x)))


def attention(query, key, value, mask=None, dropout=None):
    d_k = query.size(-1)
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(d_k)
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    p_attn = scores.softmax(dim=-1)
    if dropout is not None:
        p_attn = dropout(p_attn)
    return torch.matmul(p_attn, value), p_attn


def clones(module, n):
    return nn.ModuleList([deepcopy(module) for _ in range(n)])


class MultiHeadedAttention(nn.Module):
    def __init__(self, h, d_model, dropout=0.1):
        super().__init__()
        self.d_k = d_model // h
        self.h = h
        self.linears = clones(nn.Linear(d_model, d_model), 4)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, query, key, value, mask=None):
        if mask is not None:
            mask = mask.unsqueeze(1)
        nbatches = query.size(0)
        query, key, value = (
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2)
            for lin, x in zip(self.linears, (query, key, value), strict=False)
        )
        x, _ = attention(query, key, value, mask=mask, dropout=self.dropout)
        x = x.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k)
        return self.linears[-1](x)


class PositionwiseFeedForward(nn.Module):
    def __init__(self, d_model, d_ff, dropout=0.1):
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.w_2(self.dropout(self.w_1(x).relu()))


class SourceLayer(nn.Module):
    def __init__(self, size, self_attn, feed_forward, dropout):
        super().__init__()
        self.self_attn = self_attn
        self.feed_forward = feed_forward
        self.sublayer = clones(SublayerConnection(size, dropout), 2)

    def forward(self, x, mask):
        x = self.sublayer[0](x, lambda x: self.self_attn(x, x, x, mask))
        return self.sublayer[1](x, self.feed_forward)


class TargetLayer(nn.Module):
    def __init__(self, size, self_attn, src_attn, feed_forward, dropout):
        super().__init__()
        self.self_attn = self_attn
        self.src_attn = src_attn
        self.feed_forward = feed_forward
        self.sublayer = clones(SublayerConnection(size, dropout), 3)

    def forward(self, x, memory, src_mask, tgt_mask):
        m = memory
        x = self.sublayer[0](x, lambda x: self.self_attn(x, x, x, tgt_mask))
        x = self.sublayer[1](x, lambda x: self.src_attn(x, m, m, src_mask))
        return self.sublayer[2](x, self.feed_forward)


class Stacked(nn.Module):
    def __init__(self, layer, n, size):
        super().__init__()
        self.layers = clones(layer, n)
        self.norm = AnnotatedNorm(size)

    def forward(self, x, *rest):
        for layer in self.layers:
            x = layer(x, *rest)
        return self.norm(x)


class AnnotatedEmbedding(nn.Module):
    def __init__(self, d_model, vocab, dropout, max_len=CONTEXT):
        super().__init__()
        self.lut = nn.Embedding(vocab, d_model)
        self.d_model = d_model
        self.dropout = nn.Dropout(p=dropout)
        pe = torch.zeros(max_len, d_model)
        position = torch.arange(0, max_len).unsqueeze(1)
        div_term = torch.exp(torch.arange(0, d_model, 2) * -(math.log(10000.0) / d_model))
        pe[:, 0::2] = torch.sin(position * div_term)
        pe[:, 1::2] = torch.cos(position * div_term)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, x):
        x = self.lut(x) * math.sqrt(self.d_model)
        x = x + self.pe[:, : x.size(1)]
        return self.dropout(x)


def subsequent_mask(size):
    return torch.tril(torch.ones(1, size, size, dtype=torch.uint8))


class EncoderDecoder(nn.Module):
    def __init__(self, vocab, n, d_model, d_ff, h, dropout=0.1):
        super().__init__()
        c = deepcopy
        attn = MultiHeadedAttention(h, d_model, dropout)
        ff = PositionwiseFeedForward(d_model, d_ff, dropout)
        self.encoder = Stacked(SourceLayer(d_model, c(attn), c(ff), dropout), n, d_model)
        self.decoder = Stacked(TargetLayer(d_model, c(attn), c(attn), c(ff), dropout), n, d_model)
        self.src_embed = AnnotatedEmbedding(d_model, vocab, dropout)
        self.tgt_embed = AnnotatedEmbedding(d_model, vocab, dropout)
        self.generator = nn.Linear(d_model, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, src, tgt, src_mask=None):
        tgt_mask = subsequent_mask(tgt.size(1))
        src_mask = None if src_mask is None else src_mask.unsqueeze(1)
        memory = self.encoder(self.src_embed(src), src_mask)
        hidden = self.decoder(self.tgt_embed(tgt), memory, src_mask, tgt_mask)
        return self.generator(hidden)


@host
def seq2seq():
    src, src_mask = padded_ids()
    model = EncoderDecoder(VOCAB, LAYERS, WIDTH, 4 * WIDTH, HEADS)
    tgt = torch.randint(1, VOCAB, (3, 7))
    return Case(model, {"src": src, "tgt": tgt, "src_mask": src_mask}, causal=True)


# --- a decoder as of today: RMSNorm, RoPE, SwiGLU, grouped queries --------------------------------


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        rms = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (h * rms).to(x.dtype) * self.weight


def rotary_table(head_dim, longest, base=10000.0):
    inverse = base ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(longest).float(), inverse)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class GroupedAttention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.n_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, t, self.n_kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, t, self.n_kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        v = v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, t, -1))


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ModernBlock(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, hidden):
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = GroupedAttention(dim, n_heads, n_kv_heads)
        self.ffn_norm = RMSNorm(dim)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(self, x, cos, sin):
        h = x + self.attention(self.attention_norm(x), cos, sin)
        return h + self.feed_forward(self.ffn_norm(h))


class Modern(nn.Module):
    def __init__(self, vocab, dim, layers, n_heads, n_kv_heads, hidden, longest):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList()
        for _ in range(layers):
            self.layers.append(ModernBlock(dim, n_heads, n_kv_heads, hidden))
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        cos, sin = rotary_table(dim // n_heads, longest)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=0.02)
        for block in self.layers:
            for linear in (block.attention.wo, block.feed_forward.down):
                nn.init.trunc_normal_(linear.weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, tokens):
        x = self.embed(tokens)
        cos, sin = self.cos[: tokens.size(1)], self.sin[: tokens.size(1)]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))


@host
def modern():
    return Case(Modern(VOCAB, WIDTH, LAYERS, HEADS, 2, 128, CONTEXT), causal=True)


@host
def modern_bf16():
    model = Modern(VOCAB, WIDTH, LAYERS, HEADS, 2, 128, CONTEXT).bfloat16()
    return Case(model, causal=True)


# --- a lecture's GPT: a module for each head, nn.LayerNorm, an untied head ------------------------


class Head(nn.Module):
    def __init__(self, n_embd, head_size, block_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        B, T, C = x.shape
        k = self.key(x)
        q = self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        wei = F.softmax(wei, dim=-1)
        wei = self.dropout(wei)
        return wei @ self.value(x)


class MultiHead(nn.Module):
    def __init__(self, n_embd, num_heads, block_size):
        super().__init__()
        head_size = n_embd // num_heads
        self.heads = nn.ModuleList([Head(n_embd, head_size, block_size) for _ in range(num_heads)])
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        out = torch.cat([h(x) for h in self.heads], dim=-1)
        return self.dropout(self.proj(out))


class FeedForward(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd),
            nn.ReLU(),
            nn.Linear(4 * n_embd, n_embd),
            nn.Dropout(0.2),
        )

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.sa = MultiHead(n_embd, n_head, block_size)
        self.ffwd = FeedForward(n_embd)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        x = x + self.ffwd(self.ln2(x))
        return x


class LectureGPT(nn.Module):
    def __init__(self, vocab_size, n_embd, n_head, n_layer, block_size):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    def forward(self, idx):
        B, T = idx.shape
        tok_emb = self.token_embedding_table(idx)
        pos_emb = self.position_embedding_table(torch.arange(T))
        x = tok_emb + pos_emb
        x = self.blocks(x)
        x = self.ln_f(x)
        return self.lm_head(x)


@host
def lecture_gpt():
    return Case(LectureGPT(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT), causal=True)


# --- a text classifier, as in a blog post: its own LayerNorm, post-norm, padding is token 0 -------


class BlogLayerNorm(nn.Module):
    def __init__(self, size, affine=True, eps=1e-5):
        super().__init__()
        self.affine = affine
        self.eps = eps
        if affine:
            self.scale = nn.Parameter(torch.ones(size))
            self.shift = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        mu = x.mean(dim=-1, keepdim=True)
        var = (x - mu).pow(2).mean(dim=-1, keepdim=True)
        normed = (x - mu) / (var + self.eps).sqrt()
        if self.affine:
            return normed * self.scale + self.shift
        return normed


class BlogBlock(nn.Module):
    def __init__(self, size, heads, affine):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(size, size)
        self.to_k = nn.Linear(size, size)
        self.to_v = nn.Linear(size, size)
        self.unify = nn.Linear(size, size)
        self.norm_a = BlogLayerNorm(size, affine)
        self.norm_b = BlogLayerNorm(size, affine)
        self.fc1 = nn.Linear(size, 3 * size)
        self.fc2 = nn.Linear(3 * size, size)

    def attend(self, x, pad):
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, self.heads, -1) for f in (self.to_q, self.to_k, self.to_v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k)
        scores = scores / (d // self.heads) ** 0.5
        scores = scores.masked_fill(pad[:, None, None, :], torch.finfo(scores.dtype).min)
        probs = torch.softmax(scores, dim=-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", probs, v).reshape(b, t, d)
        return self.unify(mixed)

    def forward(self, x, pad):
        x = self.norm_a(x + self.attend(x, pad))
        x = self.norm_b(x + self.fc2(F.relu(self.fc1(x))))
        return x


class BlogClassifier(nn.Module):
    def __init__(self, vocab, size, heads, depth, longest, classes, affine=True):
        super().__init__()
        self.words = nn.Embedding(vocab, size, padding_idx=0)
        self.places = nn.Embedding(longest, size)
        self.blocks = nn.ModuleList([BlogBlock(size, heads, affine) for _ in range(depth)])
        self.to_class = nn.Linear(size, classes)

    def forward(self, tokens):
        pad = tokens == 0
        places = torch.arange(tokens.size(1), device=tokens.device)
        x = self.words(tokens) + self.places(places)
        for block in self.blocks:
            x = block(x, pad)
        keep = (~pad).unsqueeze(-1).float()
        pooled = (x * keep).sum(1) / keep.sum(1).clamp(min=1.0)
        return self.to_class(pooled)


@host
def classifier():
    model = BlogClassifier(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT, classes=5)
    return Case(model, padded_ids()[0], causal=False)


# --- torch's own layers in a wrapper --------------------------------------------------------------


class TorchEncoder(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.randn(1, longest, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, ids, pad=None):
        x = self.embed(ids) + self.pos[:, : ids.size(1)]
        x = self.encoder(x, src_key_padding_mask=pad)
        return self.head(x)


@host
def torch_encoder():
    ids, mask = padded_ids()
    model = TorchEncoder(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT)
    return Case(model, {"ids": ids, "pad": mask == 0}, causal=False)


class TorchPlain(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(longest, dim)
        layer = nn.TransformerEncoderLayer(d_model=dim, nhead=heads, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=layers)
        self.fc = nn.Linear(dim, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x):
        x = self.embed(x) + self.pos(torch.arange(x.size(1)))
        return self.fc(self.encoder(x))


@host
def torch_plain():
    return Case(TorchPlain(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT), causal=False)


class TorchLM(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.dim = dim
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(longest, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.decoder = nn.Linear(dim, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, src):
        T = src.size(1)
        x = self.embed(src) * math.sqrt(self.dim) + self.pos(torch.arange(T))
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        x = self.encoder(x, mask=mask, is_causal=True)
        return self.decoder(x)


@host
def torch_lm():
    return Case(TorchLM(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT), causal=True)


class TorchSeq2Seq(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(longest, dim)
        enc = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True, norm_first=True)
        dec = nn.TransformerDecoderLayer(dim, heads, 4 * dim, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(
            enc, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(dec, layers, norm=nn.LayerNorm(dim))
        self.out = nn.Linear(dim, vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def embedded(self, ids):
        return self.embed(ids) + self.pos(torch.arange(ids.size(1)))

    def forward(self, src, tgt):
        memory = self.encoder(self.embedded(src))
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1))
        y = self.decoder(self.embedded(tgt), memory, tgt_mask=mask, tgt_is_causal=True)
        return self.out(y)


@host
def torch_seq2seq():
    model = TorchSeq2Seq(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT)
    src, tgt = torch.randint(0, VOCAB, (3, 11)), torch.randint(0, VOCAB, (3, 7))
    return Case(model, (src, tgt), causal=True)


# --- transformers and x-transformers --------------------------------------------------------------


@host
def hf_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    return Case(GPT2LMHeadModel(config), causal=True)


@host
def hf_bert():
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        attn_implementation="eager",
    )
    return Case(BertForMaskedLM(config), causal=False)


@host
def hf_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
    )
    return Case(LlamaForCausalLM(config), causal=True)


@host
def hf_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=12,
        d_ff=4 * WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        decoder_start_token_id=0,
    )
    inputs = {
        "input_ids": torch.randint(2, VOCAB, (3, 11)),
        "decoder_input_ids": torch.randint(2, VOCAB, (3, 7)),
    }
    return Case(T5ForConditionalGeneration(config), inputs, causal=True)


@host
def x_decoder():
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH // HEADS)
    model = TransformerWrapper(num_tokens=VOCAB, max_seq_len=CONTEXT, attn_layers=layers)
    return Case(model, torch.randint(0, VOCAB, (3, 11)), causal=True)


@host
def x_encoder():
    from x_transformers import Encoder as XEncoder
    from x_transformers import TransformerWrapper

    layers = XEncoder(dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH // HEADS)
    model = TransformerWrapper(num_tokens=VOCAB, max_seq_len=CONTEXT, attn_layers=layers)
    return Case(model, torch.randint(0, VOCAB, (3, 11)), causal=False)
