"""``torch.nn``'s Transformer classes on our parts: change one import, then choose a scheme.

    from addnorm.compat import TransformerEncoder, TransformerEncoderLayer

Arguments, defaults, masks, shapes and the names in ``state_dict`` are those of torch.nn. Without
``scheme=`` so are the numbers and the distributions at init. With it, a function Site -> Wiring or
a text for ``schemes.parse``, the same blocks get any published Add & Norm around them. What differs
from torch.nn on purpose is in docs/compat.md, each with its test.

Reference: torch/nn/modules/transformer.py of PyTorch 2.13.
"""

import copy
import math
from abc import ABC
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.branches import MLP, Activation, Attention, CrossAttention, HeadOptions
from addnorm.context import Context, Memory
from addnorm.init import InitRule
from addnorm.norms import LayerNorm
from addnorm.scheme_text import as_scheme
from addnorm.schemes import post_norm, pre_norm, xavier
from addnorm.stream import AddNorm, MakeBranch, Scheme, Site, Stack, Wiring

Device = torch.device | str | int | None

# --- names ----------------------------------------------------------------------------------------

# PyTorch's name within a layer, and ours within a sublayer; in_proj is q, k and v in one matrix.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "attn": {
        "self_attn.in_proj_": ("branch.q.", "branch.k.", "branch.v."),
        "self_attn.out_proj.": ("branch.out.",),
    },
    "cross": {
        "multihead_attn.in_proj_": ("branch.q.", "branch.k.", "branch.v."),
        "multihead_attn.out_proj.": ("branch.out.",),
    },
    "mlp": {
        "linear1.": ("branch.up.",),
        "linear2.": ("branch.down.",),
        "activation.": ("branch.act.",),  # where it is a module with parameters
    },
}
# norm1. norm2. norm3.  pre.norm. of the 1st, 2nd, 3rd sublayer; post.norm. where there is no pre
# layers.3.             the fourth block: stack.subs.6. and 7. of an encoder, 9. to 11. of a decoder
# norm.                 stack.final.norm. of a scheme, or norm. as it was given
# Everything else (norms on branch outputs, joins, ...) has no name in PyTorch and keeps ours.

ORDER = "self_attn multihead_attn linear1 linear2 norm1 norm2 norm3 activation"
"""In which PyTorch registers the parts of a layer: those whose names come earlier in this text."""


def _names(module: "_Coder") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(PyTorch's name of a parameter that there is, ours), in PyTorch's order; several of ours
    where PyTorch has them in one matrix, in the order of its rows."""
    rows = []  # (block, place within it, PyTorch's name, ours)
    for i, sub in enumerate(module.stack.sublayers()):
        norm = "post.norm." if sub.pre is None else "pre.norm."
        parts = {**NAMES[sub.site.kind], f"norm{sub.site.place + 1}.": (norm,)}
        for theirs, ours in parts.items():
            place = ORDER.index(theirs.partition(".")[0])
            names = tuple(f"stack.subs.{i}.{name}" for name in ours)
            layer = module.prefix.format(sub.site.block)
            rows.append((sub.site.block, place, layer + theirs, names))
    rows.sort(key=itemgetter(0, 1))
    modules = dict(module.named_modules())
    last = "norm." if module.stack.final is None else "stack.final.norm."
    for _, _, theirs, ours in [*rows, (0, 0, "norm.", (last,))]:
        holder = modules.get(ours[0].rstrip("."))
        for leaf, _ in () if holder is None else holder.named_parameters():
            yield theirs + leaf, tuple(name + leaf for name in ours)


def _to_torch(
    module: "_Coder", state: MutableMapping[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    """torch's hook after ``state_dict``: in ``state``, below ``prefix``, ours become PyTorch's."""
    for theirs, ours in _names(module):
        names = [prefix + name for name in ours]
        if all(name in state for name in names):
            parts = [state.pop(name) for name in names]
            state[prefix + theirs] = parts[0] if len(parts) == 1 else torch.cat(parts)


def _from_torch(module: "_Coder", state: MutableMapping[str, Any], prefix: str, *_: object) -> None:
    """Before ``load_state_dict``: in ``state``, PyTorch's become ours; ours are understood too."""
    for theirs, ours in _names(module):
        if prefix + theirs in state:
            whole = state.pop(prefix + theirs)
            # a matrix of too few rows gives fewer parts: torch then says what is missing
            parts = (whole,) if len(ours) == 1 else whole.chunk(len(ours))
            state.update(zip((prefix + name for name in ours), parts, strict=False))


# --- masks ----------------------------------------------------------------------------------------

Masks = tuple[Tensor | None, Tensor | None, bool | None]
"""One attention's masks as PyTorch has them: (T, S) or (B * heads, T, S); (B, S), or (S,) without a
batch; and the hint that the first is causal. True = may *not* look; numbers are added."""


def _context_masks(
    masks: Masks, batch: int, heads: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(valid, attend, bias) of a ``Context`` or ``Memory``, or None; raises if masks do not fit."""
    mask, padding, is_causal = masks
    if is_causal and mask is None:
        raise RuntimeError("is_causal is a hint about the mask: give the mask itself as well")
    if mask is not None and mask.dim() == 3:
        if mask.shape[0] != batch * heads:
            raise ValueError(
                f"a mask with three axes must be (batch * heads, T, S) = ({batch * heads}, T, S), "
                f"got {tuple(mask.shape)}"
            )
        mask = mask.unflatten(0, (batch, heads))  # (B, H, T, S)
    if padding is not None and padding.dim() == 1:
        padding = padding.unsqueeze(0)  # (B, S)
    attend, bias = _split_mask(mask)
    valid, more = _split_mask(padding)
    if more is not None:
        more = more[:, None, None, :]  # (B, 1, 1, S)
        bias = more if bias is None else bias + more
    return valid, attend, bias


def _split_mask(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(what may be looked at, what is added there), None: all, nothing; -inf says the first."""
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        return ~mask, None
    if not mask.is_floating_point():
        raise TypeError(f"a mask must be boolean or floating point, got {mask.dtype}")
    blocked = mask == -math.inf
    return ~blocked, mask.masked_fill(blocked, 0.0)


# --- PyTorch's own design -------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Uniform:
    """An init rule: uniform about 0."""

    text: str
    """What ``explain`` says of it."""
    base: Callable[[str, int, int], float]
    """(role, fan_in, fan_out) -> the standard deviation."""

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        """What is declared for a weight of shape (fan_out, fan_in)."""
        return self.base(role, shape[1], shape[0])

    def __call__(self, role: str, weight: Tensor) -> None:
        bound = math.sqrt(3.0) * self.std(role, tuple(weight.shape))
        nn.init.uniform_(weight, -bound, bound)


def _transformer(role: str, n_in: int, n_out: int) -> float:
    """Xavier as nn.Transformer has it, where q, k and v are one matrix of 3 * n_out rows."""
    return xavier(role, n_in, 3 * n_out if role in ("q", "k", "v") else n_out)


def _layers(role: str, n_in: int, n_out: int) -> float:
    """As a layer alone has it: all but q, k and v as nn.Linear, uniform up to 1 / sqrt(n_in)."""
    return _transformer(role, n_in, n_out) if role in ("q", "k", "v") else (3.0 * n_in) ** -0.5


TRANSFORMER = Uniform("nn.Transformer: Xavier uniform; q, k, v as one matrix", _transformer)
LAYERS = Uniform("nn.TransformerEncoderLayer: q, k, v Xavier; out, up, down nn.Linear", _layers)


@final
@dataclass(frozen=True)
class _AsTorch:
    """The scheme of torch.nn. ``final``: nn.Transformer ends both stacks with a norm, also where
    the last sublayer ended with one (pytorch#74092)."""

    norm_first: bool
    init: InitRule = LAYERS
    final: bool = False

    def __call__(self, s: Site) -> Wiring:
        if s.kind == "head":
            return Wiring(pre=AddNorm(s.dim, s.norm) if self.final else None, init=self.init)
        return replace((pre_norm if self.norm_first else post_norm)(s), init=self.init)


# --- blocks and stacks ----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Block:
    """What a layer was asked to be, so that others like it can be built at any depth."""

    dim: int
    branches: list[tuple[str, MakeBranch]]
    norm: Callable[[int], nn.Module]
    side: str
    scheme: Scheme | str | None  # a text stays one: unlike a function made by one, it pickles
    norm_first: bool
    batch_first: bool
    heads: int

    def stack(
        self,
        n: int,
        scheme: Scheme | str | None,
        device: Device,
        dtype: torch.dtype | None,
        depths: tuple[int, int] | None = None,
    ) -> Stack:
        """n such blocks with weights of their own; without a scheme, PyTorch's wiring and init."""
        if scheme is None:
            scheme = _AsTorch(self.norm_first)
        scheme = as_scheme(scheme)
        as_torch = isinstance(scheme, _AsTorch)
        if self.norm_first and not as_torch:
            raise ValueError("scheme says where the norms are: leave norm_first out")
        with nullcontext() if device is None else torch.device(device):
            stack = Stack(
                self.branches * n, self.dim, scheme, norm=self.norm, side=self.side, depths=depths
            )
        for sub in stack.sublayers():
            if as_torch and isinstance(sub.branch, MLP):
                for layer in (sub.branch.up, sub.branch.down):
                    if layer.bias is not None:  # those of attention are 0 in PyTorch, too
                        bound = layer.in_features**-0.5
                        nn.init.uniform_(layer.bias, -bound, bound)
        return stack.to(device=device, dtype=dtype)  # the caller's activation as well


def _mlp(dim: int, hidden: int, activation: Activation, **options: Any) -> MLP:
    """An activation with parameters has them in each layer by itself."""
    return MLP(dim, hidden, copy.deepcopy(activation), **options)


class _Coder(nn.Module, ABC):
    """A Stack behind PyTorch's shapes, masks and names."""

    prefix: ClassVar[str]
    """What PyTorch puts before the names in a block, {} being the block's number."""

    def __init__(self, block: _Block, stack: Stack, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.stack, self.norm = block, stack, norm
        self.register_state_dict_post_hook(_to_torch)
        self.register_load_state_dict_pre_hook(_from_torch)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step where a scheme needs it (nGPT); counts from 1."""
        self.stack.after_step(step)

    def _run(
        self,
        x: Tensor,
        masks: Masks,
        memory: Tensor | None = None,
        memory_masks: Masks = (None, None, None),
    ) -> Tensor:
        """The stack, and the norm after it, on tensors and masks of PyTorch's shapes."""
        u, heads = self._batched(x), self.block.heads
        ctx = Context(*_context_masks(masks, len(u), heads))
        if memory is not None:
            m = self._batched(memory)
            if x.dim() != memory.dim() or len(u) != len(m):
                raise ValueError(
                    f"tgt and memory must be of one batch, got {tuple(x.shape)} and "
                    f"{tuple(memory.shape)} with batch_first={self.block.batch_first}"
                )
            ctx = ctx._replace(memory=Memory(m, *_context_masks(memory_masks, len(u), heads)))
        y: Tensor = self.stack(u, ctx)
        if x.dim() == 2:
            y = y.squeeze(0)
        elif not self.block.batch_first:
            y = y.transpose(0, 1)
        return y if self.norm is None else self.norm(y)

    def _batched(self, x: Tensor) -> Tensor:
        """(T, D), (B, T, D) or (T, B, D) -> (B, T, D); a ``TypeError`` if it is nested."""
        if x.is_nested:
            raise TypeError("nested tensors are not supported: pad, and give a key padding mask")
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.block.batch_first or x.dim() != 3 else x.transpose(0, 1)


class _Layer(_Coder, ABC):
    """One block. What the scheme puts at the two ends of a stack is not here."""

    prefix = ""
    side: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        scheme: Scheme | str | None = None,
    ) -> None:
        options: HeadOptions = {"bias": bias, "dropout": dropout, "out_dropout": dropout}
        attention: MakeBranch = partial(Attention, d_model, nhead, **options)
        cross: MakeBranch = partial(CrossAttention, d_model, nhead, **options)
        mlp: MakeBranch = partial(_mlp, d_model, dim_feedforward, activation, **options)
        makes = {"attn": attention, "cross": cross, "mlp": mlp}
        block = _Block(
            d_model,
            [(kind, makes[kind]) for kind in self.kinds],
            partial(LayerNorm, eps=layer_norm_eps, bias=bias),
            self.side,
            scheme,
            norm_first,
            batch_first,
            nhead,
        )
        stack = block.stack(1, block.scheme, device, dtype)
        stack.final = None
        super().__init__(block, stack)

    def _run(self, *args: Any, **kwargs: Any) -> Tensor:
        """``_Coder._run``, refused where the scheme's stack has something at its ends."""
        ends = [end for end in (self.stack.enter, self.stack.exit) if end is not None]
        if ends:
            names = " and ".join(type(end).__name__ for end in ends)
            raise RuntimeError(
                f"this scheme puts {names} at the ends of a stack, and a layer alone has no ends: "
                "give it to TransformerEncoder or TransformerDecoder, even for one layer"
            )
        return super()._run(*args, **kwargs)


@final
class TransformerEncoderLayer(_Layer):
    """``nn.TransformerEncoderLayer``: self-attention, then an MLP.

    The arguments are those of ``nn.TransformerEncoderLayer``, and
    ``scheme``: a function Site -> Wiring, or its name; None: the wiring of ``norm_first``.
    """

    side, kinds = "encoder", ("attn", "mlp")

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        return self._run(src, (src_mask, src_key_padding_mask, is_causal))


@final
class TransformerDecoderLayer(_Layer):
    """``nn.TransformerDecoderLayer``: self-attention, attention to ``memory``, then an MLP.

    The arguments are those of ``nn.TransformerDecoderLayer``, and
    ``scheme``: a function Site -> Wiring, or its name; None: the wiring of ``norm_first``.
    """

    side, kinds = "decoder", ("attn", "cross", "mlp")

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        return self._run(tgt, own, memory, (memory_mask, memory_key_padding_mask, memory_is_causal))


def _stacked(
    layer: _Layer,
    layer_type: type[_Layer],
    n: int,
    norm: nn.Module | None,
    scheme: Scheme | str | None,
    depths: tuple[int, int] | None,
) -> Stack:
    """n clones of the layer, weights and all, as PyTorch makes them; with a scheme, given or the
    layer's, n new blocks like it for these ``depths``, and the caller's ``norm`` has to be None."""
    if not isinstance(layer, layer_type):
        raise TypeError(f"expected an addnorm.compat.{layer_type.__name__}, got {type(layer)}")
    scheme = layer.block.scheme if scheme is None else scheme
    if scheme is None:
        stack = layer.block.stack(n, None, "meta", None)  # each sublayer is replaced by a clone
        for i, sub in enumerate(stack.sublayers()):
            clone = copy.deepcopy(layer.stack.sublayers()[sub.site.place])
            clone.site = sub.site
            stack.subs[i] = clone
        return stack
    if norm is not None:
        raise ValueError("scheme says what normalizes the end of the stack: leave norm out")
    like = next(layer.parameters())  # the layer may have been moved since it was made
    return layer.block.stack(n, scheme, like.device, like.dtype, depths)


@final
class TransformerEncoder(_Coder):
    """``nn.TransformerEncoder``: ``num_layers`` clones of a layer.

    The arguments are those of ``nn.TransformerEncoder``, and
    ``scheme``: a function Site -> Wiring, or its name; None: the layer's. With one, that many
    blocks are built like the layer, each for its place.
    ``depths``: the blocks of encoder and decoder where both exist: DeepNorm and Sub-LN need them.

    ``enable_nested_tensor`` and ``mask_check`` concern a fast path of PyTorch's
    that does not exist here: accepted, and without effect.
    """

    prefix = "layers.{}."

    def __init__(
        self,
        encoder_layer: TransformerEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
        *,
        scheme: Scheme | str | None = None,
        depths: tuple[int, int] | None = None,
    ) -> None:
        layer_type = TransformerEncoderLayer
        stack = _stacked(encoder_layer, layer_type, num_layers, norm, scheme, depths)
        super().__init__(encoder_layer.block, stack, norm)
        self.num_layers = num_layers
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        return self._run(src, (mask, src_key_padding_mask, is_causal))


@final
class TransformerDecoder(_Coder):
    """``nn.TransformerDecoder``: ``num_layers`` clones of a layer.

    The arguments are those of ``nn.TransformerDecoder``, and
    ``scheme``: a function Site -> Wiring, or its name; None: the layer's. With one, that many
    blocks are built like the layer, each for its place.
    ``depths``: the blocks of encoder and decoder where both exist: DeepNorm and Sub-LN need them.
    """

    prefix = "layers.{}."

    def __init__(
        self,
        decoder_layer: TransformerDecoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        *,
        scheme: Scheme | str | None = None,
        depths: tuple[int, int] | None = None,
    ) -> None:
        layer_type = TransformerDecoderLayer
        stack = _stacked(decoder_layer, layer_type, num_layers, norm, scheme, depths)
        super().__init__(decoder_layer.block, stack, norm)
        self.num_layers = num_layers

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        return self._run(tgt, own, memory, (memory_mask, memory_key_padding_mask, memory_is_causal))


class Transformer(nn.Module):
    """``nn.Transformer``, its double final norm with ``norm_first=False`` included.

    The arguments are those of ``nn.Transformer``, and
    ``scheme``: a function Site -> Wiring, or its name; None: the wiring of ``norm_first``.
    With one, both stacks know the depth of the other, and end as the scheme says.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        scheme: Scheme | str | None = None,
    ) -> None:
        super().__init__()
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps)
        rest = (batch_first, norm_first, bias, device, dtype)
        scheme = _AsTorch(norm_first, TRANSFORMER, final=True) if scheme is None else scheme
        depths = (num_encoder_layers, num_decoder_layers)
        self.encoder, self.decoder = custom_encoder, custom_decoder
        if custom_encoder is None:
            encoder_layer = TransformerEncoderLayer(*sizes, *rest, scheme=scheme)
            self.encoder = TransformerEncoder(encoder_layer, num_encoder_layers, depths=depths)
        if custom_decoder is None:
            decoder_layer = TransformerDecoderLayer(*sizes, *rest, scheme=scheme)
            self.decoder = TransformerDecoder(decoder_layer, num_decoder_layers, depths=depths)
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        batch = 0 if self.batch_first else 1
        if src.dim() == 3 and src.shape[batch] != tgt.shape[batch]:
            raise RuntimeError("the batch number of src and tgt must be equal")
        if src.shape[-1] != self.d_model or tgt.shape[-1] != self.d_model:
            raise RuntimeError("the feature number of src and tgt must be equal to d_model")
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        decoded: Tensor = self.decoder(
            tgt,
            memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )
        return decoded

    def after_step(self, step: int) -> None:
        """Call after every optimizer step where a scheme needs it (nGPT); counts from 1."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.after_step(step)

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """(sz, sz), -inf where a token may not look, 0 elsewhere."""
        return torch.full((sz, sz), -math.inf, dtype=dtype, device=device).triu(1)
