"""An adapter into a model, and out of it: everything happens in place and under the old names."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from addnorm.adapt.adalora import AdaLoRA, Pruning
from addnorm.adapt.parts import Bottleneck, LoRA, LowRank, Prefix, SoftPrompt
from addnorm.adapt.settings import APART, Adapt, AdapterKind
from addnorm.branches import MultiHead
from addnorm.checks import check_known
from addnorm.errors import Mendable, value_in_short
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.positions import Learned
from addnorm.stream import Stack, Sublayer


class WordReader(Protocol):
    """What makes ids of a prompt's first words: the model's own tokenizer."""

    def encode(self, text: str) -> list[int]: ...


@final
@dataclass(frozen=True)
class Adapted:
    """What was done to a model."""

    settings: Adapt
    parts: Mapping[str, nn.Module]
    """The modules that hold the adapter's parameters, by their names in the model."""
    hooks: tuple[RemovableHandle, ...] = ()
    """The hooks on modules that have no place for a part. They are kept because a copy from a file
    counts its hooks on from them: one more would otherwise take the place of ours."""

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the adapter that are trained."""
        return [p for part in self.parts.values() for p in part.parameters() if p.requires_grad]

    def low_rank(self) -> dict[str, LowRank]:
        """The parts that are updates of a weight."""
        return {name: part for name, part in self.parts.items() if isinstance(part, LowRank)}

    def adalora(self) -> dict[str, AdaLoRA]:
        """The parts whose rank changes."""
        return {name: part for name, part in self.parts.items() if isinstance(part, AdaLoRA)}

    def ranks(self) -> dict[str, int]:
        """The current rank of each update, by the name of its matrix."""
        full = {name: len(part.lora_A) for name, part in self.low_rank().items()}
        return full | {name: int(part.kept.sum()) for name, part in self.adalora().items()}

    def __str__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"{self.settings.kind}: {count:,} parameters in {len(self.parts)} modules train"


def adapt(
    model: nn.Module, kind: str, *, tokenizer: WordReader | None = None, **settings: Any
) -> Adapted:
    """Give a model an adapter, in place, and freeze everything else.

    The settings of each kind are those of ``Adapt``. ``tokenizer`` is the model's, for the ``text``
    of a prompt. Call ``model.after_step(step)`` after every
    optimizer step and before ``zero_grad``, as addnorm's trainer does: adalora prunes there. (A
    module of your own needs such a method, which calls its stacks'.)
    """
    check_known("kind", kind, get_args(AdapterKind)[1:])
    for name in settings:
        check_known("setting", name, [f.name for f in dataclasses.fields(Adapt)[1:]])
    adapter = apply(Adapt(kind=kind, **settings), model, tokenizer)  # type: ignore[arg-type]
    assert adapter is not None
    return adapter


def apply(settings: Adapt, model: nn.Module, tokenizer: WordReader | None = None) -> Adapted | None:
    """Adapt the model in place; with kind none nothing happens, and None is returned. A
    ``Mendable``, before anything has changed, where the model has no place for the adapter, or a
    prompt begins as a text and no ``tokenizer`` makes ids of it."""
    if settings.kind == "none":
        return None
    if settings.kind == "adalora" and settings.steps is None:
        raise Mendable(
            "steps must be set with adalora: the optimizer steps in which the ranks fall"
        )
    if settings.kind in APART:
        ids = [] if settings.text is None else _words(settings, tokenizer)
        adapter = install(model, settings, {})
        if ids and isinstance(model, GPT) and isinstance(model.prompt, SoftPrompt):
            model.prompt.begin(model.tokens.weight, torch.tensor(ids))
        return adapter
    rank = settings.rank if settings.kind == "lora" else settings.init_rank
    updates = dict.fromkeys(targeted(model, settings), (rank, settings.scale))
    return install(model, settings, updates)


def _words(settings: Adapt, tokenizer: WordReader | None) -> list[int]:
    """The ids that a prompt begins as; a ``Mendable`` where they are none, or too many."""
    if tokenizer is None:
        raise Mendable("text needs the model's tokenizer, which makes tokens of it")
    assert settings.text is not None
    ids, short = tokenizer.encode(settings.text), value_in_short(settings.text)
    if not ids:
        raise Mendable(f"text={short} has no token")
    if len(ids) > settings.length:
        raise Mendable(
            f"text={short} has {len(ids)} tokens, and length={settings.length}: give length "
            f"{len(ids)} or more, or fewer words"
        )
    return ids


def with_room(config: GPTConfig, settings: Adapt) -> GPTConfig:
    """The config of a GPT with the context that an adapter leaves to the text: a prompt takes
    ``length`` places of it. A ``Mendable`` where nothing is left."""
    if settings.kind != "prompt":
        return config
    if settings.length >= config.context_length:
        raise Mendable(
            f"length={settings.length} leaves nothing of the context of {config.context_length} "
            "tokens to the text: lower it"
        )
    return dataclasses.replace(config, context_length=config.context_length - settings.length)


def adapted(model: nn.Module) -> Adapted | None:
    """What was done to this model."""
    adapter: Adapted | None = vars(model).get("adapted")
    return adapter


def install(model: nn.Module, settings: Adapt, updates: Mapping[str, tuple[int, float]]) -> Adapted:
    """Freeze the model and put the parts in, in place: those of ``updates`` (name of a Linear ->
    rank, scale), or, where ``updates`` is empty, prefixes, a prompt or bottlenecks. What was put in
    stands in ``model.adapted`` too, as a plain attribute, where ``adapted`` looks. A ``Mendable``,
    before anything has changed, where the model has an adapter already or no place for one."""
    if (present := adapted(model)) is not None:
        raise Mendable(f"the model has an adapter already: {present}")
    subs = _sublayers(model)
    heads = {
        f"{name}.branch.{inner}".rstrip("."): module
        for name, sub in subs.items()
        for inner, module in sub.branch.named_modules()
        if isinstance(module, MultiHead)
    }
    if settings.kind == "prefix" and not heads:
        raise Mendable("a prefix needs attention, and no sublayer of the model has any")
    table = getattr(model, "positions", None)
    if settings.positions == "shifted" and not isinstance(table, Learned):
        raise Mendable(
            "positions='shifted' is for models with learned positions: leave them 'kept'"
        )
    if settings.kind == "prompt":
        return _prompted(model, settings)
    model.requires_grad_(False)
    parts: dict[str, nn.Module] = {}
    hooks: list[RemovableHandle] = []
    for name, (rank, scale) in updates.items():
        linear, more = _linear(model, name), (rank, scale, settings.dropout)
        ada = settings.kind == "adalora"
        part = AdaLoRA(linear, *more, settings.orthogonality) if ada else LoRA(linear, *more)
        _replace(model, name, part)
        parts[name] = part
    if settings.kind == "prefix":
        for name, branch in heads.items():
            width = branch.n_kv_heads * branch.head_dim
            prefix = Prefix(settings.length, branch.n_kv_heads, branch.k.weight, width)
            parts[f"{name}.prefix"] = branch.prefix = prefix.train(branch.training)
        if isinstance(table, Learned) and settings.positions == "shifted":
            hooks.append(table.register_forward_pre_hook(_Shift(settings.length)))
    if settings.kind == "adapter":
        for name, sub in subs.items():
            like = next(sub.branch.parameters())
            bottleneck = Bottleneck(sub.site.dim, settings.width, like).train(sub.training)
            parts[f"{name}.branch.adapter"] = sub.branch.adapter = bottleneck
            hooks.append(sub.branch.register_forward_hook(_narrowed))
    adapter = vars(model)["adapted"] = Adapted(settings, parts, tuple(hooks))
    if settings.kind == "adalora":
        _stacks(model)[0].follow(Pruning(settings, tuple(adapter.adalora().values())))
    return adapter


def _prompted(model: nn.Module, settings: Adapt) -> Adapted:
    """Put a prompt into a GPT, in place, and freeze the rest. From then on the context that its
    config names is what is left to the text."""
    if not isinstance(model, GPT):
        raise Mendable(
            f"a prompt stands in front of the tokens of a GPT, and this is a {type(model).__name__}"
        )
    config = with_room(model.config, settings)
    model.requires_grad_(False)
    part = SoftPrompt(settings.length, model.tokens.weight[: config.vocab_size])
    model.prompt, model.front, model.config = part.train(model.training), settings.length, config
    adapter = vars(model)["adapted"] = Adapted(settings, {"prompt": part})
    return adapter


def _narrowed(branch: nn.Module, args: Any, v: Tensor) -> Tensor:
    """The branch's output, through its bottleneck: before the norms and the join around it."""
    adapter = branch.adapter
    assert isinstance(adapter, Bottleneck)
    return adapter(v)


@final
class _Shift:
    """Token i at position i + by."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, table: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] + self.by,)


def _sublayers(model: nn.Module) -> dict[str, Sublayer]:
    """Name -> sublayer; a ``Mendable`` for a model that is not built of ours."""
    sublayers = {name: m for name, m in model.named_modules() if isinstance(m, Sublayer)}
    if not sublayers or not _stacks(model):
        raise Mendable(
            f"a {type(model).__name__} has no Stack of addnorm: for other models there is peft"
        )
    return sublayers


def _stacks(model: nn.Module) -> list[Stack]:
    return [module for module in model.modules() if isinstance(module, Stack)]


def linears(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(name in the model, role) of the matrices in branches; a role is what the branch calls it,
    such as q or down."""
    for name, sub in _sublayers(model).items():
        for inner, module in sub.branch.named_modules(prefix=f"{name}.branch"):
            if isinstance(module, nn.Linear):
                yield inner, inner.rpartition(".")[2]


def targeted(model: nn.Module, settings: Adapt) -> list[str]:
    """The names of the matrices that get an update: those whose role is one of the ``targets``,
    each of which some matrix must have."""
    roles = dict(linears(model))
    for target in settings.targets:
        check_known("targets", target, dict.fromkeys(roles.values()))
    return [name for name, role in roles.items() if role in settings.targets]


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of the one of this name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


# --- out of the model -----------------------------------------------------------------------------


def merge(model: nn.Module) -> None:
    """Put LoRA's or AdaLoRA's updates into the weights, in place: faster, and not to be trained."""
    for part in _foldable(model):
        part.merge()


def unmerge(model: nn.Module) -> None:
    """Take them out: bit for bit the weights from before ``merge``."""
    for part in _foldable(model):
        part.unmerge()


def folded(model: nn.Module) -> nn.Module:
    """A copy with the updates in its weights and without an adapter: an ordinary model."""
    _foldable(model)
    without_adapter = copy.deepcopy(model)
    adapter = adapted(without_adapter)
    assert adapter is not None
    for name, part in adapter.low_rank().items():
        plain = nn.Linear(part.in_features, part.out_features, part.bias is not None, "meta")
        weight = part.weight.detach() if part.original is not None else part.sum()
        plain.weight, plain.bias = nn.Parameter(weight), part.bias
        _replace(without_adapter, name, plain.train(part.training))
    del vars(without_adapter)["adapted"]
    for stack in _stacks(without_adapter):
        stack.followers = [f for f in stack.followers if not isinstance(f, Pruning)]
    return without_adapter.requires_grad_(True)


def state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's own tensors by their names in the model, what adalora has measured included."""
    return {
        f"{name}.{inner}": t.detach()
        for name, part in required(model).parts.items()
        for inner, t in part.state_dict().items()
        if inner not in ("weight", "bias")  # of the Linear that is adapted
    }


def required(model: nn.Module) -> Adapted:
    """What was done to this model; ``Mendable`` if nothing was."""
    adapter = adapted(model)
    if adapter is None:
        raise Mendable(f"the {type(model).__name__} has no adapter: adapt(model, kind) first")
    return adapter


def _foldable(model: nn.Module) -> list[LowRank]:
    """The updates that can be put into weights; a ``Mendable`` if the adapter has none."""
    adapter = required(model)
    parts = list(adapter.low_rank().values())
    if not parts:
        raise Mendable(
            f"{adapter.settings.kind} is not an update of weights and cannot be merged: it stays "
            "beside the model"
        )
    return parts
