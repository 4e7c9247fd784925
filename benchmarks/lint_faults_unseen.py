"""Faults that nobody looks at while the rules are tuned: a third of the benchmark.

Other hosts, or the same ones broken in another guise; every family of rules is here.
"""
# mypy: ignore-errors
# ruff: noqa: RUF059

import math

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
    classifier,
    gpt_with_optimizer,
    hf_bert,
    hf_llama,
    lecture_gpt,
    modern,
    seq2seq,
    torch_seq2seq,
    x_decoder,
    x_encoder,
)

MORE_HOSTS = {}


def host(make):
    """A correct model of this file, under its function's name."""
    MORE_HOSTS[make.__name__] = make
    return make


# --- an image classifier: patches, a class token, pre-norm, attention by einsum -------------------


class ChannelNorm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))
        self.b = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        power = centred.square().mean(-1, keepdim=True)
        return centred * (power + self.eps).rsqrt() * self.g + self.b


class ImageAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
        attn = dots.softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return self.to_out(out.permute(0, 2, 1, 3).flatten(2))


class ImageMLP(nn.Sequential):
    def __init__(self, dim, hidden):
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


class ImageBlock(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm_attn = ChannelNorm(dim)
        self.attn = ImageAttention(dim, heads)
        self.norm_mlp = ChannelNorm(dim)
        self.mlp = ImageMLP(dim, hidden)

    def forward(self, x):
        x = self.attn(self.norm_attn(x)) + x
        x = self.mlp(self.norm_mlp(x)) + x
        return x


class ImageTransformer(nn.Module):
    def __init__(self, side, patch, dim, depth, heads, classes):
        super().__init__()
        self.to_patches = nn.Conv2d(3, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.ModuleList([ImageBlock(dim, heads, 4 * dim) for _ in range(depth)])
        self.norm = ChannelNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, image):
        x = self.to_patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.size(0), -1, -1), x], dim=1)
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@host
def image_classifier():
    model = ImageTransformer(24, 6, WIDTH, LAYERS, HEADS, 7)
    return Case(model, torch.randn(3, 3, 24, 24), causal=False)


# --- a language model, time first, on nn.MultiheadAttention, as of old ----------------------------


class OldLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, dropout=0.1)
        self.ff1 = nn.Linear(dim, 4 * dim)
        self.ff2 = nn.Linear(4 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, mask):
        h = self.norm1(x)
        h, _ = self.attn(h, h, h, attn_mask=mask, need_weights=False)
        x = x + self.dropout(h)
        h = F.gelu(self.ff1(self.norm2(x)))
        return x + self.dropout(self.ff2(h))


class OldLM(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.position = nn.Parameter(torch.randn(longest, 1, dim) * 0.02)
        self.layers = nn.ModuleList([OldLayer(dim, heads) for _ in range(layers)])
        self.last = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, vocab)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids):
        ids = ids.t()
        x = self.embedding(ids) + self.position[: ids.size(0)]
        time = ids.size(0)
        mask = torch.ones(time, time, dtype=torch.bool).triu(1)
        for layer in self.layers:
            x = layer(x, mask)
        return self.out(self.last(x)).transpose(0, 1)


@host
def old_lm():
    return Case(OldLM(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT), causal=True)


# --- a GPT of functions: weights in dictionaries, no layer that is a module -----------------------


def layer_norm(x, g, b, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=False)
    return g * ((x - mean) / (variance + eps) ** 0.5) + b


def linear(x, w, b):
    return x @ w + b


def feed_forward(x, w):
    return linear(F.gelu(linear(x, w["fc_w"], w["fc_b"])), w["down_w"], w["down_b"])


def self_attention(x, w, heads):
    b, t, c = x.shape
    q, k, v = linear(x, w["qkv_w"], w["qkv_b"]).chunk(3, dim=-1)
    q, k, v = (y.unflatten(-1, (heads, c // heads)).transpose(1, 2) for y in (q, k, v))
    bias = torch.full((t, t), -1e10).triu(1)
    p = torch.softmax(q @ k.mT / (c // heads) ** 0.5 + bias, dim=-1)
    return linear((p @ v).transpose(1, 2).flatten(2), w["out_w"], w["out_b"])


def transformer_block(x, w, heads):
    x = x + self_attention(layer_norm(x, w["ln1_g"], w["ln1_b"]), w, heads)
    x = x + feed_forward(layer_norm(x, w["ln2_g"], w["ln2_b"]), w)
    return x


def block_weights(dim, layers):
    def weight(m, n, std=0.02):
        return nn.Parameter(torch.randn(m, n) * std)

    def ones():
        return nn.Parameter(torch.ones(dim))

    def zeros(n):
        return nn.Parameter(torch.zeros(n))

    out = 0.02 / math.sqrt(2 * layers)
    return nn.ParameterDict(
        {
            "ln1_g": ones(),
            "ln1_b": zeros(dim),
            "qkv_w": weight(dim, 3 * dim),
            "qkv_b": zeros(3 * dim),
            "out_w": weight(dim, dim, out),
            "out_b": zeros(dim),
            "ln2_g": ones(),
            "ln2_b": zeros(dim),
            "fc_w": weight(dim, 4 * dim),
            "fc_b": zeros(4 * dim),
            "down_w": weight(4 * dim, dim, out),
            "down_b": zeros(dim),
        }
    )


class FunctionalGPT(nn.Module):
    def __init__(self, vocab, context, dim, layers, heads):
        super().__init__()
        self.heads = heads
        self.wte = nn.Parameter(torch.randn(vocab, dim) * 0.02)
        self.wpe = nn.Parameter(torch.randn(context, dim) * 0.02)
        self.blocks = nn.ModuleList([block_weights(dim, layers) for _ in range(layers)])
        self.lnf_g = nn.Parameter(torch.ones(dim))
        self.lnf_b = nn.Parameter(torch.zeros(dim))

    def forward(self, ids):
        x = self.wte[ids] + self.wpe[: ids.size(1)]
        for w in self.blocks:
            x = transformer_block(x, w, self.heads)
        return layer_norm(x, self.lnf_g, self.lnf_b) @ self.wte.T


@host
def functional_gpt():
    return Case(FunctionalGPT(VOCAB, CONTEXT, WIDTH, LAYERS, HEADS), causal=True)


# --- a captioner: image features in, tokens out, cross-attention with masks -----------------------


class CaptionAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v, self.o = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, y, keep=None):
        q, k, v = (f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f, z in ((self.q, x), (self.k, y), (self.v, y)))  # fmt: skip
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.o(out.transpose(1, 2).flatten(2))


class CaptionLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.self_attn = CaptionAttention(dim, heads)
        self.cross_attn = CaptionAttention(dim, heads)
        self.fc = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.n1, self.n2, self.n3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x, features, causal):
        x = self.n1(x + self.self_attn(x, x, causal))
        x = self.n2(x + self.cross_attn(x, features))
        return self.n3(x + self.fc(x))


class Captioner(nn.Module):
    def __init__(self, vocab, dim, heads, layers, longest, feature_dim):
        super().__init__()
        self.read = nn.Linear(feature_dim, dim)
        self.read_norm = nn.LayerNorm(dim)
        self.words = nn.Embedding(vocab, dim)
        self.places = nn.Embedding(longest, dim)
        self.layers = nn.ModuleList([CaptionLayer(dim, heads) for _ in range(layers)])
        self.out = nn.Linear(dim, vocab)

    def forward(self, features, captions):
        memory = self.read_norm(self.read(features))
        t = captions.size(1)
        x = self.words(captions) + self.places(torch.arange(t))
        causal = torch.ones(t, t, dtype=torch.bool).tril()
        for layer in self.layers:
            x = layer(x, memory, causal)
        return self.out(x)


@host
def captioner():
    model = Captioner(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT, 20)
    inputs = {"features": torch.randn(3, 9, 20), "captions": torch.randint(0, VOCAB, (3, 7))}
    return Case(model, inputs, causal=True)


# --- fine-tuning somebody else's model, parameters grouped by name --------------------------------


@host
def hf_llama_with_optimizer():
    model = hf_llama().model
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decay = [p for n, p in named if not ("norm" in n or n.endswith("bias"))]
    plain = [p for n, p in named if "norm" in n or n.endswith("bias")]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return Case(model, causal=True, optimizer=torch.optim.AdamW(groups, lr=1e-5))


FAULTS = Faults()
edit, patch, change = FAULTS.edit, FAULTS.patch, FAULTS.change

# norms
edit(
    "image_classifier: the centred input, not divided",
    "norm-not-normalizing",
    image_classifier,
    "ChannelNorm.forward",
    "centred * (power + self.eps).rsqrt() * self.g",
    "centred * self.g",
)
edit(
    "functional_gpt: divides by the variance",
    "norm-not-normalizing",
    functional_gpt,
    "layer_norm",
    "(variance + eps) ** 0.5",
    "(variance + eps)",
)
edit(
    "modern: divides by the sum",
    "norm-not-normalizing",
    modern,
    "RMSNorm.forward",
    "torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)",
    "1 / (h.sum(-1, keepdim=True) + self.eps)",
)
edit(
    "classifier: each feature over the sequence",
    "norm-wrong-axis",
    classifier,
    "BlogLayerNorm.forward",
    "mu = x.mean(dim=-1, keepdim=True)\n        var = (x - mu).pow(2).mean(dim=-1,",
    "mu = x.mean(dim=-2, keepdim=True)\n        var = (x - mu).pow(2).mean(dim=-2,",
    "padding-leak",
)
edit(
    "image_classifier: over patches",
    "norm-wrong-axis",
    image_classifier,
    "ChannelNorm.forward",
    "x.mean(-1, keepdim=True)\n        power = centred.square().mean(-1,",
    "x.mean(1, keepdim=True)\n        power = centred.square().mean(1,",
)
edit(
    "functional_gpt: unbiased variance",
    "norm-unbiased-variance",
    functional_gpt,
    "layer_norm",
    ", unbiased=False",
    "",
)
edit(
    "classifier: Bessel by hand",
    "norm-unbiased-variance",
    classifier,
    "BlogLayerNorm.forward",
    ".pow(2).mean(dim=-1, keepdim=True)",
    ".pow(2).sum(dim=-1, keepdim=True) / (x.size(-1) - 1)",
)
edit(
    "modern: eps beside the root",
    "norm-eps-outside-sqrt",
    modern,
    "RMSNorm.forward",
    "torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)",
    "1 / (h.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)",
)
edit(
    "classifier: eps beside the root",
    "norm-eps-outside-sqrt",
    classifier,
    "BlogLayerNorm.forward",
    "(var + self.eps).sqrt()",
    "(var.sqrt() + self.eps)",
)
edit(
    "functional_gpt: statistics of all tokens of the batch",
    "norm-batch-dependent",
    functional_gpt,
    "layer_norm",
    "x.mean(-1, keepdim=True)\n    variance = x.var(-1, keepdim=True, unbiased=False)",
    "x.mean((0, 1), keepdim=True)\n    variance = x.var((0, 1), keepdim=True, unbiased=False)",
    "norm-wrong-axis",
    "batch-leak",
    "future-leak",
)
edit(
    "image_classifier: nothing flows through the variance",
    "norm-bad-gradient",
    image_classifier,
    "ChannelNorm.forward",
    "centred.square()",
    "centred.data.square()",
)
edit(
    "seq2seq: the deviation's gradient is cut",
    "norm-bad-gradient",
    seq2seq,
    "AnnotatedNorm.forward",
    "self.a_2 * (x - mean) / std",
    "self.a_2 * (x - mean) / std.detach()",
)
edit(
    "image_classifier: squares in half precision",
    "norm-low-precision",
    image_classifier,
    "ChannelNorm.forward",
    "centred.square().mean(-1, keepdim=True)",
    "centred.half().square().mean(-1, keepdim=True).float()",
)
# wiring
edit(
    "image_classifier: MLP without residual",
    "no-residual",
    image_classifier,
    "ImageBlock.forward",
    "self.mlp(self.norm_mlp(x)) + x",
    "self.mlp(self.norm_mlp(x))",
)
edit(
    "functional_gpt: attention without residual",
    "no-residual",
    functional_gpt,
    "transformer_block",
    "x = x + self_attention(",
    "x = self_attention(",
)
edit(
    "captioner: cross-attention without residual",
    "no-residual",
    captioner,
    "CaptionLayer.forward",
    "self.n2(x + self.cross_attn(",
    "self.n2(self.cross_attn(",
)
patch(
    "hf_llama: one block's MLP without residual",
    "no-residual",
    hf_llama,
    "LlamaDecoderLayer.forward",
    "hidden_states = self.mlp(hidden_states)\n    hidden_states = residual + hidden_states",
    "hidden_states = self.mlp(hidden_states)",
    only=1,
)
edit(
    "old_lm: the residual is taken after the norm",
    "residual-wrong-tensor",
    old_lm,
    "OldLayer.forward",
    "h = self.norm1(x)\n",
    "h = x = self.norm1(x)\n",
)
edit(
    "functional_gpt: the norm's result is added, not its input",
    "residual-wrong-tensor",
    functional_gpt,
    "transformer_block",
    'x = x + feed_forward(layer_norm(x, w["ln2_g"], w["ln2_b"]), w)',
    'x = layer_norm(x, w["ln2_g"], w["ln2_b"])\n    x = x + feed_forward(x, w)',
)
patch(
    "hf_bert: the MLP is added to the block's input",
    "residual-wrong-tensor",
    hf_bert,
    "BertLayer.forward",
    "self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, attention_output",
    "lambda a: self.output(self.intermediate(a), hidden_states),"
    " self.chunk_size_feed_forward, self.seq_len_dim, attention_output",
)
edit(
    "captioner: each block ends with two norms",
    "double-norm",
    captioner,
    "CaptionLayer.forward",
    "return self.n3(x + self.fc(x))",
    "return F.layer_norm(self.n3(x + self.fc(x)), x.shape[-1:])",
)
edit(
    "old_lm: the normed is normed again",
    "double-norm",
    old_lm,
    "OldLayer.__init__",
    "self.norm1 = nn.LayerNorm(dim)",
    "self.norm1 = nn.Sequential(nn.LayerNorm(dim), nn.LayerNorm(dim))",
)
edit(
    "image_classifier: the class token is not normed",
    "missing-final-norm",
    image_classifier,
    "ImageTransformer.forward",
    "self.norm(x)[:, 0]",
    "x[:, 0]",
    "unused-norm",
    "unused-parameter",
)
edit(
    "functional_gpt: no final norm",
    "missing-final-norm",
    functional_gpt,
    "FunctionalGPT.forward",
    "layer_norm(x, self.lnf_g, self.lnf_b) @",
    "x @",
    "unused-parameter",
)
change(
    "x_decoder: the final norm replaced by an identity",
    "missing-final-norm",
    x_decoder,
    lambda m: setattr(m.attn_layers, "final_norm", nn.Identity()),
)
edit(
    "image_classifier: all blocks share the first block's norm",
    "shared-norm",
    image_classifier,
    "ImageTransformer.__init__",
    "        self.norm = ChannelNorm(dim)\n",
    "        for block in self.blocks:\n"
    "            block.norm_attn = block.norm_mlp = self.blocks[0].norm_attn\n"
    "        self.norm = ChannelNorm(dim)\n",
)
edit(
    "old_lm: the first norm at the second site",
    "shared-norm",
    old_lm,
    "OldLayer.forward",
    "self.norm2(x)",
    "self.norm1(x)",
    "unused-norm",
    "unused-parameter",
)
edit(
    "image_classifier: attention on the raw stream",
    "unused-norm",
    image_classifier,
    "ImageBlock.forward",
    "self.attn(self.norm_attn(x))",
    "self.attn(x)",
    "unused-parameter",
)
patch(
    "hf_llama: the attention's norm is skipped",
    "unused-norm",
    hf_llama,
    "LlamaDecoderLayer.forward",
    "hidden_states = self.input_layernorm(hidden_states)",
    "hidden_states = hidden_states",
    "unused-parameter",
)
# branches
edit(
    "image_classifier: dropout stands where the activation stood",
    "linear-mlp",
    image_classifier,
    "ImageMLP.__init__",
    "nn.GELU()",
    "nn.Dropout(0.1)",
)
edit(
    "functional_gpt: two products",
    "linear-mlp",
    functional_gpt,
    "feed_forward",
    'F.gelu(linear(x, w["fc_w"], w["fc_b"]))',
    'linear(x, w["fc_w"], w["fc_b"])',
)
change(
    "x_encoder: identity for GELU",
    "linear-mlp",
    x_encoder,
    lambda m: [
        setattr(s, str(i), nn.Identity())
        for s in m.modules()
        if isinstance(s, nn.Sequential)
        for i, child in enumerate(s)
        if isinstance(child, nn.GELU)
    ],
)
edit(
    "old_lm: the attention's output is overwritten",
    "dead-branch",
    old_lm,
    "OldLayer.forward",
    "        x = x + self.dropout(h)\n",
    "",
    "unused-parameter",
    "unused-norm",
    "no-residual",
)
edit(
    "image_classifier: a branch times zero",
    "dead-branch",
    image_classifier,
    "ImageBlock.forward",
    "self.attn(self.norm_attn(x)) + x",
    "0.0 * self.attn(self.norm_attn(x)) + x",
    "unused-parameter",
)
edit(
    "classifier: a ReLU after the attention",
    "one-signed-branch",
    classifier,
    "BlogBlock.attend",
    "self.unify(mixed)",
    "F.relu(self.unify(mixed))",
)
edit(
    "image_classifier: softplus at the branch's end",
    "one-signed-branch",
    image_classifier,
    "ImageMLP.__init__",
    "nn.Linear(hidden, dim))",
    "nn.Linear(hidden, dim), nn.Softplus())",
)
edit(
    "old_lm: every layer from the same seed",
    "identical-layers",
    old_lm,
    "OldLM.__init__",
    "[OldLayer(dim, heads) for _ in range(layers)]",
    "[(torch.manual_seed(0), OldLayer(dim, heads))[1] for _ in range(layers)]",
)
edit(
    "image_classifier: the class token is never put in front",
    "unused-parameter",
    image_classifier,
    "ImageTransformer.forward",
    "[self.class_token.expand(x.size(0), -1, -1), x]",
    "[x[:, :1], x]",
)
edit(
    "captioner: the mask is handed over and not used",
    "future-leak",
    captioner,
    "CaptionAttention.forward",
    "attn_mask=keep",
    "attn_mask=None",
    "no-causal-mask",
)
edit(
    "seq2seq: the source's mask is overwritten",
    "ignored-argument",
    seq2seq,
    "EncoderDecoder.forward",
    "src_mask = None if src_mask is None else src_mask.unsqueeze(1)",
    "src_mask = None",
    "padding-leak",
)
edit(
    "image_classifier: a projection made in every forward",
    "module-in-forward",
    image_classifier,
    "ImageTransformer.forward",
    "x = x + self.positions\n",
    "x = nn.Linear(x.size(-1), x.size(-1))(x) + self.positions\n",
)
# sight
edit(
    "old_lm: the mask is one too late",
    "future-leak",
    old_lm,
    "OldLM.forward",
    ".triu(1)",
    ".triu(2)",
)
edit(
    "functional_gpt: the sequence's mean is subtracted",
    "future-leak",
    functional_gpt,
    "FunctionalGPT.forward",
    "x = self.wte[ids] + self.wpe[: ids.size(1)]",
    "x = self.wte[ids] + self.wpe[: ids.size(1)]\n        x = x - x.mean(1, keepdim=True)",
)
edit(
    "functional_gpt: no mask",
    "no-causal-mask",
    functional_gpt,
    "self_attention",
    " + bias, dim",
    ", dim",
    "future-leak",
)
edit(
    "old_lm: the mask is not handed on",
    "no-causal-mask",
    old_lm,
    "OldLayer.forward",
    "attn_mask=mask, ",
    "",
    "future-leak",
)
edit(
    "image_classifier: each patch against the batch",
    "batch-leak",
    image_classifier,
    "ImageAttention.forward",
    '"bhid,bhjd->bhij", q, k) * self.scale',
    '"bhid,bhjd->bhij", q, k.mean(0, keepdim=True).expand_as(k)) * self.scale',
)
edit(
    "old_lm: ids are not transposed",
    "batch-time-swapped",
    old_lm,
    "OldLM.forward",
    "x = self.embedding(ids) + self.position[: ids.size(0)]\n        time = ids.size(0)",
    "ids = ids.t()\n"
    "        x = self.embedding(ids) + self.position[: ids.size(0)]\n        time = ids.size(0)",
    "batch-leak",
)
edit(
    "image_classifier: attention gets time first and takes it for the batch",
    "batch-time-swapped",
    image_classifier,
    "ImageBlock.forward",
    "self.attn(self.norm_attn(x))",
    "self.attn(self.norm_attn(x).transpose(0, 1)).transpose(0, 1)",
    "batch-leak",
)
edit(
    "seq2seq: the encoder itself is not given the mask",
    "padding-leak",
    seq2seq,
    "EncoderDecoder.forward",
    "self.encoder(self.src_embed(src), src_mask)",
    "self.encoder(self.src_embed(src), None)",
)
edit(
    "seq2seq: minus infinity in the mask",
    "mask-nan",
    seq2seq,
    "attention",
    "-1e9",
    'float("-inf")',
)
edit(
    "image_classifier: no positions",
    "position-blind",
    image_classifier,
    "ImageTransformer.forward",
    "        x = x + self.positions\n",
    "",
    "unused-parameter",
)
patch(
    "x_encoder: the first position for all",
    "position-blind",
    x_encoder,
    "AbsolutePositionalEmbedding.forward",
    "self.emb(pos)",
    "self.emb(torch.zeros_like(pos))",
)
edit(
    "functional_gpt: the position in place of an offset",
    "positions-on-ids",
    functional_gpt,
    "FunctionalGPT.forward",
    "self.wte[ids] + self.wpe[: ids.size(1)]",
    "self.wte[(ids + torch.arange(ids.size(1))) % len(self.wte)]",
    "unused-parameter",
)
edit(
    "captioner: cross-attention reads the caption",
    "ignores-memory",
    captioner,
    "CaptionLayer.forward",
    "self.cross_attn(x, features)",
    "self.cross_attn(x, x)",
    "ignored-argument",
    "unused-parameter",
    "future-leak",
)
edit(
    "torch_seq2seq: the decoder's memory is its own input",
    "ignores-memory",
    torch_seq2seq,
    "TorchSeq2Seq.forward",
    "self.decoder(self.embedded(tgt), memory,",
    "self.decoder(self.embedded(tgt), self.embedded(tgt),",
    "ignored-argument",
    "unused-parameter",
    "future-leak",
)
# attention
edit(
    "image_classifier: no scale",
    "attention-scale",
    image_classifier,
    "ImageAttention.forward",
    " * self.scale",
    "",
)
edit(
    "functional_gpt: the scale of the width",
    "attention-scale",
    functional_gpt,
    "self_attention",
    "(c // heads) ** 0.5 +",
    "c**0.5 +",
)
edit(
    "seq2seq: divides by d_k",
    "attention-scale",
    seq2seq,
    "attention",
    "math.sqrt(d_k)",
    "d_k",
)
change(
    "hf_llama: a scale of one",
    "attention-scale",
    hf_llama,
    lambda m: [setattr(layer.self_attn, "scaling", 1.0) for layer in m.model.layers],
)
edit(
    "image_classifier: softmax over the queries",
    "attention-not-normalized",
    image_classifier,
    "ImageAttention.forward",
    "dots.softmax(dim=-1)",
    "dots.softmax(dim=-2)",
)
edit(
    "functional_gpt: masked after the softmax",
    "attention-not-normalized",
    functional_gpt,
    "self_attention",
    "torch.softmax(q @ k.mT / (c // heads) ** 0.5 + bias, dim=-1)",
    "torch.softmax(q @ k.mT / (c // heads) ** 0.5, dim=-1).tril()",
    "future-leak",
)
# initialization
edit(
    "modern: the outputs' init is scaled up",
    "init-residual-scale",
    modern,
    "Modern.__init__",
    "std=0.02 / math.sqrt(2 * layers)",
    "std=0.02 * math.sqrt(2 * layers)",
)
edit(
    "functional_gpt: weights of deviation one",
    "init-unstable",
    functional_gpt,
    "block_weights",
    "torch.randn(m, n) * std",
    "torch.randn(m, n)",
    "init-residual-scale",
)
edit(
    "lecture_gpt: twenty times too large",
    "init-unstable",
    lecture_gpt,
    "LectureGPT._init_weights",
    "if isinstance(module, nn.Linear):\n"
    "            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)",
    "if isinstance(module, nn.Linear):\n"
    "            torch.nn.init.normal_(module.weight, mean=0.0, std=2.0)",
)
# training
edit(
    "hf_llama_with_optimizer: LayerNorm is what the names are searched for",
    "decay-on-norm",
    hf_llama_with_optimizer,
    "hf_llama_with_optimizer",
    'not ("norm" in n or n.endswith("bias"))]\n    plain = [p for n, p in named if "norm" in n or',
    'not ("LayerNorm" in n or n.endswith("bias"))]\n'
    '    plain = [p for n, p in named if "LayerNorm" in n or',
)
edit(
    "hf_llama_with_optimizer: the head is replaced afterwards",
    "not-in-optimizer",
    hf_llama_with_optimizer,
    "hf_llama_with_optimizer",
    "return Case(model, causal=True, optimizer=torch.optim.AdamW(groups, lr=1e-5))",
    "optimizer = torch.optim.AdamW(groups, lr=1e-5)\n"
    "    model.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)\n"
    "    return Case(model, causal=True, optimizer=optimizer)",
)
edit(
    "gpt_with_optimizer: a decayed weight is in the other group too",
    "duplicated-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "lr=3e-4)\n",
    'lr=3e-4)\n    optimizer.param_groups[1]["params"].append(model.blocks[0].mlp.c_fc.weight)\n',
)
edit(
    "hf_llama_with_optimizer: embeddings frozen too late",
    "frozen-in-optimizer",
    hf_llama_with_optimizer,
    "hf_llama_with_optimizer",
    "return Case(model, causal=True, optimizer=torch.optim.AdamW(groups, lr=1e-5))",
    "optimizer = torch.optim.AdamW(groups, lr=1e-5)\n"
    "    model.model.embed_tokens.requires_grad_(False)\n"
    "    return Case(model, causal=True, optimizer=optimizer)",
)
change(
    "hf_bert: the decoder's weight is a copy",
    "untied-weights",
    hf_bert,
    lambda m: setattr(
        m.cls.predictions.decoder,
        "weight",
        nn.Parameter(m.bert.embeddings.word_embeddings.weight.detach().clone()),
    ),
)
edit(
    "captioner: dropout in attention, always",
    "dropout-in-eval",
    captioner,
    "CaptionAttention.forward",
    "attn_mask=keep",
    "attn_mask=keep, dropout_p=0.1",
)
edit(
    "old_lm: a new dropout in every forward",
    "dropout-in-eval",
    old_lm,
    "OldLayer.forward",
    "x = x + self.dropout(h)",
    "x = x + nn.Dropout(0.1)(h)",
    "module-in-forward",
)
