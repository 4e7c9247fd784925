"""Faults: one edit each of a correct model, as people make them.

Each fault names its host, the place, what stood there and what stands there now, and the rule that
has to notice. There are others in ``lint_faults_more.py``, and in ``lint_faults_unseen.py`` those
that nobody looks at while the rules are made.
"""

from torch import nn

from benchmarks.lint_hosts import (
    Faults,
    classifier,
    encoder2017,
    gpt,
    gpt_with_optimizer,
    hf_bert,
    hf_gpt2,
    hf_llama,
    hf_t5,
    lecture_gpt,
    modern,
    modern_bf16,
    seq2seq,
    torch_encoder,
    torch_lm,
    torch_plain,
    torch_seq2seq,
    x_decoder,
)

FAULTS = Faults()
edit, patch, change = FAULTS.edit, FAULTS.patch, FAULTS.change

# --- a norm that is not one -----------------------------------------------------------------------

edit(
    "gpt: the mean is subtracted, nothing is divided",
    "norm-not-normalizing",
    gpt,
    "GPTNorm.forward",
    "(x - mean) / torch.sqrt(var + self.eps)",
    "x - mean",
)
edit(
    "classifier: normalizes only when affine is off",
    "norm-not-normalizing",
    classifier,
    "BlogLayerNorm.forward",
    "return normed * self.scale",
    "return x * self.scale",
)
edit(
    "encoder2017: divides by the sum",
    "norm-not-normalizing",
    encoder2017,
    "EncoderNorm.forward",
    "self.gamma * (x - mean) * torch.rsqrt(variance + self.eps)",
    "self.gamma * x / (x.sum(-1, keepdim=True) + self.eps)",
)
patch(
    "hf_llama: sqrt for rsqrt",
    "norm-not-normalizing",
    hf_llama,
    "LlamaRMSNorm.forward",
    "torch.rsqrt(variance",
    "torch.sqrt(variance",
)
edit(
    "gpt: each channel over time",
    "norm-wrong-axis",
    gpt,
    "GPTNorm.forward",
    "mean = x.mean(dim=-1, keepdim=True)\n        var = x.var(dim=-1,",
    "mean = x.mean(dim=1, keepdim=True)\n        var = x.var(dim=1,",
    "future-leak",
)
edit(
    "seq2seq: tokens and features together",
    "norm-wrong-axis",
    seq2seq,
    "AnnotatedNorm.forward",
    "mean = x.mean(-1, keepdim=True)\n        std = torch.sqrt(x.var(-1,",
    "mean = x.mean((-2, -1), keepdim=True)\n        std = torch.sqrt(x.var((-2, -1),",
    "future-leak",
    "padding-leak",
)
edit(
    "modern: the mean square over time",
    "norm-wrong-axis",
    modern,
    "RMSNorm.forward",
    "h.pow(2).mean(-1,",
    "h.pow(2).mean(1,",
    "future-leak",
)
edit(
    "gpt: unbiased variance",
    "norm-unbiased-variance",
    gpt,
    "GPTNorm.forward",
    ", unbiased=False",
    "",
)
edit(
    "seq2seq: unbiased variance",
    "norm-unbiased-variance",
    seq2seq,
    "AnnotatedNorm.forward",
    "correction=0",
    "correction=1",
)
edit(
    "gpt: eps beside the root",
    "norm-eps-outside-sqrt",
    gpt,
    "GPTNorm.forward",
    "torch.sqrt(var + self.eps)",
    "(torch.sqrt(var) + self.eps)",
)
edit(
    "seq2seq: eps added to the deviation",
    "norm-eps-outside-sqrt",
    seq2seq,
    "AnnotatedNorm.forward",
    "torch.sqrt(x.var(-1, keepdim=True, correction=0) + self.eps)",
    "x.std(-1, keepdim=True, correction=0) + self.eps",
)
edit(
    "encoder2017: each channel over the batch",
    "norm-batch-dependent",
    encoder2017,
    "EncoderNorm.forward",
    "mean = x.mean(-1, keepdim=True)\n        variance = ((x - mean) ** 2).mean(-1, keepdim=True)",
    "mean = x.mean((0, 1), keepdim=True)\n"
    "        variance = ((x - mean) ** 2).mean((0, 1), keepdim=True)",
    "norm-wrong-axis",
    "batch-leak",
    "padding-leak",
)
edit(
    "modern: the mean square over the batch",
    "norm-batch-dependent",
    modern,
    "RMSNorm.forward",
    "h.pow(2).mean(-1,",
    "h.pow(2).mean(0,",
    "norm-wrong-axis",
    "batch-leak",
)
edit(
    "lecture_gpt: BatchNorm over all tokens",
    "norm-batch-dependent",
    lecture_gpt,
    "Block.forward",
    "self.ln1(x)",
    "F.batch_norm(x.transpose(1, 2), None, None, self.ln1.weight, self.ln1.bias, training=True)"
    ".transpose(1, 2)",
    "norm-wrong-axis",
    "batch-leak",
    "future-leak",
    "unused-norm",
)
edit(
    "gpt: detached variance",
    "norm-bad-gradient",
    gpt,
    "GPTNorm.forward",
    "unbiased=False)",
    "unbiased=False).detach()",
)
patch(
    "hf_llama: detached mean square",
    "norm-bad-gradient",
    hf_llama,
    "LlamaRMSNorm.forward",
    "hidden_states.pow(2)",
    "hidden_states.detach().pow(2)",
)
edit(
    "encoder2017: both statistics without gradient",
    "norm-bad-gradient",
    encoder2017,
    "EncoderNorm.forward",
    "mean = x.mean(-1, keepdim=True)\n        variance = ((x - mean) ** 2)",
    "mean = x.detach().mean(-1, keepdim=True)\n        variance = ((x.detach() - mean) ** 2)",
)
edit(
    "modern_bf16: no fp32 inside",
    "norm-low-precision",
    modern_bf16,
    "RMSNorm.forward",
    "h = x.float()",
    "h = x",
)
edit(
    "gpt: variance in bf16",
    "norm-low-precision",
    gpt,
    "GPTNorm.forward",
    "var = x.var(",
    "var = x.bfloat16().var(",
)
patch(
    "hf_llama: mean square in fp16",
    "norm-low-precision",
    hf_llama,
    "LlamaRMSNorm.forward",
    "hidden_states.to(torch.float32)",
    "hidden_states.to(torch.float16)",
)

# --- residual connections and where the norms sit -------------------------------------------------

edit(
    "gpt: attention without residual",
    "no-residual",
    gpt,
    "GPTBlock.forward",
    "x = x + self.attn(",
    "x = self.attn(",
)
edit(
    "lecture_gpt: MLP without residual",
    "no-residual",
    lecture_gpt,
    "Block.forward",
    "x = x + self.ffwd(",
    "x = self.ffwd(",
)
edit(
    "seq2seq: sublayer connection without the connection",
    "no-residual",
    seq2seq,
    "SublayerConnection.forward",
    "return x + self.dropout",
    "return self.dropout",
)
edit(
    "encoder2017: post-norm MLP without residual",
    "no-residual",
    encoder2017,
    "EncoderLayer.forward",
    "self.norm2(h + self.dropout(",
    "self.norm2(self.dropout(",
)
patch(
    "hf_bert: MLP without residual",
    "no-residual",
    hf_bert,
    "BertOutput.forward",
    "hidden_states + input_tensor",
    "hidden_states",
)
patch(
    "hf_t5: attention without residual",
    "no-residual",
    hf_t5,
    "T5LayerSelfAttention.forward",
    "attention_output = hidden_states + self.dropout",
    "attention_output = self.dropout",
)
patch(
    "x_decoder: one layer without residual",
    "no-residual",
    x_decoder,
    "Residual.forward",
    "return x + residual",
    "return x",
    only=3,
)
edit(
    "gpt: the normed stream is what the branch is added to",
    "residual-wrong-tensor",
    gpt,
    "GPTBlock.forward",
    "x = x + self.attn(self.ln_1(x))",
    "x = self.ln_1(x) + self.attn(self.ln_1(x))",
)
edit(
    "lecture_gpt: normed in place, then added to itself",
    "residual-wrong-tensor",
    lecture_gpt,
    "Block.forward",
    "x = x + self.ffwd(self.ln2(x))",
    "x = self.ln2(x)\n        x = x + self.ffwd(x)",
)
edit(
    "encoder2017: second residual from the block's input",
    "residual-wrong-tensor",
    encoder2017,
    "EncoderLayer.forward",
    "self.norm2(h + self",
    "self.norm2(x + self",
)
edit(
    "modern: second residual from the block's input",
    "residual-wrong-tensor",
    modern,
    "ModernBlock.forward",
    "return h + self",
    "return x + self",
)
patch(
    "hf_gpt2: residual kept after the norm",
    "residual-wrong-tensor",
    hf_gpt2,
    "GPT2Block.forward",
    "residual = hidden_states\n    hidden_states = self.ln_1(hidden_states)",
    "hidden_states = self.ln_1(hidden_states)\n    residual = hidden_states",
)
patch(
    "hf_t5: normed states in the residual",
    "residual-wrong-tensor",
    hf_t5,
    "T5LayerFF.forward",
    "hidden_states = hidden_states + self",
    "hidden_states = self.layer_norm(hidden_states) + self",
)
edit(
    "torch_lm: post-norm layers and a final norm",
    "double-norm",
    torch_lm,
    "TorchLM.__init__",
    "nn.TransformerEncoder(layer, layers)",
    "nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim))",
)
edit(
    "torch_encoder: norm_first not passed down",
    "double-norm",
    torch_encoder,
    "TorchEncoder.__init__",
    ", batch_first=True, norm_first=True",
    ", batch_first=True",
)
edit(
    "lecture_gpt: the MLP has its own norm too",
    "double-norm",
    lecture_gpt,
    "FeedForward.__init__",
    "nn.Linear(n_embd, 4 * n_embd),",
    "nn.LayerNorm(n_embd), nn.Linear(n_embd, 4 * n_embd),",
)
edit(
    "gpt: no final norm",
    "missing-final-norm",
    gpt,
    "GPT.forward",
    "self.head(self.ln_f(x))",
    "self.head(x)",
    "unused-norm",
    "unused-parameter",
)
edit(
    "torch_encoder: no final norm",
    "missing-final-norm",
    torch_encoder,
    "TorchEncoder.__init__",
    "norm=nn.LayerNorm(dim)",
    "norm=None",
)
change(
    "hf_gpt2: the final norm replaced by an identity",
    "missing-final-norm",
    hf_gpt2,
    lambda m: setattr(m.transformer, "ln_f", nn.Identity()),
)
edit(
    "gpt: one norm at both sites",
    "shared-norm",
    gpt,
    "GPTBlock.__init__",
    "self.ln_2 = GPTNorm(dim)",
    "self.ln_2 = self.ln_1",
)
edit(
    "modern: the attention's norm used again",
    "shared-norm",
    modern,
    "ModernBlock.forward",
    "self.ffn_norm(h)",
    "self.attention_norm(h)",
    "unused-norm",
    "unused-parameter",
)
edit(
    "classifier: one norm at both sites",
    "shared-norm",
    classifier,
    "BlogBlock.__init__",
    "self.norm_b = BlogLayerNorm(size, affine)",
    "self.norm_b = self.norm_a",
)
edit(
    "gpt: MLP on the raw stream",
    "unused-norm",
    gpt,
    "GPTBlock.forward",
    "self.mlp(self.ln_2(x))",
    "self.mlp(x)",
    "unused-parameter",
)
edit(
    "seq2seq: the norm is never called",
    "unused-norm",
    seq2seq,
    "SublayerConnection.forward",
    "sublayer(self.norm(x))",
    "sublayer(x)",
    "unused-parameter",
)
patch(
    "hf_gpt2: ln_2 is never called",
    "unused-norm",
    hf_gpt2,
    "GPT2Block.forward",
    "hidden_states = self.ln_2(hidden_states)",
    "hidden_states = hidden_states",
    "unused-parameter",
)

# --- branches and parameters that do nothing ------------------------------------------------------

edit(
    "gpt: MLP without activation",
    "linear-mlp",
    gpt,
    "GPTMLP.forward",
    "F.gelu(self.c_fc(x))",
    "self.c_fc(x)",
)
edit(
    "lecture_gpt: MLP without activation",
    "linear-mlp",
    lecture_gpt,
    "FeedForward.__init__",
    "nn.ReLU()",
    "nn.Identity()",
)
edit(
    "encoder2017: MLP without activation",
    "linear-mlp",
    encoder2017,
    "EncoderFeedForward.forward",
    "torch.relu(self.w_1(x))",
    "self.w_1(x)",
)
patch(
    "hf_bert: MLP without activation",
    "linear-mlp",
    hf_bert,
    "BertIntermediate.forward",
    "hidden_states = self.intermediate_act_fn(hidden_states)",
    "hidden_states = hidden_states",
)
edit(
    "gpt: the attention's result is dropped",
    "dead-branch",
    gpt,
    "GPTBlock.forward",
    "x = x + self.attn(self.ln_1(x))",
    "_ = x + self.attn(self.ln_1(x))",
    "unused-parameter",
    "unused-norm",
)
edit(
    "seq2seq: the cross-attention's result is dropped",
    "dead-branch",
    seq2seq,
    "TargetLayer.forward",
    "x = self.sublayer[1](",
    "_ = self.sublayer[1](",
    "ignores-memory",
    "unused-parameter",
    "unused-norm",
)
patch(
    "hf_llama: the MLP is computed and not added",
    "dead-branch",
    hf_llama,
    "LlamaDecoderLayer.forward",
    "hidden_states = self.mlp(hidden_states)\n    hidden_states = residual + hidden_states",
    "hidden_states = self.mlp(hidden_states)\n    hidden_states = residual",
    "unused-parameter",
    "unused-norm",
)
edit(
    "gpt: a ReLU after the last linear",
    "one-signed-branch",
    gpt,
    "GPTMLP.forward",
    "self.drop(self.c_proj(x))",
    "self.drop(F.relu(self.c_proj(x)))",
)
edit(
    "lecture_gpt: a ReLU after both linears",
    "one-signed-branch",
    lecture_gpt,
    "FeedForward.__init__",
    "nn.Linear(4 * n_embd, n_embd),",
    "nn.Linear(4 * n_embd, n_embd), nn.ReLU(),",
)
edit(
    "seq2seq: clones are never drawn anew",
    "identical-layers",
    seq2seq,
    "EncoderDecoder.__init__",
    "if p.dim() > 1",
    "if p.dim() > 2",
)
edit(
    "classifier: blocks copied from one",
    "identical-layers",
    classifier,
    "BlogClassifier.__init__",
    "[BlogBlock(size, heads, affine) for _ in range(depth)]",
    "[deepcopy(b) for b in [BlogBlock(size, heads, affine)] * depth]",
)
edit(
    "encoder2017: no output projection",
    "unused-parameter",
    encoder2017,
    "EncoderAttention.forward",
    "self.out(context.reshape(x.size(0), x.size(1), -1))",
    "context.reshape(x.size(0), x.size(1), -1)",
)
edit(
    "modern: the up projection is forgotten",
    "unused-parameter",
    modern,
    "SwiGLU.forward",
    " * self.up(x)",
    "",
)
patch(
    "hf_bert: the attention's dense is skipped",
    "unused-parameter",
    hf_bert,
    "BertSelfOutput.forward",
    "hidden_states = self.dense(hidden_states)",
    "hidden_states = hidden_states",
)
edit(
    "encoder2017: the mask is not handed on",
    "ignored-argument",
    encoder2017,
    "Encoder.forward",
    "layer(x, mask)",
    "layer(x)",
    "padding-leak",
)
edit(
    "torch_encoder: the mask is not handed on",
    "ignored-argument",
    torch_encoder,
    "TorchEncoder.forward",
    "x, src_key_padding_mask=pad",
    "x",
    "padding-leak",
)
edit(
    "lecture_gpt: a new LayerNorm in every forward",
    "module-in-forward",
    lecture_gpt,
    "LectureGPT.forward",
    "self.ln_f(x)",
    "nn.LayerNorm(x.size(-1))(x)",
    "unused-norm",
    "unused-parameter",
)
edit(
    "encoder2017: a new head in every forward",
    "module-in-forward",
    encoder2017,
    "Encoder.forward",
    "self.to_vocab(x)",
    "nn.Linear(x.size(-1), self.to_vocab.out_features)(x)",
    "unused-parameter",
)

# --- who sees what --------------------------------------------------------------------------------

edit(
    "gpt: the mask is one too late",
    "future-leak",
    gpt,
    "GPTAttention.__init__",
    "torch.tril(torch.ones(context, context, dtype=torch.bool))",
    "torch.tril(torch.ones(context, context, dtype=torch.bool), 1)",
)
edit(
    "modern: heads are not transposed back",
    "future-leak",
    modern,
    "GroupedAttention.forward",
    "out.transpose(1, 2).reshape(",
    "out.reshape(",
)
edit(
    "seq2seq: the mask's triangle is the other one",
    "future-leak",
    seq2seq,
    "subsequent_mask",
    "torch.tril(",
    "torch.triu(",
)
edit(
    "lecture_gpt: the mask adds 0 for minus infinity",
    "future-leak",
    lecture_gpt,
    "Head.forward",
    'float("-inf")',
    "0.0",
    "no-causal-mask",
)
patch(
    "hf_gpt2: one layer without its mask",
    "future-leak",
    hf_gpt2,
    "GPT2Attention.forward",
    "value_states,\n            attention_mask,\n            dropout",
    "value_states,\n            None,\n            dropout",
    only=1,
)
edit(
    "gpt: no mask",
    "no-causal-mask",
    gpt,
    "GPTAttention.forward",
    'scores.masked_fill(~self.mask[:T, :T], float("-inf"))',
    "scores",
    "future-leak",
)
edit(
    "lecture_gpt: a bidirectional GPT",
    "no-causal-mask",
    lecture_gpt,
    "Head.forward",
    '        wei = wei.masked_fill(self.tril[:T, :T] == 0, float("-inf"))\n',
    "",
    "future-leak",
)
edit(
    "modern: is_causal is off",
    "no-causal-mask",
    modern,
    "GroupedAttention.forward",
    "is_causal=True",
    "is_causal=False",
    "future-leak",
)
edit(
    "torch_lm: the mask is not handed on",
    "no-causal-mask",
    torch_lm,
    "TorchLM.forward",
    "self.encoder(x, mask=mask, is_causal=True)",
    "self.encoder(x)",
    "future-leak",
)
patch(
    "hf_gpt2: the mask is not added",
    "no-causal-mask",
    hf_gpt2,
    "GPT2Attention.forward",
    "attn_weights = attn_weights + attention_mask",
    "attn_weights = attn_weights",
    "future-leak",
    "padding-leak",
    "ignored-argument",
    through="eager_attention_forward",
)
patch(
    "x_decoder: attention is not causal",
    "no-causal-mask",
    x_decoder,
    "Attend.forward",
    "causal = default(causal, self.causal)",
    "causal = False",
    "future-leak",
)
edit(
    "gpt: softmax over the batch",
    "batch-leak",
    gpt,
    "GPTAttention.forward",
    "F.softmax(scores, dim=-1)",
    "F.softmax(scores.nan_to_num(neginf=-1e9), dim=0)",
    "attention-not-normalized",
    "future-leak",
    "no-causal-mask",
)
patch(
    "hf_bert: embeddings centred over the batch",
    "batch-leak",
    hf_bert,
    "BertEmbeddings.forward",
    "embeddings = self.LayerNorm(embeddings)",
    "embeddings = self.LayerNorm(embeddings - embeddings.mean(0))",
)
edit(
    "torch_plain: batch_first is forgotten",
    "batch-time-swapped",
    torch_plain,
    "TorchPlain.__init__",
    ", batch_first=True",
    "",
    "batch-leak",
)
edit(
    "torch_seq2seq: batch_first is forgotten in the encoder",
    "batch-time-swapped",
    torch_seq2seq,
    "TorchSeq2Seq.__init__",
    "enc = nn.TransformerEncoderLayer(dim, heads, 4 * dim, batch_first=True, ",
    "enc = nn.TransformerEncoderLayer(dim, heads, 4 * dim, ",
    "batch-leak",
)
edit(
    "encoder2017: queries are masked, not keys",
    "padding-leak",
    encoder2017,
    "EncoderAttention.forward",
    "mask[:, None, None, :]",
    "mask[:, None, :, None]",
)
edit(
    "classifier: the mean counts the padding",
    "padding-leak",
    classifier,
    "BlogClassifier.forward",
    "(x * keep).sum(1) / keep.sum(1).clamp(min=1.0)",
    "x.mean(1)",
)
edit(
    "torch_encoder: the mask is the wrong way round",
    "padding-leak",
    torch_encoder,
    "TorchEncoder.forward",
    "src_key_padding_mask=pad",
    "src_key_padding_mask=None if pad is None else ~pad",
)
patch(
    "hf_bert: the mask is not added",
    "padding-leak",
    hf_bert,
    "BertSelfAttention.forward",
    "attn_weights = attn_weights + attention_mask",
    "attn_weights = attn_weights",
    "ignored-argument",
    through="eager_attention_forward",
)
edit(
    "encoder2017: minus infinity in the mask",
    "mask-nan",
    encoder2017,
    "EncoderAttention.forward",
    "-1e9",
    'float("-inf")',
)
edit(
    "classifier: minus infinity in the mask",
    "mask-nan",
    classifier,
    "BlogBlock.attend",
    "torch.finfo(scores.dtype).min",
    'float("-inf")',
)
edit(
    "encoder2017: positions are not added",
    "position-blind",
    encoder2017,
    "Encoder.forward",
    "self.positions(self.embed(ids) * self.scale)",
    "self.embed(ids) * self.scale",
)
edit(
    "classifier: positions are not added",
    "position-blind",
    classifier,
    "BlogClassifier.forward",
    "self.words(tokens) + self.places(places)",
    "self.words(tokens)",
    "unused-parameter",
)
edit(
    "torch_encoder: the first position for all",
    "position-blind",
    torch_encoder,
    "TorchEncoder.forward",
    "self.pos[:, : ids.size(1)]",
    "self.pos[:, :1]",
)
patch(
    "hf_bert: positions are not added",
    "position-blind",
    hf_bert,
    "BertEmbeddings.forward",
    "embeddings = embeddings + position_embeddings",
    "embeddings = embeddings",
    "unused-parameter",
    "ignored-argument",
)
edit(
    "seq2seq: cross-attention looks at itself",
    "ignores-memory",
    seq2seq,
    "TargetLayer.forward",
    "self.src_attn(x, m, m, src_mask)",
    "self.src_attn(x, x, x, tgt_mask)",
    "unused-parameter",
    "ignored-argument",
)
patch(
    "hf_t5: cross-attention's keys from the decoder",
    "ignores-memory",
    hf_t5,
    "T5Attention.forward",
    "key_value_states if is_cross_attention else hidden_states",
    "hidden_states",
    "unused-parameter",
    "ignored-argument",
)

# --- attention's arithmetic -----------------------------------------------------------------------

edit(
    "gpt: no scale",
    "attention-scale",
    gpt,
    "GPTAttention.forward",
    " / math.sqrt(C // self.heads)",
    "",
)
edit(
    "encoder2017: the scale is there twice",
    "attention-scale",
    encoder2017,
    "EncoderAttention.forward",
    "self.d_k**-0.5",
    "self.d_k**-0.5 * self.d_k**-0.5",
)
edit(
    "lecture_gpt: the scale of the model's width",
    "attention-scale",
    lecture_gpt,
    "Head.forward",
    "k.shape[-1] ** -0.5",
    "C**-0.5",
)
edit(
    "classifier: the scale outside the softmax",
    "attention-scale",
    classifier,
    "BlogBlock.attend",
    "        scores = scores / (d // self.heads) ** 0.5\n"
    "        scores = scores.masked_fill(pad[:, None, None, :], torch.finfo(scores.dtype).min)\n"
    "        probs = torch.softmax(scores, dim=-1)\n",
    "        scores = scores.masked_fill(pad[:, None, None, :], torch.finfo(scores.dtype).min)\n"
    "        probs = torch.softmax(scores, dim=-1) / (d // self.heads) ** 0.5\n",
    "attention-not-normalized",
)
edit(
    "modern: SDPA is given a scale of one",
    "attention-scale",
    modern,
    "GroupedAttention.forward",
    "is_causal=True",
    "is_causal=True, scale=1.0",
)
patch(
    "hf_gpt2: queries scaled before SDPA's own scale",
    "attention-scale",
    hf_gpt2,
    "GPT2Attention.forward",
    "query_states = query_states.view(shape_q).transpose(1, 2)",
    "query_states = query_states.view(shape_q).transpose(1, 2) * self.scaling",
)
edit(
    "lecture_gpt: softmax over the queries",
    "attention-not-normalized",
    lecture_gpt,
    "Head.forward",
    "F.softmax(wei, dim=-1)",
    "F.softmax(wei, dim=-2)",
    "future-leak",
)
edit(
    "encoder2017: no softmax",
    "attention-not-normalized",
    encoder2017,
    "EncoderAttention.forward",
    "scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e9)\n"
    "        attention = self.dropout(torch.softmax(scores, dim=-1))",
    "scores = scores.masked_fill(mask[:, None, None, :] == 0, 0.0)\n"
    "        attention = self.dropout(scores)",
)
patch(
    "hf_gpt2: softmax over the heads",
    "attention-not-normalized",
    hf_gpt2,
    "GPT2Attention.forward",
    "nn.functional.softmax(attn_weights, dim=-1)",
    "nn.functional.softmax(attn_weights, dim=1)",
    "no-causal-mask",
    "future-leak",
    "padding-leak",
    through="eager_attention_forward",
)

# --- initialization -------------------------------------------------------------------------------

edit(
    "gpt: the name of the scaled weights is outdated",
    "init-residual-scale",
    gpt,
    "GPT.__init__",
    'name.endswith("c_proj.weight")',
    'name.endswith("attn.out.weight")',
)
edit(
    "gpt: only the attention's outputs are scaled",
    "init-residual-scale",
    gpt,
    "GPT.__init__",
    'name.endswith("c_proj.weight")',
    'name.endswith("attn.c_proj.weight")',
)
change(
    "hf_gpt2: the residual scaling is lost",
    "init-residual-scale",
    hf_gpt2,
    lambda m: [
        nn.init.normal_(p, std=0.02)
        for name, p in m.named_parameters()
        if name.endswith("c_proj.weight")
    ],
)
edit(
    "gpt: a standard deviation of one",
    "init-unstable",
    gpt,
    "GPT.init",
    "nn.init.normal_(module.weight, std=0.02)",
    "nn.init.normal_(module.weight)",
)
edit(
    "encoder2017: normal for Xavier",
    "init-unstable",
    encoder2017,
    "Encoder.__init__",
    "nn.init.xavier_uniform_(p)",
    "nn.init.normal_(p)",
)

# --- the optimizer, tied weights, modes -----------------------------------------------------------

edit(
    "gpt_with_optimizer: decay in both groups",
    "decay-on-norm",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    '{"params": no_decay, "weight_decay": 0.0}',
    '{"params": no_decay, "weight_decay": 0.1}',
)
edit(
    "gpt_with_optimizer: one group for all",
    "decay-on-norm",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "torch.optim.AdamW(groups, lr=3e-4)",
    "torch.optim.AdamW(params, lr=3e-4, weight_decay=0.1)",
)
edit(
    "gpt_with_optimizer: only the blocks",
    "not-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "for p in model.parameters() if",
    "for p in model.blocks.parameters() if",
)
edit(
    "gpt_with_optimizer: the final norm is replaced afterwards",
    "not-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "lr=3e-4)\n",
    "lr=3e-4)\n    model.ln_f = GPTNorm(WIDTH)\n",
)
edit(
    "gpt_with_optimizer: the tied weight twice",
    "duplicated-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "lr=3e-4)\n",
    'lr=3e-4)\n    optimizer.param_groups[0]["params"].append(model.head.weight)\n',
)
edit(
    "gpt_with_optimizer: the undecayed parameters twice",
    "duplicated-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "no_decay = [p for p in params if p.dim() < 2]",
    "no_decay = [p for p in params if p.dim() < 2] * 2",
)
edit(
    "gpt_with_optimizer: frozen after the optimizer was made",
    "frozen-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "lr=3e-4)\n",
    "lr=3e-4)\n    model.tok.requires_grad_(False)\n",
)
edit(
    "gpt_with_optimizer: frozen blocks are handed over too",
    "frozen-in-optimizer",
    gpt_with_optimizer,
    "gpt_with_optimizer",
    "params = [p for p in model.parameters() if p.requires_grad]",
    "model.blocks[0].requires_grad_(False)\n    params = list(model.parameters())",
)
edit(
    "gpt: copied, not tied",
    "untied-weights",
    gpt,
    "GPT.__init__",
    "self.head.weight = self.tok.weight",
    "self.head.weight.data.copy_(self.tok.weight.data)",
)
change(
    "hf_gpt2: a new head where the config says tied",
    "untied-weights",
    hf_gpt2,
    lambda m: setattr(
        m.lm_head, "weight", nn.Parameter(m.get_parameter("lm_head.weight").detach().clone())
    ),
)
edit(
    "gpt: functional dropout without training=",
    "dropout-in-eval",
    gpt,
    "GPTAttention.forward",
    "self.attn_drop(weights)",
    "F.dropout(weights, 0.1)",
)
edit(
    "modern: SDPA's dropout_p is always on",
    "dropout-in-eval",
    modern,
    "GroupedAttention.forward",
    "is_causal=True",
    "is_causal=True, dropout_p=0.1",
)
edit(
    "gpt: positions are added to the ids",
    "positions-on-ids",
    gpt,
    "GPT.forward",
    "self.tok(ids) + self.pos(torch.arange(T, device=ids.device))",
    "self.tok((ids + torch.arange(T, device=ids.device)) % self.tok.num_embeddings)",
    "unused-parameter",
)
edit(
    "classifier: positions are added to the ids",
    "positions-on-ids",
    classifier,
    "BlogClassifier.forward",
    "self.words(tokens) + self.places(places)",
    "self.words((tokens + places).clamp(max=self.words.num_embeddings - 1))",
    "unused-parameter",
)

TUTORIAL_MISTAKES = {
    "each channel over the batch": "encoder2017: each channel over the batch",
    "by the sum": "encoder2017: divides by the sum",
    "only when affine is off": "classifier: normalizes only when affine is off",
    "unbiased variance": "gpt: unbiased variance",
    "eps outside the root": "gpt: eps beside the root",
    "scale outside the softmax": "classifier: the scale outside the softmax",
    "scale missing": "gpt: no scale",
    "bidirectional GPT-2": "lecture_gpt: a bidirectional GPT",
    "no residual": "lecture_gpt: MLP without residual",
    "linear MLP": "lecture_gpt: MLP without activation",
    "one norm at two sites": "gpt: one norm at both sites",
    "positions on ids": "gpt: positions are added to the ids",
    "batch and time swapped": "torch_plain: batch_first is forgotten",
}
"""What published example programs get wrong -> the whole small model here that has just that."""
