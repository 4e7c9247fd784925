"""The branches: what a sublayer computes, called as ``branch(u, here)``.

Every one takes ``inner=`` (a rule width -> norm, or None) and ``init=`` (a rule (role, weight)),
which is how a ``Stack`` passes on what the scheme decided: ``partial(MLP, dim, hidden)`` is a make.

softmax(q k^T * scale) v: the scale, 1 / sqrt(head_dim) unless given, is inside the softmax.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypedDict, Unpack, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.checks import check_known
from addnorm.context import Here, Memory
from addnorm.init import PLAIN, InitRule
from addnorm.masks import longer_masks, split_bias, visible
from addnorm.norms import as_norm
from addnorm.ops import AttentionCall, attend
from addnorm.ops.reference import accumulate_dtype, autocast_applies
from addnorm.positions import AttentionPosition
from addnorm.stream import MakeBranch

NormRule = Callable[[int], nn.Module]
"""Width -> a new norm of it."""
Activation = str | Callable[[Tensor], Tensor]
"""A key of ``ACTIVATIONS``, or a function or module that acts elementwise."""

# --- multilayer perceptrons -----------------------------------------------------------------------


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,  # GPT-2
    "relu": F.relu,
    "relu2": _relu2,  # So et al. 2021, Primer
    "silu": F.silu,
}


def _activation(activation: Activation) -> tuple[str, Callable[[Tensor], Tensor]]:
    """(the name of an activation, the function); one of the caller's is taken as it is, and an
    unknown name is a ``Mendable``."""
    if not isinstance(activation, str):
        return getattr(activation, "__name__", type(activation).__name__), activation
    check_known("activation", activation, ACTIVATIONS)
    return activation, ACTIVATIONS[activation]


class FeedForwardOptions(TypedDict, total=False):
    """The options of ``FeedForward``."""

    bias: bool
    dropout: float
    out_dropout: float
    inner: NormRule | None
    init: InitRule


class FeedForward(nn.Module, ABC):
    """What the two MLPs share: down(inner(hidden(u))).

    ``dim``: the width of input and output.
    ``hidden``: the width in between.
    ``activation``: a key of ``ACTIVATIONS``, or a function or module of your own.
    ``bias``: whether the linear layers have biases.
    ``dropout``: on the hidden activations.
    ``out_dropout``: on the output.
    ``inner``: a rule width -> norm, for the hidden activations.
    ``init``: a rule (role, weight) that fills the weights.
    """

    enters: ClassVar[tuple[str, ...]]
    """The roles of the matrices that read u."""

    gate: nn.Linear
    up: nn.Linear

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation,
        *,
        bias: bool = True,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
        inner: NormRule | None = None,
        init: InitRule = PLAIN,
    ) -> None:
        super().__init__()
        self.activation, self.act = _activation(activation)
        self.init = init
        self.dropout, self.out_dropout = dropout, out_dropout
        for role in self.enters:
            self.add_module(role, nn.Linear(dim, hidden, bias=bias))
        self.inner = None if inner is None else as_norm(inner(hidden))
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights by the scheme's rule, biases 0."""
        _reset(self.init, **{role: getattr(self, role) for role in (*self.enters, "down")})

    @abstractmethod
    def hidden(self, u: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, hidden)."""

    def forward(self, u: Tensor, here: Here | None = None) -> Tensor:
        """(B, T, dim) -> (B, T, dim), in the dtype of the weights or autocast's; of ``here`` only
        the padding is read, by an inner norm."""
        a = self.hidden(_cast(self.up, u))
        a = F.dropout(a, self.dropout, self.training)
        if self.inner is not None:
            a = self.inner(a, valid=None if here is None else here.ctx.valid)
        return F.dropout(self.down(_cast(self.down, a)), self.out_dropout, self.training)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


@final
class MLP(FeedForward):
    """down(inner(activation(up(u)))).

    ``dim``: the width of input and output.
    ``hidden``: the width in between.
    ``activation``: a key of ``ACTIVATIONS``, or a function or module of your own.
    ``options``: as in ``FeedForward``.
    """

    enters = ("up",)

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation = "gelu",
        **options: Unpack[FeedForwardOptions],
    ) -> None:
        super().__init__(dim, hidden, activation, **options)

    def hidden(self, u: Tensor) -> Tensor:
        return self.act(self.up(u))


@final
class GatedMLP(FeedForward):
    """down(inner(activation(gate(u)) * up(u))): SwiGLU and its kin (Shazeer 2020).

    ``dim``: the width of input and output.
    ``hidden``: the width in between.
    ``activation``: a key of ``ACTIVATIONS``, or a function or module of your own.
    ``options``: as in ``FeedForward``.
    """

    enters = ("gate", "up")

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: Activation = "silu",
        **options: Unpack[FeedForwardOptions],
    ) -> None:
        super().__init__(dim, hidden, activation, **options)

    def hidden(self, u: Tensor) -> Tensor:
        return self.act(self.gate(u)) * self.up(u)


@final
class Parallel(nn.Module):
    """The sum of several branches of one input, in one sublayer: attention and MLP side by side.

    ``makes``: how each branch is made, ``make(inner=, init=)``.
    ``inner``, ``init``: what each of them is given.
    """

    def __init__(
        self, *makes: MakeBranch, inner: NormRule | None = None, init: InitRule = PLAIN
    ) -> None:
        super().__init__()
        if not makes:
            raise ValueError("Parallel needs at least one branch")
        self.branches = nn.ModuleList(make(inner=inner, init=init) for make in makes)

    def forward(self, u: Tensor, here: Here) -> Tensor:
        key = here.key
        out = [branch(u, here._replace(key=(key, i))) for i, branch in enumerate(self.branches)]
        return sum(out[1:], out[0])


# --- attention ------------------------------------------------------------------------------------


class HeadOptions(TypedDict, total=False):
    """The options that self- and cross-attention share, see ``MultiHead``."""

    n_kv_heads: int | None
    head_dim: int | None
    qk_norm: NormRule | None
    scale: float | None
    softcap: float | None
    bias: bool
    dropout: float
    out_dropout: float
    inner: NormRule | None
    init: InitRule


class MultiHead(nn.Module, ABC):
    """What self- and cross-attention share: projections, heads, norms on heads, the way out.

    ``dim``: the width of input and output.
    ``n_heads``: query heads.
    ``n_kv_heads``: key and value heads, a divisor of ``n_heads``; fewer: grouped-query attention, a
    key head serves a group of query heads. None: as many.
    ``head_dim``: the width of a head; None: dim / n_heads.
    ``qk_norm``: a rule head_dim -> norm for queries and keys (Dehghani et al. 2023).
    ``scale``: of the logits; None: 1 / sqrt(head_dim).
    ``softcap``: logits become softcap * tanh(logits / softcap) before masking (Gemma 2).
    ``bias``: whether the linear layers have biases.
    ``dropout``: on the attention weights.
    ``out_dropout``: on the output.
    ``inner``: a rule width -> norm, for the concatenated heads before the output projection.
    ``init``: a rule (role, weight) that fills the weights.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        qk_norm: NormRule | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        out_dropout: float = 0.0,
        inner: NormRule | None = None,
        init: InitRule = PLAIN,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if head_dim is None:
            if dim % n_heads:
                raise ValueError(f"{n_heads} heads do not divide the width {dim}: give head_dim")
            head_dim = dim // n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_kv_heads} key-value heads do not divide {n_heads} query heads")
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap, self.dropout, self.out_dropout = softcap, dropout, out_dropout
        self.init = init
        self.q = nn.Linear(dim, n_heads * head_dim, bias=bias)
        self.k = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.v = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.q_norm = None if qk_norm is None else as_norm(qk_norm(head_dim))
        self.k_norm = None if qk_norm is None else as_norm(qk_norm(head_dim))
        self.inner = None if inner is None else as_norm(inner(n_heads * head_dim))
        self.out = nn.Linear(n_heads * head_dim, dim, bias=bias)
        self.prefix: nn.Module | None = None
        """An adapter's: k, v -> the same with more in front, which every query sees."""
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights by the scheme's rule, biases 0."""
        _reset(self.init, q=self.q, k=self.k, v=self.v, out=self.out)

    @abstractmethod
    def forward(self, u: Tensor, here: Here) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""

    def queries(self, u: Tensor) -> Tensor:
        """(B, T, dim) -> (B, H, T, head_dim), normed."""
        q = self.q(_cast(self.q, u)).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)
        return q if self.q_norm is None else self.q_norm(q)

    def keys(self, u: Tensor) -> Tensor:
        """(B, S, dim) -> (B, Hkv, S, head_dim), normed."""
        k = self.k(_cast(self.k, u)).unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)
        return k if self.k_norm is None else self.k_norm(k)

    def values(self, u: Tensor) -> Tensor:
        """(B, S, dim) -> (B, Hkv, S, head_dim)."""
        v = self.v(_cast(self.v, u))
        return v.unflatten(-1, (self.n_kv_heads, self.head_dim)).transpose(1, 2)

    def look(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        valid: Tensor | None,
        causal: bool = False,
    ) -> Tensor:
        """Attend, concatenate the heads, project: (B, H, T, head_dim) -> (B, T, dim). ``mask`` and
        ``bias`` as in ``AttentionCall``; ``causal`` stands in place of a mask, for as many queries
        as keys; ``valid`` (B, T) is for the inner norm."""
        if self.prefix is not None:
            # After position codes, cache and masks: tokens keep their numbers, and a window does
            # not hide the prefix.
            batch, total = q.shape[0], k.shape[-2]
            if causal:
                shape = (batch, self.n_heads, q.shape[-2], total)
                mask, causal = visible(shape, q.device, None, None, causal=True), False
            k, v = self.prefix(k, v)
            mask, bias = longer_masks(k.shape[-2] - total, total, mask, bias)
        dropout = self.dropout if self.training else 0.0
        call = AttentionCall(q, k, v, self.scale, mask, bias, causal, self.softcap, dropout)
        y = attend(call).transpose(1, 2).flatten(2)
        if self.inner is not None:
            y = self.inner(y, valid=valid)
        return F.dropout(self.out(_cast(self.out, y)), self.out_dropout, self.training)

    def extra_repr(self) -> str:
        kv = "" if self.n_kv_heads == self.n_heads else f", n_kv_heads={self.n_kv_heads}"
        return f"n_heads={self.n_heads}{kv}, head_dim={self.head_dim}"


@final
class Attention(MultiHead):
    """Self-attention.

    ``dim``: the width of input and output.
    ``n_heads``: query heads.
    ``causal``: a token sees itself and those before it only.
    ``window``: of those, itself and the ``window - 1`` before it; at least 1. None: all.
    ``position``: RoPE or ALiBi.
    ``value_residual``: (a, b): values become a * (those of the first attention in the stack) + b *
    (their own), except in the first (Zhou et al. 2024, arXiv 2410.17897; its code has 0.5, 0.5).
    ``heads``: the options of ``MultiHead``.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        *,
        causal: bool = False,
        window: int | None = None,
        position: AttentionPosition | None = None,
        value_residual: tuple[float, float] | None = None,
        **heads: Unpack[HeadOptions],
    ) -> None:
        if window is not None and (window < 1 or not causal):
            raise ValueError(
                f"a window is at least 1 (the token itself) and looks back only, so it needs "
                f"causal=True; got window={window}, causal={causal}"
            )
        super().__init__(dim, n_heads, **heads)
        self.causal, self.window = causal, window
        self.position, self.value_residual = position, value_residual

    def forward(self, u: Tensor, here: Here) -> Tensor:
        """(B, T, dim) -> (B, T, dim). Keys and values are appended to the cache, if there is one,
        under ``here.key``, and the masks of ``here.ctx`` are then those of all cached tokens; with
        ``value_residual`` the first attention offers its values to the stream."""
        ctx = here.ctx
        batch, new, _ = u.shape
        past = 0 if ctx.cache is None else ctx.cache.length(here.key)
        q, k, v = self.queries(u), self.keys(u), self.values(u)
        if self.value_residual is not None:
            v = self._with_first_values(v, here)
        if self.position is not None:
            positions = ctx.positions
            if positions is None:
                positions = past + torch.arange(new, device=u.device)
            q, k = self.position.rotate(q, positions), self.position.rotate(k, positions)
        if ctx.cache is not None:
            k, v = ctx.cache.update(here.key, k, v)
        total = k.shape[-2]
        shape = (batch, self.n_heads, new, total)
        ahead = isinstance(past, Tensor)  # there are slots of tokens to come, which none may see
        fresh = not isinstance(past, Tensor) and past == 0  # no token is before those of u
        # ``order``: what comes later must be hidden; a single new token has nothing after it.
        # ``plain``: that is all there is to hide, which a kernel does without a mask.
        order = self.causal and (new > 1 or self.window is not None or ahead)
        plain = order and fresh and self.window is None
        plain = plain and ctx.valid is None and ctx.attend is None and ctx.bias is None
        mask = None
        if not plain:
            valid = ctx.valid
            if valid is not None and ctx.cache is not None:
                valid = valid[:, :total]  # it may speak of slots that are not there yet
            window = self.window
            mask = visible(
                shape, u.device, valid, ctx.attend, causal=order, window=window, first=past
            )
        bias = None
        if ctx.bias is not None:
            mask, bias = split_bias("bias", ctx.bias, mask, shape)
        if self.position is not None:
            number = torch.arange(total, device=u.device)
            code = self.position.bias(past + number[:new], number, accumulate_dtype(q))
            if code is not None and code.shape[0] != self.n_heads:
                raise ValueError(
                    f"a position code for {code.shape[0]} heads in an attention of {self.n_heads}"
                )
            bias = code if bias is None else bias if code is None else bias + code
        return self.look(q, k, v, mask, bias, ctx.valid, causal=plain)

    def _with_first_values(self, v: Tensor, here: Here) -> Tensor:
        """The values mixed with those of the stack's first attention, which travel as the tap "v0";
        the first one itself puts them into ``here.offers`` and keeps its own. A ``ValueError``
        where no stream is around to carry them."""
        assert self.value_residual is not None
        first, own = self.value_residual
        if here.taps is not None and "v0" in here.taps:
            return first * here.taps["v0"] + own * v
        if here.offers is None:
            raise ValueError("value_residual needs a Stack around the attention, to carry values")
        here.offers.setdefault("v0", v)  # of several attentions side by side, the first's
        return v

    def extra_repr(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"{super().extra_repr()}, causal={self.causal}{window}"


@final
class CrossAttention(MultiHead):
    """Attention to ``Context.memory``, the encoder's output, with the options of ``MultiHead``."""

    def forward(self, u: Tensor, here: Here) -> Tensor:
        """(B, T, dim) -> (B, T, dim); a ``ValueError`` without a memory. With a cache, keys and
        values are made of the first memory that it sees under ``here.key``, and of no later one."""
        ctx, memory = here.ctx, _memory(here)
        q = self.queries(u)
        if ctx.cache is None:
            k, v = self.keys(memory.x), self.values(memory.x)
        else:
            k, v = ctx.cache.memory(here.key, lambda: (self.keys(memory.x), self.values(memory.x)))
        mask, bias = self._masks(u, memory)
        return self.look(q, k, v, mask, bias, ctx.valid)

    def weights(self, u: Tensor, here: Here) -> Tensor:
        """(B, T, dim) -> (B, H, T, S): how much of each place of the memory ``forward`` takes for
        each token, summing to 1. Without dropout, a cache, or an adapter's prefix."""
        memory = _memory(here)
        k = self.keys(memory.x)
        # each place has a value of its own, so that what is taken of it can be read off
        places = torch.eye(k.shape[2], dtype=k.dtype, device=k.device).expand(*k.shape[:2], -1, -1)
        mask, bias = self._masks(u, memory)
        q = self.queries(u)
        return attend(AttentionCall(q, k, places, self.scale, mask, bias, False, self.softcap, 0.0))

    def _masks(self, u: Tensor, memory: Memory) -> tuple[Tensor | None, Tensor | None]:
        """(mask, bias): who may look at what, and what is added to the logits."""
        shape = (u.shape[0], self.n_heads, u.shape[1], memory.x.shape[1])
        mask = visible(shape, u.device, memory.valid, memory.attend, of="memory.")
        if memory.bias is None:
            return mask, None
        return split_bias("memory.bias", memory.bias, mask, shape)


def _memory(here: Here) -> Memory:
    """What there is to look at; a ``ValueError`` if there is nothing."""
    if here.ctx.memory is None:
        raise ValueError("cross-attention needs Context(memory=Memory(...)), what it looks at")
    return here.ctx.memory


# --- helpers --------------------------------------------------------------------------------------


def _reset(init: InitRule, **layers: nn.Linear) -> None:
    """Fill role -> layer in place: the weights by the rule, the biases with 0."""
    for role, layer in layers.items():
        init(role, layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _cast(layer: nn.Linear, u: Tensor) -> Tensor:
    """The input of a layer in the dtype of its weights: a branch casts its own, since the stream
    may be wider. Autocast does it by itself."""
    return u if autocast_applies(u) else u.to(layer.weight.dtype)
