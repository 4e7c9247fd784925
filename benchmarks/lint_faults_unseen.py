"""Faults that nobody looks at while the rules are made: a third of the benchmark.

Their hosts are in no other file, and written as people write them: a port of GPT-2 with Conv1D, a
translator with time first, an image classifier with register tokens, a conformer, a diffusion
transformer, T5 by hand, PaLM's parallel blocks, a (hidden, residual) pair as servers have it,
experts, a forecaster. The others are models of transformers and x-transformers that serve nowhere
else. Every rule is here at least once.
"""
# mypy: ignore-errors
# ruff: noqa: RUF059

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.lint_hosts import (
    CONTEXT,
    HEADS,
    LAYERS,
    VOCAB,
    WIDTH,
    Case,
    Faults,
    padded_ids,
)

MORE_HOSTS = {}
KNOWN = {
    "hf_whisper": {
        "ignored-argument": "attention_mask is kept for compatibility and not used, as it says"
    },
}
"""What these hosts really have, rule by rule, and why it stays."""


def host(make):
    """A correct model of this file, under its function's name."""
    MORE_HOSTS[make.__name__] = make
    return make


# --- a port of GPT-2: Conv1D, the mask a buffer, weights to be scaled down carry a flag -----------


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        x = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return x.view(size_out)


class LayerNorm(nn.Module):
    def __init__(self, ndim, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input):
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class NewGELU(nn.Module):
    def forward(self, x):
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return 0.5 * x * (1.0 + torch.tanh(inner))


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.c_attn = Conv1D(3 * n_embd, n_embd)
        self.c_proj = Conv1D(n_embd, n_embd)
        self.c_proj.SCALE_INIT = True
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)
        lower = torch.tril(torch.ones(block_size, block_size))
        self.register_buffer("bias", lower.view(1, 1, block_size, block_size))
        self.n_head = n_head

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(C, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        att = self.attn_dropout(att)
        y = att @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class PortMLP(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.c_fc = Conv1D(4 * n_embd, n_embd)
        self.act = NewGELU()
        self.c_proj = Conv1D(n_embd, 4 * n_embd)
        self.c_proj.SCALE_INIT = True
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class PortBlock(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.ln_1 = LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, block_size)
        self.ln_2 = LayerNorm(n_embd)
        self.mlp = PortMLP(n_embd)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class PortedGPT(nn.Module):
    def __init__(self, vocab_size, block_size, n_embd, n_layer, n_head):
        super().__init__()
        self.n_layer = n_layer
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "drop": nn.Dropout(0.1),
                "h": nn.ModuleList([PortBlock(n_embd, n_head, block_size) for _ in range(n_layer)]),
                "ln_f": LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            std = 0.02
            if hasattr(module, "SCALE_INIT"):
                std *= (2 * self.n_layer) ** -0.5
            nn.init.normal_(module.weight, mean=0.0, std=std)

    def forward(self, idx):
        b, t = idx.size()
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device).unsqueeze(0)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        return self.lm_head(x)


@host
def ported_gpt():
    return Case(PortedGPT(VOCAB, CONTEXT, WIDTH, LAYERS, HEADS), causal=True)


@host
def ported_gpt_trained():
    model = PortedGPT(VOCAB, CONTEXT, WIDTH, LAYERS, HEADS)
    spared = set()
    for name, module in model.named_modules():
        for key, _ in module.named_parameters(recurse=False):
            if key.endswith("bias") or isinstance(module, (LayerNorm, nn.Embedding)):
                spared.add(f"{name}.{key}")
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if n not in spared], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if n in spared], "weight_decay": 0.0},
    ]
    return Case(model, causal=True, optimizer=torch.optim.AdamW(groups, betas=(0.9, 0.95)))


# --- a translator, (time, batch, features) inside, pre-norm, on nn.MultiheadAttention -------------


class TimeFirstNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)
        return x * self.gain + self.shift


class TranslatorEncoderLayer(nn.Module):
    def __init__(self, dim, heads, activation):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=0.1)
        self.self_attn_norm = TimeFirstNorm(dim)
        self.activation = activation
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.final_norm = TimeFirstNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, hidden):
        residual = x
        x = self.self_attn_norm(x)
        x = self.self_attn(x, x, x, key_padding_mask=hidden, need_weights=False)[0]
        x = residual + self.dropout(x)
        residual = x
        x = self.final_norm(x)
        x = self.fc2(self.dropout(self.activation(self.fc1(x))))
        return residual + self.dropout(x)


class TranslatorDecoderLayer(nn.Module):
    def __init__(self, dim, heads, activation):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=0.1)
        self.self_attn_norm = TimeFirstNorm(dim)
        self.encoder_attn = nn.MultiheadAttention(dim, heads, dropout=0.1)
        self.encoder_attn_norm = TimeFirstNorm(dim)
        self.activation = activation
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.final_norm = TimeFirstNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, memory, hidden, causal):
        residual = x
        x = self.self_attn_norm(x)
        x = self.self_attn(x, x, x, attn_mask=causal, need_weights=False)[0]
        x = residual + self.dropout(x)
        residual = x
        x = self.encoder_attn_norm(x)
        x = self.encoder_attn(x, memory, memory, key_padding_mask=hidden, need_weights=False)[0]
        x = residual + self.dropout(x)
        residual = x
        x = self.final_norm(x)
        x = self.fc2(self.dropout(self.activation(self.fc1(x))))
        return residual + self.dropout(x)


def sinusoids(longest, dim):
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angle = torch.arange(longest).unsqueeze(1) * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class Translator(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.dim = dim
        self.embed = nn.Embedding(vocab, dim, padding_idx=0)
        self.register_buffer("places", sinusoids(longest, dim).unsqueeze(1))
        self.dropout = nn.Dropout(0.1)
        self.encoder = nn.ModuleList(
            [TranslatorEncoderLayer(dim, heads, F.relu) for _ in range(layers)]
        )
        self.encoder_norm = TimeFirstNorm(dim)
        self.decoder = nn.ModuleList(
            [TranslatorDecoderLayer(dim, heads, F.relu) for _ in range(layers)]
        )
        self.decoder_norm = TimeFirstNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.embed.weight, std=dim**-0.5)
        nn.init.zeros_(self.embed.weight[0].detach())
        self.output.weight = self.embed.weight

    def embedded(self, ids):
        x = self.embed(ids).transpose(0, 1) * math.sqrt(self.dim)  # (time, batch, features)
        return self.dropout(x + self.places[: x.size(0)])

    def forward(self, src, tgt, src_pad=None):
        hidden = None
        if src_pad is not None:  # finite, so that a source of nothing but padding is no NaN
            hidden = torch.zeros(src_pad.shape).masked_fill(src_pad, -1e4)
        x = self.embedded(src)
        for layer in self.encoder:
            x = layer(x, hidden)
        memory = self.encoder_norm(x)
        t = tgt.size(1)
        causal = torch.full((t, t), float("-inf")).triu(1)
        y = self.embedded(tgt)
        for layer in self.decoder:
            y = layer(y, memory, hidden, causal)
        return self.output(self.decoder_norm(y)).transpose(0, 1)


@host
def translator():
    src, mask = padded_ids()
    tgt = torch.randint(1, VOCAB, (3, 7))
    model = Translator(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT)
    return Case(model, {"src": src, "tgt": tgt, "src_pad": mask == 0}, causal=True)


# --- an image classifier: patches by reshape, register tokens, layer scale, drop path -------------


class TokenNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = torch.rand(x.size(0), 1, 1, device=x.device) >= self.p
        return x * keep / (1 - self.p)


class LayerScale(nn.Module):
    def __init__(self, dim, init):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x):
        return x * self.gamma


class VisionAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class VisionBlock(nn.Module):
    def __init__(self, dim, heads, drop):
        super().__init__()
        self.norm1 = TokenNorm(dim)
        self.attn = VisionAttention(dim, heads)
        self.ls1 = LayerScale(dim, 0.1)
        self.norm2 = TokenNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.ls2 = LayerScale(dim, 0.1)
        self.drop_path = DropPath(drop)

    def forward(self, x):
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.ls2(self.fc2(F.gelu(self.fc1(self.norm2(x))))))
        return x


class PatchViT(nn.Module):
    def __init__(self, side, patch, dim, depth, heads, classes, registers=2):
        super().__init__()
        self.patch = patch
        self.to_patch = nn.Linear(3 * patch * patch, dim)
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.registers = nn.Parameter(torch.zeros(1, registers, dim))
        rates = [0.2 * i / (depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList([VisionBlock(dim, heads, rate) for rate in rates])
        self.norm = TokenNorm(dim)
        self.head = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for p in (self.positions, self.cls_token, self.registers):
            nn.init.trunc_normal_(p, std=0.02)

    def patches(self, images):
        b, c, h, w = images.shape
        p = self.patch
        x = images.reshape(b, c, h // p, p, w // p, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)

    def forward(self, images):
        x = self.to_patch(self.patches(images)) + self.positions
        b = x.size(0)
        x = torch.cat([self.cls_token.expand(b, -1, -1), self.registers.expand(b, -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@host
def patch_vit():
    return Case(PatchViT(24, 6, WIDTH, LAYERS, HEADS, 7), torch.randn(3, 3, 24, 24), causal=False)


def layer_of(name, depth):
    """0 for what comes before the blocks, depth + 1 for what comes behind."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.")) else 0


@host
def patch_vit_tuned():
    model = PatchViT(24, 6, WIDTH, LAYERS, HEADS, 7)
    depth = len(model.blocks)
    groups = []
    for i in range(depth + 2):
        named = [(n, p) for n, p in model.named_parameters() if layer_of(n, depth) == i]
        plain = [p for n, p in named if p.dim() < 2 or n in ("positions", "cls_token", "registers")]
        decay = [p for n, p in named if not any(p is q for q in plain)]
        rate = 1e-3 * 0.75 ** (depth + 1 - i)
        groups.append({"params": decay, "weight_decay": 0.05, "lr": rate})
        groups.append({"params": plain, "weight_decay": 0.0, "lr": rate})
    optimizer = torch.optim.AdamW(groups)
    return Case(model, torch.randn(3, 3, 24, 24), causal=False, optimizer=optimizer)


# --- a speech encoder: strided convolutions in front, conformer blocks, frames that are padding ---


class HalfStep(nn.Sequential):
    def __init__(self, dim):
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, 4 * dim),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(4 * dim, dim),
            nn.Dropout(0.1),
        )


class SpeechAttention(nn.Module):
    def __init__(self, dim, heads, furthest=16):
        super().__init__()
        self.heads, self.furthest = heads, furthest
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.distance = nn.Embedding(2 * furthest + 1, heads)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, pad):
        b, t, c = x.shape
        x = self.norm(x)
        q = self.to_q(x).view(b, t, self.heads, -1).permute(0, 2, 1, 3)
        k = self.to_k(x).view(b, t, self.heads, -1).permute(0, 2, 3, 1)
        v = self.to_v(x).view(b, t, self.heads, -1).permute(0, 2, 1, 3)
        places = torch.arange(t, device=x.device)
        apart = (places[None, :] - places[:, None]).clamp(-self.furthest, self.furthest)
        bias = self.distance(apart + self.furthest).permute(2, 0, 1)
        scores = torch.matmul(q, k) / math.sqrt(c // self.heads) + bias
        scores = scores.masked_fill(pad[:, None, None, :], -1e9)
        weights = torch.softmax(scores, dim=-1)
        y = torch.matmul(self.dropout(weights), v).permute(0, 2, 1, 3)
        return self.out(y.reshape(b, t, c))


class SpeechConvolution(nn.Module):
    def __init__(self, dim, kernel=7):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pointwise1 = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.depth_norm = nn.LayerNorm(dim)
        self.pointwise2 = nn.Linear(dim, dim)

    def forward(self, x, pad):
        x = F.glu(self.pointwise1(self.norm(x)), dim=-1)
        x = x.masked_fill(pad[:, :, None], 0.0)
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return self.pointwise2(F.silu(self.depth_norm(x)))


class ConformerBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ff1 = HalfStep(dim)
        self.attn = SpeechAttention(dim, heads)
        self.conv = SpeechConvolution(dim)
        self.ff2 = HalfStep(dim)
        self.norm_final = nn.LayerNorm(dim)

    def forward(self, x, pad):
        residual = x
        x = residual + 0.5 * self.ff1(x)
        residual = x
        x = residual + self.attn(x, pad)
        residual = x
        x = residual + self.conv(x, pad)
        residual = x
        x = residual + 0.5 * self.ff2(x)
        return self.norm_final(x)


class Conformer(nn.Module):
    def __init__(self, mels, dim, heads, layers, vocab):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, dim, 3, stride=2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([ConformerBlock(dim, heads) for _ in range(layers)])
        self.head = nn.Linear(dim, vocab)

    def forward(self, frames, padding_mask):
        pad = padding_mask
        x = frames.masked_fill(pad[:, :, None], 0.0).transpose(1, 2)
        x, pad = F.gelu(self.conv1(x)), pad[:, ::2]
        x = x.masked_fill(pad[:, None, :], 0.0)
        x, pad = F.gelu(self.conv2(x)), pad[:, ::2]
        x = x.transpose(1, 2)
        for block in self.blocks:
            x = block(x, pad)
        return self.head(x)


@host
def conformer():
    frames = torch.randn(3, 44, 20)
    lengths = torch.tensor([44, 31, 23])
    padding_mask = torch.arange(44) >= lengths[:, None]
    model = Conformer(20, WIDTH, HEADS, LAYERS, VOCAB)
    return Case(model, {"frames": frames, "padding_mask": padding_mask}, causal=False)


# --- a diffusion transformer: norms that a time and a label scale and shift, zero at the start ----


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def plain_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class TimestepEmbedder(nn.Module):
    def __init__(self, dim, frequencies=32):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        half = self.frequencies // 2
        rate = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angle = t[:, None].float() * rate[None]
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class DiffusionAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class DiTBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn = DiffusionAttention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim)
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate1.unsqueeze(1) * self.attn(modulate(plain_norm(x), shift1, scale1))
        x = x + gate2.unsqueeze(1) * self.mlp(modulate(plain_norm(x), shift2, scale2))
        return x


class DiT(nn.Module):
    def __init__(self, side, patch, channels, dim, depth, heads, classes):
        super().__init__()
        self.patch, self.channels, self.grid = patch, channels, side // patch
        self.x_embedder = nn.Conv2d(channels, dim, patch, stride=patch)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = nn.Embedding(classes + 1, dim)  # the last: no label
        rows = sinusoids(self.grid, dim // 2)
        both = torch.cat(
            [rows[:, None].expand(-1, self.grid, -1), rows[None].expand(self.grid, -1, -1)], dim=-1
        )
        self.register_buffer("pos_embed", both.reshape(1, self.grid**2, dim))
        self.blocks = nn.ModuleList([DiTBlock(dim, heads) for _ in range(depth)])
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.final = nn.Linear(dim, patch * patch * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.weight.view(dim, -1))
        nn.init.normal_(self.y_embedder.weight, std=0.02)
        for i in (0, 2):
            nn.init.normal_(self.t_embedder.mlp[i].weight, std=0.02)
        for zero in (*(b.adaLN_modulation[1] for b in self.blocks), self.final_modulation[1]):
            nn.init.zeros_(zero.weight)
        nn.init.zeros_(self.final.weight)

    def unpatchify(self, x):
        g, p, c = self.grid, self.patch, self.channels
        x = x.reshape(x.size(0), g, g, p, p, c)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.size(0), c, g * p, g * p)

    def forward(self, x, t, y):
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        return self.unpatchify(self.final(modulate(plain_norm(x), shift, scale)))


@host
def dit():
    inputs = {
        "x": torch.randn(3, 4, 8, 8),
        "t": torch.randint(0, 1000, (3,)),
        "y": torch.randint(0, 10, (3,)),
    }
    return Case(DiT(8, 2, 4, WIDTH, LAYERS, HEADS, 10), inputs, causal=False)


# --- T5 by hand: relative positions, RMSNorm, no scale (the initialization has it) ----------------


class RootMeanSquare(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.dim, self.eps = dim, eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        square = x.float().square().mean(-1, keepdim=True)
        return x * torch.rsqrt(square + self.eps).to(x.dtype) * self.weight


class RelativePositions(nn.Module):
    """A number for each head and each range of distances, the wider the further away."""

    def __init__(self, heads, dim, both_ways, buckets=16, furthest=32):
        super().__init__()
        self.both_ways, self.buckets, self.furthest = both_ways, buckets, furthest
        self.table = nn.Embedding(buckets, heads)
        nn.init.normal_(self.table.weight, std=dim**-0.5)

    def forward(self, n):
        queries, keys = torch.arange(n)[:, None], torch.arange(n)[None, :]
        relative = keys - queries
        buckets, first = self.buckets, 0
        if self.both_ways:
            buckets //= 2
            first = (relative > 0).long() * buckets
            relative = relative.abs()
        else:
            relative = (-relative).clamp(min=0)
        exact = buckets // 2
        far = torch.log(relative.clamp(min=1).float() / exact) / math.log(self.furthest / exact)
        far = (exact + (far * (buckets - exact)).long()).clamp(max=buckets - 1)
        bucket = first + torch.where(relative < exact, relative, far)
        return self.table(bucket).permute(2, 0, 1).unsqueeze(0)  # (1, heads, n, n)


class UnscaledAttention(nn.Module):
    def __init__(self, dim, heads, d_kv):
        super().__init__()
        self.heads, self.d_kv = heads, d_kv
        self.q = nn.Linear(dim, heads * d_kv, bias=False)
        self.k = nn.Linear(dim, heads * d_kv, bias=False)
        self.v = nn.Linear(dim, heads * d_kv, bias=False)
        self.o = nn.Linear(heads * d_kv, dim, bias=False)
        nn.init.normal_(self.q.weight, std=(dim * d_kv) ** -0.5)
        nn.init.normal_(self.k.weight, std=dim**-0.5)
        nn.init.normal_(self.v.weight, std=dim**-0.5)
        nn.init.normal_(self.o.weight, std=(heads * d_kv) ** -0.5)

    def forward(self, x, memory, bias):
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        q, k, v = (y.unflatten(-1, (self.heads, self.d_kv)) for y in (q, k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) + bias
        weights = F.softmax(scores.float(), dim=-1).to(scores.dtype)
        weights = F.dropout(weights, 0.1, self.training)
        return self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class GatedGELU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.wi_0 = nn.Linear(dim, hidden, bias=False)
        self.wi_1 = nn.Linear(dim, hidden, bias=False)
        self.wo = nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.wi_0.weight, std=dim**-0.5)
        nn.init.normal_(self.wi_1.weight, std=dim**-0.5)
        nn.init.normal_(self.wo.weight, std=hidden**-0.5)

    def forward(self, x):
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class TextLayer(nn.Module):
    def __init__(self, dim, heads, d_kv, hidden, cross):
        super().__init__()
        self.norm_self = RootMeanSquare(dim)
        self.attn = UnscaledAttention(dim, heads, d_kv)
        if cross:
            self.norm_cross = RootMeanSquare(dim)
            self.cross = UnscaledAttention(dim, heads, d_kv)
        self.norm_ff = RootMeanSquare(dim)
        self.ff = GatedGELU(dim, hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, bias, memory=None, memory_bias=None):
        u = self.norm_self(x)
        x = x + self.dropout(self.attn(u, u, bias))
        if memory is not None:
            x = x + self.dropout(self.cross(self.norm_cross(x), memory, memory_bias))
        return x + self.dropout(self.ff(self.norm_ff(x)))


class TextToText(nn.Module):
    def __init__(self, vocab, dim, heads, d_kv, hidden, layers):
        super().__init__()
        self.shared = nn.Embedding(vocab, dim)
        self.encoder_bias = RelativePositions(heads, dim, True)
        self.decoder_bias = RelativePositions(heads, dim, False)
        self.encoder = nn.ModuleList(
            [TextLayer(dim, heads, d_kv, hidden, False) for _ in range(layers)]
        )
        self.decoder = nn.ModuleList(
            [TextLayer(dim, heads, d_kv, hidden, True) for _ in range(layers)]
        )
        self.encoder_norm, self.decoder_norm = RootMeanSquare(dim), RootMeanSquare(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        self.lm_head.weight = self.shared.weight
        nn.init.normal_(self.shared.weight, std=1.0)

    def forward(self, src, tgt, src_mask):
        hidden = (1.0 - src_mask[:, None, None, :].float()) * -1e9
        x = self.shared(src)
        bias = self.encoder_bias(src.size(1)) + hidden
        for layer in self.encoder:
            x = layer(x, bias)
        memory = self.encoder_norm(x)
        t = tgt.size(1)
        later = torch.arange(t)[None, :] > torch.arange(t)[:, None]
        bias = self.decoder_bias(t) + later * -1e9
        y = self.shared(tgt)
        for layer in self.decoder:
            y = layer(y, bias, memory, hidden)
        y = self.decoder_norm(y) * y.size(-1) ** -0.5
        return self.lm_head(y)


@host
def text_to_text():
    src, src_mask = padded_ids()
    tgt = torch.randint(1, VOCAB, (3, 7))
    model = TextToText(VOCAB, WIDTH, HEADS, 16, 96, LAYERS)
    return Case(model, {"src": src, "tgt": tgt, "src_mask": src_mask}, causal=True)


# --- parallel blocks: one projection for everything, one key and value for all heads --------------


class GammaNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


def rotary_angles(n, dim):
    inverse = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.einsum("i,j->ij", torch.arange(n).float(), inverse)
    return torch.cat((angles, angles), dim=-1)


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary(angles, x):
    return x * angles.cos() + rotate_half(x) * angles.sin()


class ParallelBlock(nn.Module):
    def __init__(self, dim, dim_head, heads, ff_mult=4):
        super().__init__()
        self.norm = GammaNorm(dim)
        self.heads, self.scale = heads, dim_head**-0.5
        self.split = (heads * dim_head, dim_head, dim_head, ff_mult * dim, ff_mult * dim)
        self.wi = nn.Linear(dim, sum(self.split), bias=False)
        self.attn_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.ff_out = nn.Linear(ff_mult * dim, dim, bias=False)

    def forward(self, x):
        n = x.size(1)
        u = self.norm(x)
        q, k, v, ff, gate = self.wi(u).split(self.split, dim=-1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        angles = rotary_angles(n, k.size(-1))
        q, k = apply_rotary(angles, q), apply_rotary(angles, k)
        q = q * self.scale
        sim = torch.einsum("bhid,bjd->bhij", q, k)
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        sim = sim.masked_fill(later, -torch.finfo(sim.dtype).max)
        attn = sim.softmax(dim=-1)
        out = torch.einsum("bhij,bjd->bhid", attn, v)
        out = self.attn_out(out.transpose(1, 2).flatten(2))
        return x + out + self.ff_out(F.silu(gate) * ff)


class ParallelLM(nn.Module):
    def __init__(self, vocab, dim, depth, heads, dim_head):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.blocks = nn.Sequential(*[ParallelBlock(dim, dim_head, heads) for _ in range(depth)])
        self.norm = GammaNorm(dim)
        self.to_logits = nn.Linear(dim, vocab, bias=False)
        self.to_logits.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids):
        return self.to_logits(self.norm(self.blocks(self.embed(ids))))


@host
def parallel_lm():
    return Case(ParallelLM(VOCAB, WIDTH, LAYERS, HEADS, 16), causal=True)


# --- as servers have it: a (hidden, residual) pair, add and norm in one, merged projections -------


class RMSFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        h = x.float()
        r = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, r)
        return (h * r * weight).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, r = ctx.saved_tensors
        normed = x.float() * r
        g = dy.float() * weight
        dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
        dw = (dy.float() * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dw.to(weight.dtype), None


class FusedRMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x, residual=None):
        if residual is None:
            return RMSFunction.apply(x, self.weight, self.eps)
        residual = x + residual
        out = RMSFunction.apply(residual, self.weight, self.eps)
        return out, residual


class ServedAttention(nn.Module):
    def __init__(self, dim, heads, kv_heads, longest):
        super().__init__()
        self.head_dim = dim // heads
        self.heads, self.kv_heads = heads, kv_heads
        self.qkv_proj = nn.Linear(dim, (heads + 2 * kv_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        angles = rotary_angles(longest, self.head_dim)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, positions, hidden):
        b, t, _ = hidden.shape
        sizes = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
        q, k, v = self.qkv_proj(hidden).split(sizes, dim=-1)
        q, k, v = (y.view(b, t, -1, self.head_dim).transpose(1, 2) for y in (q, k, v))
        cos, sin = self.cos[positions], self.sin[positions]
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.head_dim**-0.5)
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class ServedMLP(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate_up_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class ServedLayer(nn.Module):
    def __init__(self, dim, heads, kv_heads, hidden, longest):
        super().__init__()
        self.self_attn = ServedAttention(dim, heads, kv_heads, longest)
        self.mlp = ServedMLP(dim, hidden)
        self.input_layernorm = FusedRMSNorm(dim)
        self.post_attention_layernorm = FusedRMSNorm(dim)

    def forward(self, positions, hidden, residual):
        if residual is None:
            residual = hidden
            hidden = self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        hidden = self.mlp(hidden)
        return hidden, residual


class ServedLM(nn.Module):
    def __init__(self, vocab, dim, layers, heads, kv_heads, hidden, longest):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(
            [ServedLayer(dim, heads, kv_heads, hidden, longest) for _ in range(layers)]
        )
        self.norm = FusedRMSNorm(dim)
        self.lm_head = nn.Linear(dim, vocab, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, input_ids):
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        hidden, _ = self.norm(hidden, residual)
        return self.lm_head(hidden)


@host
def served_lm():
    return Case(ServedLM(VOCAB, WIDTH, LAYERS, HEADS, 2, 128, CONTEXT), causal=True)


# --- experts: two of four for each token, ALiBi, normed queries and keys --------------------------


class Expert(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        return self.w2(F.gelu(self.w1(x)))


class MixtureOfExperts(nn.Module):
    def __init__(self, dim, hidden, experts, chosen=2):
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList([Expert(dim, hidden) for _ in range(experts)])

    def forward(self, x):
        tokens = x.reshape(-1, x.size(-1))
        probs = F.softmax(self.router(tokens), dim=-1)
        weight, index = probs.topk(self.chosen, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(index == i)
            out.index_add_(0, row, weight[row, place].unsqueeze(-1) * expert(tokens[row]))
        return out.view_as(x)


class AlibiAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(self.head_dim), nn.RMSNorm(self.head_dim)
        slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
        self.register_buffer("slopes", slopes.view(-1, 1, 1), persistent=False)

    def forward(self, x):
        B, T, C = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim)
        k = self.k_proj(x).view(B, T, self.heads, self.head_dim)
        v = self.v_proj(x).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        q = self.q_norm(q).transpose(1, 2)
        k = self.k_norm(k).transpose(1, 2)
        places = torch.arange(T, device=x.device)
        apart = places[:, None] - places[None, :]
        bias = (-self.slopes * apart).masked_fill(apart < 0, float("-inf"))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(0))
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class ExpertBlock(nn.Module):
    def __init__(self, dim, heads, experts, norm):
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = AlibiAttention(dim, heads)
        self.moe = MixtureOfExperts(dim, 2 * dim, experts)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.moe(self.norm2(x))


class ExpertLM(nn.Module):
    def __init__(self, vocab, dim, layers, heads, experts):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        norm = nn.RMSNorm
        self.blocks = nn.ModuleList([ExpertBlock(dim, heads, experts, norm) for _ in range(layers)])
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@host
def expert_lm():
    return Case(ExpertLM(VOCAB, WIDTH, LAYERS, HEADS, 4), causal=True)


# --- a forecaster: series of floats, scaled by their own size, post-norm --------------------------


class SeriesNorm(nn.Module):
    def __init__(self, d, eps=1e-5):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.eps = eps

    def forward(self, x):
        n = x.size(-1)
        mean = x.sum(-1, keepdim=True) / x.size(-1)
        var = (x - mean).square().sum(-1, keepdim=True) / n
        return (x - mean) / torch.sqrt(var + self.eps) * self.w + self.b


class SeriesLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)
        self.norm1 = SeriesNorm(dim)
        self.conv1 = nn.Conv1d(dim, 2 * dim, 1)
        self.conv2 = nn.Conv1d(2 * dim, dim, 1)
        self.norm2 = SeriesNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        new, _ = self.attn(x, x, x)
        x = self.norm1(x + self.dropout(new))
        y = self.dropout(F.gelu(self.conv1(x.transpose(1, 2))))
        y = self.dropout(self.conv2(y).transpose(1, 2))
        return self.norm2(x + y)


class Forecaster(nn.Module):
    def __init__(self, channels, length, horizon, dim, heads, layers):
        super().__init__()
        self.horizon = horizon
        self.value = nn.Linear(channels, dim)
        self.place = nn.Parameter(torch.randn(1, length, dim) * 0.02)
        self.layers = nn.ModuleList([SeriesLayer(dim, heads) for _ in range(layers)])
        self.project = nn.Linear(dim, horizon * channels)

    def forward(self, series):
        size = series.abs().mean(1, keepdim=True).clamp(min=1e-3)
        x = self.value(series / size) + self.place
        for layer in self.layers:
            x = layer(x)
        out = self.project(x.mean(1)).unflatten(1, (self.horizon, -1))
        return out * size


@host
def forecaster():
    model = Forecaster(5, 14, 6, WIDTH, HEADS, LAYERS)
    return Case(model, torch.randn(3, 14, 5), causal=False)


# --- transformers' and x-transformers' ------------------------------------------------------------


@host
def hf_opt():
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )
    return Case(OPTForCausalLM(config), causal=True)


@host
def hf_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Case(GPTNeoXForCausalLM(config), causal=True)


@host
def hf_qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=3 * WIDTH,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Case(Qwen3ForCausalLM(config), causal=True)


@host
def hf_roberta():
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=CONTEXT + 2,
        type_vocab_size=2,
    )
    return Case(RobertaForMaskedLM(config), torch.randint(5, VOCAB, (3, 11)), causal=False)


@host
def hf_roberta_tuned():
    case = hf_roberta()
    model = case.model
    no_decay = ["bias", "LayerNorm.weight", "layer_norm.weight"]
    named = list(model.named_parameters())
    groups = [
        {
            "params": [p for n, p in named if not any(nd in n for nd in no_decay)],
            "weight_decay": 0.01,
        },
        {"params": [p for n, p in named if any(nd in n for nd in no_decay)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=2e-5)
    return Case(model, case.inputs, causal=False, optimizer=optimizer)


@host
def hf_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=24,
        patch_size=6,
        num_labels=7,
    )
    inputs = {"pixel_values": torch.randn(3, 3, 24, 24)}
    return Case(ViTForImageClassification(config), inputs, causal=False)


@host
def hf_bart():
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_position_embeddings=CONTEXT,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    _, mask = padded_ids()
    inputs = {
        "input_ids": torch.randint(5, VOCAB, (3, 11)),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(5, VOCAB, (3, 7)),
    }
    return Case(BartForConditionalGeneration(config), inputs, causal=True)


@host
def hf_whisper():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCAB,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        num_mel_bins=12,
        max_source_positions=20,
        max_target_positions=CONTEXT,
        decoder_start_token_id=3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        begin_suppress_tokens=None,
    )
    inputs = {
        "input_features": torch.randn(3, 12, 40),
        "decoder_input_ids": torch.randint(5, VOCAB, (3, 7)),
    }
    return Case(WhisperForConditionalGeneration(config), inputs, causal=True)


@host
def x_rotary():
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=WIDTH,
        depth=LAYERS,
        heads=3,
        attn_dim_head=32,
        rotary_pos_emb=True,
        rotary_emb_dim=32,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
    )
    model = TransformerWrapper(num_tokens=VOCAB, max_seq_len=CONTEXT, attn_layers=layers)
    return Case(model, torch.randint(0, VOCAB, (3, 11)), causal=True)


class Paired(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, src, tgt):
        memory = self.encoder(src)
        return self.decoder(tgt, context=memory)


@host
def x_translator():
    from x_transformers import Decoder, Encoder, TransformerWrapper

    sizes = {"dim": WIDTH, "depth": LAYERS, "heads": 3, "attn_dim_head": 16}
    encoder = TransformerWrapper(
        num_tokens=VOCAB,
        max_seq_len=CONTEXT,
        return_only_embed=True,
        attn_layers=Encoder(**sizes, ff_relu_squared=True),
    )
    decoder = TransformerWrapper(
        num_tokens=VOCAB,
        max_seq_len=CONTEXT,
        attn_layers=Decoder(**sizes, cross_attend=True, ff_relu_squared=True),
    )
    src, tgt = torch.randint(0, VOCAB, (3, 11)), torch.randint(0, VOCAB, (3, 7))
    return Case(Paired(encoder, decoder), {"src": src, "tgt": tgt}, causal=True)


FAULTS = Faults()
edit, patch, change = FAULTS.edit, FAULTS.patch, FAULTS.change

# norms
edit(
    "patch_vit: from the smallest to the largest",
    "norm-not-normalizing",
    patch_vit,
    "TokenNorm.forward",
    "(x - mean) * (var + self.eps).rsqrt() *",
    "(x - x.amin(-1, True)) / (x.amax(-1, True) - x.amin(-1, True) + self.eps) *",
)
edit(
    "text_to_text: the sum of squares for their mean",
    "norm-not-normalizing",
    text_to_text,
    "RootMeanSquare.forward",
    "x.float().square().mean(",
    "x.float().square().sum(",
)
edit(
    "forecaster: the sign of eps's exponent",
    "norm-not-normalizing",
    forecaster,
    "SeriesNorm.__init__",
    "eps=1e-5",
    "eps=1e5",
)
edit(
    "dit: tokens and features together",
    "norm-wrong-axis",
    dit,
    "plain_norm",
    "x.shape[-1:]",
    "x.shape[1:]",
)
patch(
    "hf_qwen3: the last axis but one",
    "norm-wrong-axis",
    hf_qwen3,
    "Qwen3RMSNorm.forward",
    "mean(-1,",
    "mean(-2,",
    "future-leak",
)
patch(
    "x_rotary: along time",
    "norm-wrong-axis",
    x_rotary,
    "RMSNorm.forward",
    "dim = -1",
    "dim = 1",
    "future-leak",
)
edit(
    "patch_vit: var_mean as it comes",
    "norm-unbiased-variance",
    patch_vit,
    "TokenNorm.forward",
    ", correction=0",
    "",
)
edit(
    "forecaster: one less than the width",
    "norm-unbiased-variance",
    forecaster,
    "SeriesNorm.forward",
    "n = x.size(-1)",
    "n = x.size(-1) - 1",
)
edit(
    "patch_vit: eps after the root",
    "norm-eps-outside-sqrt",
    patch_vit,
    "TokenNorm.forward",
    "(x - mean) * (var + self.eps).rsqrt()",
    "(x - mean) / (var**0.5 + self.eps)",
)
edit(
    "text_to_text: the norm over the root of the width, plus eps",
    "norm-eps-outside-sqrt",
    text_to_text,
    "RootMeanSquare.forward",
    "torch.rsqrt(square + self.eps).to(x.dtype)",
    "(1 / (x.norm(dim=-1, keepdim=True) * self.dim**-0.5 + self.eps))",
)
edit(
    "translator: axis 1, which is the batch here",
    "norm-batch-dependent",
    translator,
    "TimeFirstNorm.forward",
    "x = x - x.mean(-1, keepdim=True)\n        x = x / torch.sqrt((x * x).mean(-1,",
    "x = x - x.mean(1, keepdim=True)\n        x = x / torch.sqrt((x * x).mean(1,",
    "norm-wrong-axis",
    "batch-leak",
    "padding-leak",
)
edit(
    "served_lm: the mean of everything there is",
    "norm-batch-dependent",
    served_lm,
    "RMSFunction.forward",
    "h.pow(2).mean(-1, keepdim=True)",
    "h.pow(2).mean().expand(*h.shape[:-1], 1)",
    "norm-wrong-axis",
    "batch-leak",
    "future-leak",
    "norm-bad-gradient",
)
edit(
    "served_lm: the backward pass forgets a term",
    "norm-bad-gradient",
    served_lm,
    "RMSFunction.backward",
    "r * (g - normed * (g * normed).mean(-1, keepdim=True))",
    "r * g",
)
edit(
    "text_to_text: the mean square without gradient",
    "norm-bad-gradient",
    text_to_text,
    "RootMeanSquare.forward",
    "        square = ",
    "        with torch.no_grad():\n            square = ",
)
edit(
    "forecaster: the mean of squares less the square of the mean",
    "norm-low-precision",
    forecaster,
    "SeriesNorm.forward",
    "(x - mean).square().sum(-1, keepdim=True) / n",
    "x.square().sum(-1, keepdim=True) / n - mean.square()",
)
patch(
    "hf_qwen3: statistics in bf16",
    "norm-low-precision",
    hf_qwen3,
    "Qwen3RMSNorm.forward",
    "hidden_states.to(torch.float32)",
    "hidden_states.to(torch.bfloat16)",
)
# wiring
edit(
    "served_lm: the residual is not handed to the next layer",
    "no-residual",
    served_lm,
    "ServedLM.forward",
    "layer(positions, hidden, residual)",
    "layer(positions, hidden, None)",
    "residual-wrong-tensor",
)
edit(
    "dit: the gated attention replaces the stream",
    "no-residual",
    dit,
    "DiTBlock.forward",
    "x = x + gate1.unsqueeze(1) *",
    "x = gate1.unsqueeze(1) *",
)
patch(
    "hf_neox: both branches, and no stream",
    "no-residual",
    hf_neox,
    "GPTNeoXLayer.forward",
    "hidden_states = mlp_output + attn_output + hidden_states",
    "hidden_states = mlp_output + attn_output",
)
edit(
    "conformer: half a step from nowhere",
    "no-residual",
    conformer,
    "ConformerBlock.forward",
    "x = residual + 0.5 * self.ff2(x)",
    "x = 0.5 * self.ff2(x)",
)
edit(
    "expert_lm: the experts replace the stream",
    "no-residual",
    expert_lm,
    "ExpertBlock.forward",
    "return x + self.moe(self.norm2(x))",
    "return self.moe(self.norm2(x))",
)
edit(
    "served_lm: the normed copy is handed on as the residual",
    "residual-wrong-tensor",
    served_lm,
    "FusedRMSNorm.forward",
    "return out, residual",
    "return out, out",
    "double-norm",
)
edit(
    "parallel_lm: added to what the norm returns",
    "residual-wrong-tensor",
    parallel_lm,
    "ParallelBlock.forward",
    "return x + out +",
    "return u + out +",
)
edit(
    "conformer: the convolution is added to the stream before the attention",
    "residual-wrong-tensor",
    conformer,
    "ConformerBlock.forward",
    "        x = residual + self.attn(x, pad)\n        residual = x\n",
    "        x = residual + self.attn(x, pad)\n",
    "no-residual",
)
patch(
    "hf_whisper: the MLP is added to the stream before the cross-attention",
    "residual-wrong-tensor",
    hf_whisper,
    "WhisperDecoderLayer.forward",
    "# Fully Connected\n    residual = hidden_states\n",
    "# Fully Connected\n",
    "no-residual",
)
edit(
    "ported_gpt: the stream twice",
    "residual-wrong-tensor",
    ported_gpt,
    "PortBlock.forward",
    "x = x + self.mlp(self.ln_2(x))\n        return x",
    "x = x + self.mlp(self.ln_2(x)) + x\n        return x",
)
edit(
    "conformer: a norm after the blocks, which end with one",
    "double-norm",
    conformer,
    "Conformer.__init__",
    "self.head = nn.Linear(dim, vocab)",
    "self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, vocab))",
)
edit(
    "patch_vit: the head brings a norm of its own",
    "double-norm",
    patch_vit,
    "PatchViT.__init__",
    "self.head = nn.Linear(dim, classes)",
    "self.head = nn.Sequential(TokenNorm(dim), nn.Linear(dim, classes))",
)
change(
    "hf_opt: norms behind the sum, and the final one is still there",
    "double-norm",
    hf_opt,
    lambda m: [setattr(x, "do_layer_norm_before", False) for x in m.model.decoder.layers],
)
edit(
    "served_lm: the last sum goes to the head",
    "missing-final-norm",
    served_lm,
    "ServedLM.forward",
    "hidden, _ = self.norm(hidden, residual)",
    "hidden = hidden + residual",
    "unused-norm",
    "unused-parameter",
)
edit(
    "translator: the decoder's end is not normed",
    "missing-final-norm",
    translator,
    "Translator.forward",
    "self.output(self.decoder_norm(y))",
    "self.output(y)",
    "unused-norm",
    "unused-parameter",
)
change(
    "hf_neox: the final norm is taken away",
    "missing-final-norm",
    hf_neox,
    lambda m: setattr(m.gpt_neox, "final_layer_norm", nn.Identity()),
)
edit(
    "expert_lm: the norm's factory always gives the same one",
    "shared-norm",
    expert_lm,
    "ExpertLM.__init__",
    "norm = nn.RMSNorm\n",
    "one = nn.RMSNorm(dim)\n        norm = lambda dim: one  # noqa: E731\n",
)
patch(
    "hf_opt: the attention's norm before the MLP",
    "shared-norm",
    hf_opt,
    "OPTDecoderLayer.forward",
    "if self.do_layer_norm_before:\n        hidden_states = self.final_layer_norm(hidden_states)",
    "if self.do_layer_norm_before:\n"
    "        hidden_states = self.self_attn_layer_norm(hidden_states)",
    "unused-norm",
    "unused-parameter",
)
edit(
    "forecaster: the first norm behind both sums",
    "shared-norm",
    forecaster,
    "SeriesLayer.forward",
    "return self.norm2(",
    "return self.norm1(",
    "unused-norm",
    "unused-parameter",
)
edit(
    "expert_lm: keys are not normed",
    "unused-norm",
    expert_lm,
    "AlibiAttention.forward",
    "self.k_norm(k).transpose(1, 2)",
    "k.transpose(1, 2)",
    "unused-parameter",
)
edit(
    "conformer: nothing between the convolution and its activation",
    "unused-norm",
    conformer,
    "SpeechConvolution.forward",
    "F.silu(self.depth_norm(x))",
    "F.silu(x)",
    "unused-parameter",
)
# branches
edit(
    "translator: the encoder's activation is kept and not called",
    "linear-mlp",
    translator,
    "TranslatorEncoderLayer.forward",
    "self.activation(self.fc1(x))",
    "self.fc1(x)",
)
edit(
    "expert_lm: experts of two products",
    "linear-mlp",
    expert_lm,
    "Expert.forward",
    "F.gelu(self.w1(x))",
    "self.w1(x)",
)
change(
    "hf_opt: the activation is called linear",
    "linear-mlp",
    hf_opt,
    lambda m: [setattr(x, "activation_fn", nn.Identity()) for x in m.model.decoder.layers],
)
edit(
    "forecaster: two convolutions of width one",
    "linear-mlp",
    forecaster,
    "SeriesLayer.forward",
    "F.gelu(self.conv1(x.transpose(1, 2)))",
    "self.conv1(x.transpose(1, 2))",
)
edit(
    "expert_lm: index_add without its underscore",
    "dead-branch",
    expert_lm,
    "MixtureOfExperts.forward",
    "out.index_add_(",
    "out.index_add(",
    "unused-parameter",
    "unused-norm",
)
edit(
    "patch_vit: the layer's scale is a buffer of zeros",
    "dead-branch",
    patch_vit,
    "LayerScale.__init__",
    "self.gamma = nn.Parameter(torch.full((dim,), init))",
    'self.register_buffer("gamma", torch.zeros(dim))',
    "unused-parameter",
)
edit(
    "translator: the decoder's activation comes after both",
    "one-signed-branch",
    translator,
    "TranslatorDecoderLayer.forward",
    "self.fc2(self.dropout(self.activation(self.fc1(x))))",
    "self.activation(self.fc2(self.dropout(self.fc1(x))))",
    "linear-mlp",
    either=True,
)
edit(
    "conformer: a sigmoid after the attention's projection",
    "one-signed-branch",
    conformer,
    "SpeechAttention.forward",
    "return self.out(y.reshape(b, t, c))",
    "return self.out(y.reshape(b, t, c)).sigmoid()",
)
edit(
    "patch_vit: every block loads the first one's weights",
    "identical-layers",
    patch_vit,
    "PatchViT.__init__",
    "        for p in (self.positions,",
    "        for block in self.blocks[1:]:\n"
    "            block.load_state_dict(self.blocks[0].state_dict())\n"
    "        for p in (self.positions,",
)
change(
    "hf_bart: an encoder of one layer's copies",
    "identical-layers",
    hf_bart,
    lambda m: setattr(
        m.model.encoder,
        "layers",
        nn.ModuleList(deepcopy(m.model.encoder.layers[0]) for _ in range(LAYERS)),
    ),
)
edit(
    "expert_lm: the router's weights are not used",
    "unused-parameter",
    expert_lm,
    "MixtureOfExperts.forward",
    "weight[row, place].unsqueeze(-1) * expert(tokens[row])",
    "expert(tokens[row])",
)
patch(
    "hf_bart: values from the keys' projection",
    "unused-parameter",
    hf_bart,
    "BartAttention.forward",
    "self.v_proj(current_states)",
    "self.k_proj(current_states)",
)
patch(
    "hf_roberta: segments are looked up and not added",
    "ignored-argument",
    hf_roberta,
    "RobertaEmbeddings.forward",
    "embeddings = inputs_embeds + token_type_embeddings",
    "embeddings = inputs_embeds",
    "unused-parameter",
)
edit(
    "dit: the label is forgotten",
    "ignored-argument",
    dit,
    "DiT.forward",
    "self.t_embedder(t) + self.y_embedder(y)",
    "self.t_embedder(t)",
    "unused-parameter",
)
edit(
    "forecaster: the last layer is made when its size is known",
    "module-in-forward",
    forecaster,
    "Forecaster.forward",
    "self.project(x.mean(1))",
    "nn.Linear(x.size(-1), self.project.out_features)(x.mean(1))",
    "unused-parameter",
)
edit(
    "conformer: a depthwise convolution in passing",
    "module-in-forward",
    conformer,
    "SpeechConvolution.forward",
    "self.depthwise(x.transpose(1, 2))",
    "nn.Conv1d(x.size(2), x.size(2), 7, padding=3, groups=x.size(2))(x.transpose(1, 2))",
    "unused-parameter",
)
# sight
edit(
    "text_to_text: one token too many",
    "future-leak",
    text_to_text,
    "TextToText.forward",
    "torch.arange(t)[None, :] > torch.arange(t)[:, None]",
    "torch.arange(t)[None, :] > torch.arange(t)[:, None] + 1",
)
edit(
    "translator: only the first layer of the decoder is given the mask",
    "future-leak",
    translator,
    "Translator.forward",
    "y = layer(y, memory, hidden, causal)",
    "y = layer(y, memory, hidden, causal)\n            causal = None",
)
edit(
    "parallel_lm: i and j are exchanged in the second product",
    "future-leak",
    parallel_lm,
    "ParallelBlock.forward",
    '"bhij,bjd->bhid", attn',
    '"bhji,bjd->bhid", attn',
    "attention-not-normalized",
    either=True,
)
edit(
    "ported_gpt: the mask's last rows",
    "no-causal-mask",
    ported_gpt,
    "CausalSelfAttention.forward",
    "self.bias[:, :, :T, :T]",
    "self.bias[:, :, -T:, :T]",
    "future-leak",
)
edit(
    "translator: ones above the diagonal are added to the logits",
    "no-causal-mask",
    translator,
    "Translator.forward",
    'torch.full((t, t), float("-inf")).triu(1)',
    "torch.ones(t, t).triu(1)",
    "future-leak",
)
edit(
    "parallel_lm: what masked_fill returns is not kept",
    "no-causal-mask",
    parallel_lm,
    "ParallelBlock.forward",
    "sim = sim.masked_fill(",
    "sim.masked_fill(",
    "future-leak",
)
change(
    "hf_qwen3: is_causal is off in every layer",
    "no-causal-mask",
    hf_qwen3,
    lambda m: [setattr(x.self_attn, "is_causal", False) for x in m.model.layers],
    "future-leak",
)
edit(
    "expert_lm: the router's softmax over the tokens",
    "batch-leak",
    expert_lm,
    "MixtureOfExperts.forward",
    "F.softmax(self.router(tokens), dim=-1)",
    "F.softmax(self.router(tokens), dim=0)",
    "future-leak",
)
edit(
    "dit: the first sample's time for all",
    "batch-leak",
    dit,
    "DiT.forward",
    "self.t_embedder(t)",
    "self.t_embedder(t[:1])",
)
edit(
    "dit: patches and heads are moved to the front, the batch to where patches should be",
    "batch-time-swapped",
    dit,
    "DiffusionAttention.forward",
    """.permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, N, C))
""",
    """.permute(2, 1, 3, 0, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.permute(2, 0, 1, 3).reshape(B, N, C))
""",
    "batch-leak",
)
edit(
    "forecaster: batch_first is forgotten",
    "batch-time-swapped",
    forecaster,
    "SeriesLayer.__init__",
    ", batch_first=True",
    "",
    "batch-leak",
)
edit(
    "conformer: the first convolution reads padded frames",
    "padding-leak",
    conformer,
    "Conformer.forward",
    "x = frames.masked_fill(pad[:, :, None], 0.0).transpose(1, 2)",
    "x = frames.transpose(1, 2)",
)
edit(
    "text_to_text: the mask's ones are what is hidden",
    "padding-leak",
    text_to_text,
    "TextToText.forward",
    "(1.0 - src_mask[:, None, None, :].float()) * -1e9",
    "src_mask[:, None, None, :].float() * -1e9",
)
patch(
    "hf_bart: the decoder reads the padding of its memory",
    "padding-leak",
    hf_bart,
    "BartDecoderLayer.forward",
    "attention_mask=encoder_attention_mask",
    "attention_mask=None",
)
edit(
    "conformer: a softmax by hand, masked, over a sum that can be zero",
    "mask-nan",
    conformer,
    "SpeechAttention.forward",
    "scores = scores.masked_fill(pad[:, None, None, :], -1e9)\n"
    "        weights = torch.softmax(scores, dim=-1)",
    "weights = (scores - scores.amax(-1, True)).exp() * ~pad[:, None, None, :]\n"
    "        weights = weights / weights.sum(-1, keepdim=True)",
)
edit(
    "text_to_text: the logarithm of the mask",
    "mask-nan",
    text_to_text,
    "TextToText.forward",
    "(1.0 - src_mask[:, None, None, :].float()) * -1e9",
    "src_mask[:, None, None, :].float().log()",
)
edit(
    "text_to_text: every distance is zero",
    "position-blind",
    text_to_text,
    "RelativePositions.forward",
    "torch.arange(n)[:, None], torch.arange(n)[None, :]",
    "torch.arange(n)[None, :].expand(n, n), torch.arange(n)[None, :]",
)
edit(
    "forecaster: the order of the series is not told",
    "position-blind",
    forecaster,
    "Forecaster.forward",
    "self.value(series / size) + self.place",
    "self.value(series / size)",
    "unused-parameter",
)
patch(
    "hf_vit: patches without places",
    "position-blind",
    hf_vit,
    "ViTEmbeddings.forward",
    "embeddings = embeddings + self.position_embeddings",
    "embeddings = embeddings",
    "unused-parameter",
)
edit(
    "ported_gpt: positions on ids, and on vectors too",
    "positions-on-ids",
    ported_gpt,
    "PortedGPT.forward",
    "self.transformer.wte(idx)",
    "self.transformer.wte((idx + pos) % self.lm_head.out_features)",
)
patch(
    "hf_roberta: position_ids are added to input_ids",
    "positions-on-ids",
    hf_roberta,
    "RobertaEmbeddings.forward",
    "self.word_embeddings(input_ids)",
    "self.word_embeddings((input_ids + position_ids) % self.word_embeddings.num_embeddings)",
)
patch(
    "hf_whisper: cross-attention is given the decoder's own states",
    "ignores-memory",
    hf_whisper,
    "WhisperDecoderLayer.forward",
    "key_value_states=encoder_hidden_states",
    "key_value_states=hidden_states",
    "unused-parameter",
    "ignored-argument",
    "future-leak",
)
edit(
    "x_translator: a memory that is never filled",
    "ignores-memory",
    x_translator,
    "Paired.forward",
    "context=memory",
    "context=torch.zeros_like(memory)",
    "unused-parameter",
    "ignored-argument",
)
# attention
edit(
    "parallel_lm: queries are scaled, and the product again",
    "attention-scale",
    parallel_lm,
    "ParallelBlock.forward",
    '"bhid,bjd->bhij", q, k)',
    '"bhid,bjd->bhij", q, k) * self.scale',
)
edit(
    "conformer: times the root where it is divided",
    "attention-scale",
    conformer,
    "SpeechAttention.forward",
    "torch.matmul(q, k) / math.sqrt",
    "torch.matmul(q, k) * math.sqrt",
)
edit(
    "served_lm: the root of the number of heads",
    "attention-scale",
    served_lm,
    "ServedAttention.forward",
    "scale=self.head_dim**-0.5",
    "scale=self.heads**-0.5",
)
change(
    "hf_neox: the scale of all heads together",
    "attention-scale",
    hf_neox,
    lambda m: [setattr(x.attention, "scaling", WIDTH**-0.5) for x in m.gpt_neox.layers],
)
edit(
    "conformer: padding is taken out after the softmax",
    "attention-not-normalized",
    conformer,
    "SpeechAttention.forward",
    "scores = scores.masked_fill(pad[:, None, None, :], -1e9)\n"
    "        weights = torch.softmax(scores, dim=-1)",
    "weights = torch.softmax(scores, dim=-1)\n"
    "        weights = weights.masked_fill(pad[:, None, None, :], 0.0)",
    "padding-leak",
)
edit(
    "text_to_text: a softmax over queries and keys together",
    "attention-not-normalized",
    text_to_text,
    "UnscaledAttention.forward",
    "F.softmax(scores.float(), dim=-1).to(scores.dtype)",
    "scores.float().flatten(-2).softmax(-1).view_as(scores).to(scores.dtype)",
    "future-leak",
)
edit(
    "parallel_lm: exponentials that nothing divides",
    "attention-not-normalized",
    parallel_lm,
    "ParallelBlock.forward",
    "sim.softmax(dim=-1)",
    "sim.exp()",
)
# initialization
edit(
    "ported_gpt: the MLP's output carries no flag",
    "init-residual-scale",
    ported_gpt,
    "PortMLP.__init__",
    "        self.c_proj.SCALE_INIT = True\n",
    "",
)
edit(
    "ported_gpt: scaled without the root",
    "init-residual-scale",
    ported_gpt,
    "PortedGPT._init_weights",
    "(2 * self.n_layer) ** -0.5",
    "(2 * self.n_layer) ** -1.0",
)
edit(
    "parallel_lm: the tied embedding as torch makes it",
    "init-unstable",
    parallel_lm,
    "ParallelLM.__init__",
    "        nn.init.normal_(self.embed.weight, std=0.02)\n",
    "        nn.init.normal_(self.embed.weight)\n",
)
edit(
    "text_to_text: the tied head is not scaled down",
    "init-unstable",
    text_to_text,
    "TextToText.forward",
    "self.decoder_norm(y) * y.size(-1) ** -0.5",
    "self.decoder_norm(y)",
)
# training
edit(
    "ported_gpt_trained: only torch's own LayerNorm is spared",
    "decay-on-norm",
    ported_gpt_trained,
    "ported_gpt_trained",
    "(LayerNorm, nn.Embedding)",
    "(nn.LayerNorm, nn.Embedding)",
)
edit(
    "hf_roberta_tuned: the names that norms had in another framework",
    "decay-on-norm",
    hf_roberta_tuned,
    "hf_roberta_tuned",
    '["bias", "LayerNorm.weight", "layer_norm.weight"]',
    '["bias", "gamma", "beta"]',
)
edit(
    "patch_vit_tuned: groups for one depth too few",
    "not-in-optimizer",
    patch_vit_tuned,
    "patch_vit_tuned",
    "range(depth + 2)",
    "range(depth + 1)",
)
edit(
    "hf_roberta_tuned: the model is copied afterwards",
    "not-in-optimizer",
    hf_roberta_tuned,
    "hf_roberta_tuned",
    "return Case(model,",
    "return Case(deepcopy(model),",
)
edit(
    "patch_vit_tuned: the head once more in its group",
    "duplicated-in-optimizer",
    patch_vit_tuned,
    "patch_vit_tuned",
    "    optimizer = ",
    '    groups[-2]["params"].append(model.head.weight)\n    optimizer = ',
)
edit(
    "hf_roberta_tuned: the head is added once more",
    "duplicated-in-optimizer",
    hf_roberta_tuned,
    "hf_roberta_tuned",
    "    return Case(",
    '    optimizer.param_groups[0]["params"].extend(model.lm_head.parameters())\n    return Case(',
    "decay-on-norm",
)
edit(
    "patch_vit_tuned: patches are frozen for stability, later",
    "frozen-in-optimizer",
    patch_vit_tuned,
    "patch_vit_tuned",
    "    return Case(",
    "    model.to_patch.requires_grad_(False)\n    return Case(",
)
edit(
    "hf_roberta_tuned: frozen layers are in the groups",
    "frozen-in-optimizer",
    hf_roberta_tuned,
    "hf_roberta_tuned",
    "    named = list(",
    "    model.roberta.encoder.layer[0].requires_grad_(False)\n    named = list(",
)
edit(
    "parallel_lm: the head loads the embedding's numbers",
    "untied-weights",
    parallel_lm,
    "ParallelLM.__init__",
    "        self.to_logits.weight = self.embed.weight\n"
    "        nn.init.normal_(self.embed.weight, std=0.02)\n",
    "        nn.init.normal_(self.embed.weight, std=0.02)\n"
    "        self.to_logits.load_state_dict(self.embed.state_dict())\n",
)
change(
    "hf_bart: the decoder has a table of its own",
    "untied-weights",
    hf_bart,
    lambda m: setattr(m.model.decoder, "embed_tokens", deepcopy(m.model.decoder.embed_tokens)),
)
edit(
    "patch_vit: paths are dropped in evaluation too",
    "dropout-in-eval",
    patch_vit,
    "DropPath.forward",
    "if self.p == 0.0 or not self.training:",
    "if self.p == 0.0:",
)
edit(
    "text_to_text: dropout is not told the mode",
    "dropout-in-eval",
    text_to_text,
    "UnscaledAttention.forward",
    "F.dropout(weights, 0.1, self.training)",
    "F.dropout(weights, 0.1)",
)
