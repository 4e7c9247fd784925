"""Inputs are made up for any Transformer, and each argument's part is found by trying."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.anatomy.arguments import find_arguments
from addnorm.anatomy.inputs import Inputs, inputs_from
from addnorm.anatomy.make_inputs import CannotMakeInputs, make_inputs
from addnorm.anatomy.outputs import main_output
from addnorm.anatomy.signature import argument_names

W, HEADS, VOCAB = 48, 4, 97


def hf(name: str, **config: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    cls = getattr(transformers, name)
    return cls(cls.config_class(**config))


SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": W,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
LLAMA = {**SMALL, "num_key_value_heads": 2}
ENCODER_DECODER = {
    "vocab_size": VOCAB,
    "d_model": W,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
VISION = {**SMALL, "image_size": 16, "patch_size": 4}
del VISION["vocab_size"], VISION["max_position_embeddings"]


def detr() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=9,
        num_labels=6,
        **{k: v for k, v in ENCODER_DECODER.items() if k not in ("vocab_size",)},
    )
    return transformers.DetrForObjectDetection(config)


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: hf(
        "GPT2LMHeadModel", vocab_size=VOCAB, n_positions=64, n_embd=W, n_layer=2, n_head=HEADS
    ),
    "bert": lambda: hf("BertForMaskedLM", **SMALL),
    "roberta": lambda: hf("RobertaModel", **SMALL),
    "distilbert": lambda: hf(
        "DistilBertModel", vocab_size=VOCAB, dim=W, n_layers=2, n_heads=HEADS, hidden_dim=64
    ),
    "t5": lambda: hf(
        "T5ForConditionalGeneration",
        vocab_size=VOCAB,
        d_model=W,
        d_kv=12,
        d_ff=64,
        num_layers=2,
        num_heads=HEADS,
        decoder_start_token_id=0,
    ),
    "bart": lambda: hf(
        "BartForConditionalGeneration", max_position_embeddings=64, **ENCODER_DECODER
    ),
    "llama": lambda: hf("LlamaForCausalLM", **LLAMA),
    "qwen2": lambda: hf("Qwen2ForCausalLM", **LLAMA),
    "qwen3": lambda: hf("Qwen3ForCausalLM", head_dim=12, **LLAMA),
    "gemma": lambda: hf("GemmaForCausalLM", head_dim=12, **LLAMA),
    "opt": lambda: hf(
        "OPTForCausalLM",
        vocab_size=VOCAB,
        hidden_size=W,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        ffn_dim=64,
        max_position_embeddings=64,
        word_embed_proj_dim=W,
    ),
    "gpt_neox": lambda: hf("GPTNeoXForCausalLM", **SMALL),
    "falcon": lambda: hf(
        "FalconForCausalLM",
        vocab_size=VOCAB,
        hidden_size=W,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
    ),
    "mistral": lambda: hf("MistralForCausalLM", **LLAMA),
    "vit": lambda: hf("ViTForImageClassification", **VISION),
    "deit": lambda: hf("DeiTForImageClassification", **VISION),
    "detr": detr,
    "whisper": lambda: hf(
        "WhisperForConditionalGeneration",
        num_mel_bins=20,
        max_source_positions=11,
        max_target_positions=30,
        **ENCODER_DECODER,
    ),
    "wav2vec2": lambda: hf(
        "Wav2Vec2Model",
        **SMALL,
        conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=5,
        num_conv_pos_embedding_groups=2,
    ),
}


NESTED = "ignore:enable_nested_tensor is True"  # nn.Transformer's own, where batch is second


def torch_layer(kind: type[nn.Module], batch_first: bool) -> nn.Module:
    return kind(W, HEADS, 64, batch_first=batch_first)


def torch_model(kind: str, batch_first: bool) -> nn.Module:
    if kind == "encoder":
        layer = torch_layer(nn.TransformerEncoderLayer, batch_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    if kind == "decoder":
        return nn.TransformerDecoder(torch_layer(nn.TransformerDecoderLayer, batch_first), 2)
    return nn.Transformer(W, HEADS, 2, 2, 64, batch_first=batch_first)


TORCH: dict[str, Callable[[], nn.Module]] = {
    f"{kind} {first}": partial(torch_model, kind, first)
    for kind in ("encoder", "decoder", "both")
    for first in (True, False)
}


def xt(kind: str) -> nn.Module:
    x = pytest.importorskip("x_transformers")
    if kind == "decoder":
        layers = x.Decoder(dim=W, depth=2, heads=HEADS, attn_dim_head=12)
        return x.TransformerWrapper(num_tokens=VOCAB, max_seq_len=64, attn_layers=layers)
    if kind == "encoder":
        return x.Encoder(dim=W, depth=2, heads=HEADS, attn_dim_head=12)
    return x.XTransformer(
        dim=W,
        enc_num_tokens=VOCAB,
        enc_depth=2,
        enc_heads=HEADS,
        enc_max_seq_len=64,
        dec_num_tokens=VOCAB,
        dec_depth=2,
        dec_heads=HEADS,
        dec_max_seq_len=64,
    )


def ours(kind: str) -> nn.Module:
    from addnorm import schemes
    from addnorm.models.classifier import ClassifierConfig, TextClassifier
    from addnorm.models.gpt import GPT
    from addnorm.models.gpt_config import GPTConfig
    from addnorm.models.transformer import EncoderDecoder, decoder

    sizes: dict[str, Any] = {"context_length": 32, "dim": W, "n_layers": 2, "n_heads": HEADS}
    if kind == "gpt":
        return GPT(GPTConfig(vocab_size=VOCAB, vocab_multiple=64, **sizes))
    if kind == "classifier":
        return TextClassifier(ClassifierConfig(vocab_size=VOCAB, classes=5, **sizes))
    if kind == "both":
        return EncoderDecoder(W, HEADS, 2, schemes.post_norm)
    return decoder(W, HEADS, 2, schemes.pre_norm)


class Attention(nn.Module):
    """With a mask that is 1 where a token may be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(W, W) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], HEADS, -1).transpose(1, 2)

        q, k, v = heads(self.q(x)), heads(self.k(memory)), heads(self.v(memory))
        scores = q @ k.transpose(-2, -1) / math.sqrt(W // HEADS)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class Annotated(nn.Module):
    """Encoder and decoder as in the Annotated Transformer; masks are required."""

    code: Tensor

    def __init__(self, axis: int | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.src_embed, self.tgt_embed = nn.Embedding(VOCAB, W), nn.Embedding(VOCAB, W)
        self.register_buffer("code", torch.randn(1, 64, W))
        self.enc, self.dec, self.cross = Attention(), Attention(), Attention()
        self.norms = nn.ModuleList(nn.LayerNorm(W) for _ in range(3))
        self.head = nn.Linear(W, VOCAB)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        if self.axis is not None:  # the masks come as (B, 1, S) and (B, T, T)
            src_mask, tgt_mask = src_mask.unsqueeze(self.axis), tgt_mask.unsqueeze(self.axis)
        m = self.src_embed(src) + self.code[:, : src.shape[1]]
        m = self.norms[0](m + self.enc(m, m, src_mask))
        x = self.tgt_embed(tgt) + self.code[:, : tgt.shape[1]]
        x = self.norms[1](x + self.dec(x, x, tgt_mask))
        x = self.norms[2](x + self.cross(x, m, src_mask))
        return self.head(x)


class Nano(nn.Module):
    """A language model as tutorials write it."""

    bias: Tensor

    def __init__(self, block_size: int = 16) -> None:
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(VOCAB, W), nn.Embedding(block_size, W)
        self.attn, self.norm = Attention(), nn.LayerNorm(W)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size)))
        self.head = nn.Linear(W, VOCAB)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        t = idx.shape[1]
        assert t <= self.block_size
        x = self.wte(idx) + self.wpe(torch.arange(t))
        x = x + self.attn(self.norm(x), self.norm(x), self.bias[:t, :t])
        logits = self.head(x)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Fixed(nn.Module):
    """Takes its whole context and nothing else; the table is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token_table = nn.Parameter(torch.randn(VOCAB, W))
        self.pos_embedding = nn.Parameter(torch.randn(1, 9, W))
        self.attn = Attention()

    def forward(self, x: Tensor, key_padding_mask: Tensor) -> Tensor:
        h = self.token_table[x] + self.pos_embedding
        return h + self.attn(h, h, ~key_padding_mask[:, None, None, :])


class Additive(nn.Module):
    """Takes what is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, W), nn.Embedding(16, W)
        self.attn = Attention()

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        scores = self.attn.q(h) @ self.attn.k(h).transpose(1, 2) + attn_mask
        return h + scores.softmax(-1) @ self.attn.v(h)


class Patches(nn.Module):
    """A vision Transformer that cuts its patches by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * 4 * 4, W)
        self.cls = nn.Parameter(torch.randn(1, 1, W))
        self.pos = nn.Parameter(torch.randn(1, 26, W))
        self.attn, self.head = Attention(), nn.Linear(W, 10)

    def forward(self, img: Tensor) -> Tensor:
        x = F.unfold(img, 4, stride=4).transpose(1, 2)
        x = self.inner(x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head((x + self.attn(x, x, None))[:, 0])


TUTORIAL: dict[str, Callable[[], nn.Module]] = {
    "nano": Nano,
    "short nano": lambda: Nano(4),
    "annotated": Annotated,
    "annotated, masks without heads": lambda: Annotated(1),
    "fixed": Fixed,
    "additive": Additive,
    "patches": Patches,
}
OURS = {name: lambda n=name: ours(n) for name in ("gpt", "classifier", "both", "stack")}
X = {name: lambda n=name: xt(n) for name in ("decoder", "encoder", "both")}


def model_and_inputs(build: Callable[[], nn.Module]) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    model = build().eval()
    return model, make_inputs(model)


EVERY = {
    f"{group} {name}": build
    for group, models in (
        ("hf", FOREIGN),
        ("torch", TORCH),
        ("own", TUTORIAL),
        ("ours", OURS),
        ("x", X),
    )
    for name, build in models.items()
}
# Encoder-decoders by (the decoder's own input, the encoder's), as their signatures name them.
BOTH = {
    "hf t5": ("decoder_input_ids", "input_ids"),
    "hf bart": ("decoder_input_ids", "input_ids"),
    "hf whisper": ("decoder_input_ids", "input_features"),
    "torch decoder True": ("tgt", "memory"),
    "torch decoder False": ("tgt", "memory"),
    "torch both True": ("tgt", "src"),
    "torch both False": ("tgt", "src"),
    "own annotated": ("tgt", "src"),
    "own annotated, masks without heads": ("tgt", "src"),
    "ours both": ("target", "source"),
}
KINDS = {"hf vit": "image", "hf deit": "image", "hf detr": "image", "hf wav2vec2": "wave"}


@pytest.mark.filterwarnings(NESTED)
@pytest.mark.parametrize("name", EVERY)
def test_every_model_gets_inputs_and_arguments(name: str) -> None:
    model, inputs = model_and_inputs(EVERY[name])
    before = copy.deepcopy(inputs)
    with torch.no_grad():
        assert main_output(inputs.call(model)).isfinite().all()
    arguments = find_arguments(model, inputs)
    for key, value in inputs.tensors().items():
        assert torch.equal(value, before.tensors()[key])
    names = argument_names(model, inputs)
    main = inputs.tensors()[arguments.main]
    assert arguments.kind == KINDS.get(name, arguments.kind)
    if name in BOTH:
        memory = str(arguments.memory)
        assert (names.get(arguments.main, arguments.main), names.get(memory, memory)) == BOTH[name]
        axis = int("False" not in name)
        assert main.shape[axis] != inputs.tensors()[memory].shape[axis]
    if arguments.kind == "ids":
        assert arguments.rows[arguments.main] == VOCAB
        assert main.max() < VOCAB
        assert len(set(main[0].tolist())) == main.shape[1]  # no word twice: order can be seen
        assert not set(main.flatten().tolist()) & arguments.special
    sizes = {n for p in model.parameters() for n in p.shape} | {HEADS}
    assert main.shape[arguments.batch] not in sizes or name.startswith(("own", "hf detr"))
    assert (arguments.batch, arguments.time) == {
        "image": (0, None),
        "wave": (0, None),
        "features": (0, 1) if "False" not in name else (1, 0),
        "ids": (0, 1),
    }[arguments.kind]
    assert not arguments.unclear


@pytest.mark.parametrize(
    ("name", "reading", "square"),
    [
        ("annotated", "keep", {"2": False, "3": True}),
        ("annotated, masks without heads", "keep", {"2": False, "3": True}),
        ("fixed", "drop", {"1": False}),
        ("additive", "additive", {"1": True}),
    ],
)
def test_how_a_mask_is_read_is_measured(name: str, reading: str, square: dict[str, bool]) -> None:
    model, inputs = model_and_inputs(TUTORIAL[name])
    masks = find_arguments(model, inputs).masks
    assert {m.name: m.square for m in masks} == square
    assert {m.reading for m in masks} == {reading}


def test_what_the_model_fixes_is_obeyed() -> None:
    assert model_and_inputs(lambda: Nano(4))[1].tensors()["0"].shape[1] <= 4
    assert model_and_inputs(Fixed)[1].tensors()["0"].shape[1] == 9
    assert model_and_inputs(Patches)[1].tensors()["0"].shape[1:] == (3, 20, 20)


def test_masks_of_made_inputs_hide_nothing() -> None:
    """A mask of ones where 1 hides would make every finding worthless."""
    _, inputs = model_and_inputs(Fixed)
    assert not inputs.tensors()["1"].any()
    _, inputs = model_and_inputs(Additive)
    assert torch.equal(inputs.tensors()["1"] == 0, torch.ones(7, 7).tril().bool().expand(3, 7, 7))


COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda ids: ids,
    "moved on by two": lambda ids: ids + 2,
    "moved back by one": lambda ids: (ids - 1).clamp(min=0),
    "cut off": lambda ids: ids.clamp(3, 90),
    "other ids for negative ones": lambda ids: torch.where(ids < 0, 5, ids),
    "in a circle": lambda ids: (ids + torch.arange(ids.shape[1])) % VOCAB,
    "with positions": lambda ids: ids + torch.arange(ids.shape[1]),
    "in 32 bits, turned": lambda ids: ids.flip(1).int().flip(1) + 1,
}


class Computes(nn.Module):
    """Looks up what it computes from its ids, and where they stand; ``style`` is how."""

    def __init__(self, compute: Callable[[Tensor], Tensor], style: str) -> None:
        super().__init__()
        self.compute, self.style = compute, style
        self.tokens, self.positions = nn.Embedding(VOCAB, W), nn.Embedding(20, W)
        self.attn, self.head = Attention(), nn.Linear(W, VOCAB)

    def forward(self, idx: Tensor) -> Tensor:
        ids = self.compute(idx)
        match self.style:
            case "module":
                x = self.tokens(ids)
            case "indexed":
                x = self.tokens.weight[ids, :]
            case _:
                x = F.one_hot(ids.long(), VOCAB).to(self.head.weight) @ self.tokens.weight
        # of an argument as well, and no ids: every line is the same
        places = idx * 0 + torch.arange(idx.shape[1])
        x = x + self.positions(places)
        return self.head(x + self.attn(x, x, None))


@pytest.mark.parametrize("style", ["module", "indexed", "one hot"])
@pytest.mark.parametrize("name", COMPUTED)
def test_ids_that_are_computed_with_before_they_are_looked_up(name: str, style: str) -> None:
    model, inputs = model_and_inputs(lambda: Computes(COMPUTED[name], style))
    ids = inputs.tensors()["0"]
    assert ids.max() > VOCAB // 2, "words from all of the vocabulary, not the first two"
    assert ids.max() < VOCAB
    arguments = find_arguments(model, inputs)
    assert (arguments.main, arguments.kind) == ("0", "ids")
    assert (arguments.out_batch, arguments.out_time) == (0, 1)
    # whatever is drawn below this many rows may be looked up
    (rows,) = arguments.rows.values()
    assert 60 < rows <= VOCAB
    model(torch.full_like(ids, rows - 1))


def test_what_is_shown_beside_ids_has_a_length_of_its_own() -> None:
    class Captions(Nano):
        def forward(self, idx: Tensor, features: Tensor) -> Tensor:  # type: ignore[override]
            x = self.wte(idx) + features.mean(1, keepdim=True)
            return self.head(x)

    inputs = model_and_inputs(Captions)[1].tensors()
    assert inputs["0"].shape[1] != inputs["1"].shape[1]


def test_a_decoder_that_is_given_as_much_as_its_memory_is_told_by_its_behaviour() -> None:
    class Nameless(Annotated):
        def forward(self, *args: Tensor) -> Tensor:
            return super().forward(*args)

    torch.manual_seed(0)
    model = Nameless().eval()
    ids = torch.randint(0, VOCAB, (2, 8))
    whole = torch.ones(2, 1, 1, 8, dtype=torch.bool)
    past = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    arguments = find_arguments(model, Inputs((ids, ids.flip(0), whole, past)))
    assert (arguments.main, arguments.memory) == ("1", "0")


def test_nothing_is_left_behind() -> None:
    torch.manual_seed(0)
    model = Nano().train()
    model.attn.eval()
    modes = [m.training for m in model.modules()]
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_arguments(model, make_inputs(model))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_called_says_what_was_tried() -> None:
    class Odd(nn.Module):
        def forward(self, graph: Any, *, depth: Any) -> Tensor:
            return graph.nodes[depth]

    with pytest.raises(CannotMakeInputs, match=r"(?s)Odd.forward\(graph.*tried.*inputs=") as error:
        make_inputs(Odd())
    assert "has no attribute 'nodes'" in str(error.value)


def test_what_a_user_gives() -> None:
    x, y = torch.zeros(2, 3), torch.ones(2, 3)
    assert inputs_from(x) == Inputs((x,))
    assert inputs_from((x, y)) == Inputs((x, y))
    assert inputs_from([x]) == Inputs((x,))
    assert inputs_from({"x": x}) == Inputs((), {"x": x})
    same = Inputs((x,))
    assert inputs_from(same) is same
    for wrong in (None, 3, "text", {}, {1: x}):
        with pytest.raises(TypeError, match="inputs"):
            inputs_from(wrong)


def test_a_target_without_effect_is_the_target_all_the_same() -> None:
    class Deaf(Annotated):
        def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
            output = super().forward(src, tgt * 0, src_mask, tgt_mask)
            return output.mean(1, keepdim=True).expand(-1, tgt.shape[1], -1)

    arguments = find_arguments(*model_and_inputs(Deaf))
    assert (arguments.main, arguments.memory) == ("1", "0")


def test_ids_given_as_floats_are_unclear() -> None:
    class Floats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(7, 7)

        def forward(self, token_ids: Tensor) -> Tensor:
            return self.inner(token_ids.float())

    arguments = find_arguments(Floats(), inputs_from(torch.rand(3, 7)))
    assert "token_ids" in arguments.unclear[0]
