"""Adapters on disk: in peft's format wherever peft can say what they are, else in our own.

Both are one file ``adapter_model.safetensors``; peft's has ``adapter_config.json`` beside it. Of a
model that GPT-2 can be, the modules are those of transformers' GPT2LMHeadModel; of any other, those
of ``addnorm.hf``. GPT-2 has q, k and v in one matrix ``c_attn``: their updates become one whose A
stands them on top of each other and whose B is block-diagonal, which is the same function.
"""

import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from addnorm import disk, reading
from addnorm.adapt.model import Adapted, folded, install, linears, required, state
from addnorm.adapt.parts import Prefix, SoftPrompt
from addnorm.adapt.settings import Adapt
from addnorm.checks import MOST, check_whole, is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.files import config_json, folders
from addnorm.files.folders import WeightsError
from addnorm.files.gpt import gpt2_rows
from addnorm.files.tensors import SAFETENSORS_DTYPES
from addnorm.models.gpt import GPT

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
OURS = "addnorm"  # in the metadata of the file: settings, and the rank and scale of each update
PEFT_WRAPPERS = {"base_model", "model", "transformer", "gpt"}
"""What peft, transformers and addnorm.hf put before the names of modules."""
TYPES = {
    **{"lora": "LORA", "adalora": "ADALORA"},
    **{"prefix": "PREFIX_TUNING", "prompt": "PROMPT_TUNING"},
}
"""Our kind -> what peft calls it; it has none for ours."""
PROMPT = "prompt_embeddings"  # peft's name for the one tensor of a prefix, and of a prompt
PEFT_EPS = 1e-5  # peft divides adalora's updates by init_r + PEFT_EPS

# --- writing --------------------------------------------------------------------------------------


def why_not_peft(model: nn.Module) -> list[str]:
    """What peft's format cannot say about this model's adapter; empty if it can be written so."""
    settings = required(model).settings
    if not isinstance(model, GPT):
        return [f"the model is a {type(model).__name__}, and peft knows GPT-2 and addnorm.hf's GPT"]
    if settings.kind == "adapter":
        return ["peft has no bottleneck adapters"]
    if settings.kind in ("prefix", "prompt"):
        reasons = config_json.why_not_gpt2(model.config)
        if settings.kind == "prefix" and settings.positions == "kept":
            reasons.append("positions are 'kept', and in peft a prefix shifts them")
        return reasons
    return []


def save(model: nn.Module, folder: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Write the adapter alone.

    ``format``: "peft", refused with the reason where peft has none; "addnorm" for any; None takes
    peft's wherever it can. A merged adapter is written all the same. peft's settings that are in
    the folder are replaced, or deleted where the format is ours.
    """
    adapter = required(model)
    reasons = why_not_peft(model)
    if format not in (None, "peft", "addnorm"):
        raise WeightsError(f"format is 'peft', 'addnorm' or None, got {format!r}")
    if format == "peft" and reasons:
        raise WeightsError(f"peft's format cannot say what this is: {'; '.join(reasons)}")
    card: dict[str, Any] | None = None
    updates = adapter.low_rank()
    # peft's tensors hold the directions in use alone, ours all there are; ``load`` cuts by these
    ranks = {name: len(part.triplets().values) for name, part in updates.items()}
    if format == "addnorm" or reasons:
        tensors, ranks = state(model), {name: len(part.lora_A) for name, part in updates.items()}
    else:
        assert isinstance(model, GPT)
        writer = {"prefix": _prefix, "prompt": _prompt}.get(adapter.settings.kind, _stacked)
        tensors, card = writer(model, adapter)
    record = {
        "settings": dataclasses.asdict(adapter.settings),
        "updates": {name: [rank, updates[name].scale] for name, rank in ranks.items()},
    }
    for name, t in tensors.items():
        tensors[name] = folders.finite("the adapter", name, t.detach()).cpu().contiguous()
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    # Between the two renames a folder of another kind is there: its names will not fit.
    with disk.whole_file(path / TENSORS) as new:
        save_file(tensors, new, metadata={"format": "pt", OURS: json.dumps(record)})
    if card is None:
        (path / CONFIG).unlink(missing_ok=True)
    else:
        with disk.whole_file(path / CONFIG) as new:
            folders.write_json(new, card)


def export(model: GPT, folder: str | os.PathLike[str], *, tokenizer: Any = None) -> None:
    """Write an adapted model whole: FOLDER/adapter, and beside it what ``GPT.from_pretrained``
    reads: in FOLDER the model with the updates in its weights, or, since a prefix, a prompt and a
    bottleneck are not updates, in FOLDER/base the model without them."""
    folder = Path(folder)
    adapter = required(model)
    save(model, folder / "adapter")
    if adapter.low_rank():
        plain = folded(model)
        assert isinstance(plain, GPT)
        plain.save_pretrained(folder, tokenizer=tokenizer)
        return
    with torch.device("meta"):  # no random number may be drawn in the middle of a training
        context = model.config.context_length + model.front
        base = GPT(dataclasses.replace(model.config, context_length=context))
    own = state(model)
    base.load_state_dict({n: t for n, t in model.state_dict().items() if n not in own}, assign=True)
    base.tokenizer_identity = model.tokenizer_identity
    base.save_pretrained(folder / "base", tokenizer=tokenizer)


def _table(model: GPT) -> tuple[str, dict[str, tuple[str, ...]]]:
    """(what comes before peft's names of modules, peft's name -> ours): several of ours where one
    matrix of GPT-2 has them, in the order in which it does."""
    if config_json.why_not_gpt2(model.config):
        return "base_model.model.gpt.", {name: (name,) for name, _ in linears(model)}
    inside = dict(linears(model))
    rows = {
        row.theirs.removesuffix(".weight"): tuple(o.removesuffix(".weight") for o in row.ours)
        for row in gpt2_rows(model.config)
        if row.theirs.endswith(".weight")
    }
    ours_by_theirs = {theirs: ours for theirs, ours in rows.items() if ours[0] in inside}
    return "base_model.model.transformer.", ours_by_theirs


def _common(kind: str, **more: Any) -> dict[str, Any]:
    """An adapter_config.json of peft's: what all have, and ``more``."""
    return {
        "peft_type": TYPES[kind],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        **more,
    }


def _stacked(model: GPT, adapter: Adapted) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config.json) of low-rank updates as peft has them."""
    before, table = _table(model)
    updates, s = adapter.low_rank(), adapter.settings
    ada = s.kind == "adalora"
    end = "" if ada else ".weight"  # peft's LoRA has modules, its AdaLoRA parameters
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for theirs, ours in table.items():
        parts = [updates[name] for name in ours if name in updates]
        if not parts:
            continue
        blocks = []
        for name in ours:
            # a matrix without an update has no columns in B, but its rows, which are 0
            wide = model.get_submodule(name).get_parameter("weight")
            blocks.append(updates[name].triplets().b if name in updates else wide[:, :0])
        triplets = [part.triplets() for part in parts]
        a, e = torch.cat([t.a for t in triplets]), torch.cat([t.values for t in triplets])
        tensors[f"{before}{theirs}.lora_A{end}"] = a
        tensors[f"{before}{theirs}.lora_B{end}"] = torch.block_diag(*blocks)
        if ada:
            tensors[f"{before}{theirs}.lora_E"] = e[:, None]
        name = f"{before}{theirs}".removeprefix("base_model.model.")
        ranks[name], alphas[name] = len(a), parts[0].scale * len(a)  # peft divides by the rank
    largest = max(ranks, key=lambda name: ranks[name])
    r, alpha = max(ranks[largest], 1), alphas[largest]
    card = _common(
        s.kind,
        target_modules=sorted(ranks),
        fan_in_fan_out=not config_json.why_not_gpt2(model.config),  # Conv1D
        bias="none",
        lora_dropout=s.dropout,
    )
    if not ada:
        return tensors, card | {
            "r": r,
            "lora_alpha": alpha,
            "rank_pattern": {name: n for name, n in ranks.items() if n != r},
            "alpha_pattern": {name: n for name, n in alphas.items() if n != alpha},
        }
    return tensors, card | {
        "init_r": r,
        "target_r": min(s.target_rank, r),
        "lora_alpha": next(iter(updates.values())).scale * (r + PEFT_EPS),
        "total_step": s.steps,
        "tinit": s.tinit,
        "tfinal": s.tfinal,
        "deltaT": s.delta_t,
        "orth_reg_weight": s.orthogonality,
        "rank_pattern": {f"{m}.lora_E": [i < n for i in range(r)] for m, n in ranks.items()},
    }


def _prefix(model: GPT, adapter: Adapted) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config.json) of a prefix as peft has it: in one table the key and value of
    the first layer, of the second, ..., in a row."""
    tables = [
        table.weight
        for part in adapter.parts.values()
        if isinstance(part, Prefix)
        for table in (part.keys, part.values)
    ]
    more = {"encoder_hidden_size": model.config.dim, "prefix_projection": False}
    return {PROMPT: torch.cat(tables, 1)}, _in_front(model, adapter.settings) | more


def _prompt(model: GPT, adapter: Adapted) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, adapter_config.json) of a prompt as peft has it."""
    part = adapter.parts["prompt"]
    assert isinstance(part, SoftPrompt)
    card = _in_front(model, adapter.settings) | {"prompt_tuning_init": "RANDOM"}
    return {PROMPT: part.table.weight}, card


def _in_front(model: GPT, settings: Adapt) -> dict[str, Any]:
    """The adapter_config.json of what stands in front of the text: peft's settings that a prefix
    and a prompt have in common."""
    return _common(
        settings.kind,
        num_virtual_tokens=settings.length,
        token_dim=model.config.dim,
        num_transformer_submodules=1,
        num_attention_heads=model.config.n_heads,
        num_layers=model.config.n_layers,
    )


# --- reading --------------------------------------------------------------------------------------


def load(model: nn.Module, folder: str | os.PathLike[str]) -> Adapted:
    """Adapt a model as a folder says, one of ``save`` or of peft; ``WeightsError`` if it does not
    fit, and then nothing has happened."""
    path = reading.place(folder, WeightsError)
    tensors, record = _read(path / TENSORS)
    card = folders.read_json(path / CONFIG) if (path / CONFIG).exists() or not record else None
    updates = {name: (r, float(scale)) for name, (r, scale) in record.get("updates", {}).items()}
    try:
        if card is None:
            values, settings = tensors, _settings(record, {})
        elif card.get("peft_type") == TYPES["prefix"]:
            settings = _settings(record, _of_prefix(card))
            values = _prompts(model, tensors)
        elif card.get("peft_type") == TYPES["prompt"]:
            settings = _settings(record, _of_prompt(card))
            values = _soft_tokens(model, tensors)
        else:
            if not isinstance(model, GPT):
                raise WeightsError(f"peft's format is for a GPT, not a {type(model).__name__}")
            settings = _settings(record, _of_low_rank(card))
            values, updates = _unstacked(model, tensors, updates, card)
            roles = dict.fromkeys(name.rpartition(".")[2] for name in updates)
            settings = dataclasses.replace(settings, targets=tuple(roles))
        strange = updates.keys() - dict(linears(model))
        if strange:
            raise WeightsError(f"the adapter is of another model: no matrix is {min(strange)}")
        # Tried on a copy without memory: what does not fit leaves the model as it was.
        trial = copy.deepcopy(model, {id(p): _on_meta(p) for p in model.parameters()})
        install(trial, settings, updates)
        shapes = {name: _shape(t) for name, t in state(trial).items()}
        if card is not None:  # peft does not keep what adalora has measured
            shapes = {n: s for n, s in shapes.items() if n in dict(trial.named_parameters())}
        _check_shapes(shapes, {name: _shape(t) for name, t in values.items()})
    except Mendable as error:  # ours, or what the settings say of a value
        raise WeightsError(f"{path}: {error}") from None
    adapter = install(model, settings, updates)
    model.load_state_dict(values, strict=False)
    return adapter


def _on_meta(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.detach().to("meta"), p.requires_grad)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the tensors by name, our record, checked, or {} where there is none). A ``WeightsError``
    where the file is not there, is damaged or holds what is no finite number."""
    if not file.exists():
        raise WeightsError(f"{file.parent} has no adapter: there is no {file.name}")
    try:
        with safe_open(file, framework="pt") as opened:
            record = (opened.metadata() or {}).get(OURS)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file} is damaged ({error}): get it again") from None
    for name, t in tensors.items():
        dtype = str(t.dtype).removeprefix("torch.")
        if t.is_floating_point() and dtype not in SAFETENSORS_DTYPES.values():
            raise WeightsError(
                f"{file}: {name} is {dtype}, not one of {', '.join(SAFETENSORS_DTYPES.values())}"
            )
        folders.finite(str(file), name, t)
    return tensors, {} if record is None else _checked(file, record)


def _checked(file: Path, record: str) -> dict[str, Any]:
    """Our record from its JSON: "settings", and as "updates" name -> [rank, scale]; a
    ``WeightsError`` if it is something else. Values of settings are for ``Adapt`` to check."""
    where = f"{file}: the record in it"
    card = reading.json_value(record, where, WeightsError)
    if not isinstance(card, dict):
        raise WeightsError(f"{where} is {reading.in_words(card)}, expected an object")
    reading.field(card, "settings", dict, where, WeightsError)
    for name, update in reading.field(card, "updates", dict, where, WeightsError).items():
        pair = update if isinstance(update, list) else []
        whole = len(pair) == 2 and type(pair[0]) is int and pair[0] >= 0
        if not (whole and pair[0] <= MOST and is_number(pair[1])):
            raise WeightsError(f"{where}: the rank and scale of {name} are not two numbers")
    return card


def _shape(t: Tensor) -> str:
    """The shape of a tensor in words, and whether it is of whole numbers, to be compared."""
    return f"{tuple(t.shape)}{'' if t.is_floating_point() else ' of whole numbers'}"


def _check_shapes(want: Mapping[str, str], have: Mapping[str, str]) -> None:
    """Raise a ``WeightsError`` at the first name whose shapes differ, or that only one of the two
    has. ``want``: name -> ``_shape`` of the model's adapter; ``have``: of what is stored."""
    for name in sorted(want.keys() | have.keys()):
        if want.get(name) != have.get(name):
            raise WeightsError(
                f"the adapter is of another model: {name} is {have.get(name, 'missing')}, expected "
                f"{want.get(name, 'none')}"
            )


def _settings(record: Mapping[str, Any], otherwise: Mapping[str, Any]) -> Adapt:
    """The settings of our record, or where there is none ``otherwise``, those that peft's say; a
    ``Mendable`` where they are not those of an adapter."""
    values = dict(record.get("settings", otherwise))
    strange = values.keys() - {f.name for f in dataclasses.fields(Adapt)}
    if strange:
        raise WeightsError(f"{min(strange)!r} is not a setting of this version's adapters")
    arguments: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
    }
    return Adapt(**arguments)


def _setting(card: Mapping[str, Any], name: str) -> Any:
    """One of peft's settings, which ``Adapt`` checks."""
    if name not in card:
        raise WeightsError(f"{CONFIG}: {name!r} is missing")
    return card[name]


def _number(card: Mapping[str, Any], name: str) -> float:
    """One of peft's settings that must be a number, though ``Adapt`` may never see it: where the
    file has our record, that has the settings, and the scale follows from peft's all the same."""
    value = _setting(card, name)
    if not is_number(value):
        raise WeightsError(f"{CONFIG}: {name} is {value_in_short(value)}, not a number")
    return value


UNREAD = (
    *("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"),
    *("layer_replication", "modules_to_save", "trainable_token_indices", "kasa_config"),
)
"""Settings of peft's that make another function of the same tensors, or train more."""
PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal")
"""Beginnings that leave the model's own weights alone; pissa, olora and others move them."""


def _of_low_rank(card: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a LoRA or AdaLoRA in peft's ``card``, by our names, but for targets, which
    follow from the tensors. A ``WeightsError`` where it is another kind, or has an option that
    makes another function of the same tensors."""
    kind = {v: k for k, v in TYPES.items()}.get(str(card.get("peft_type")))
    if kind not in ("lora", "adalora"):
        types = ", ".join(TYPES.values())
        short = value_in_short(card.get("peft_type"))
        raise WeightsError(f"peft_type is {short}, expected one of {types}")
    odd = [name for name in UNREAD if card.get(name)]
    if card.get("init_lora_weights", True) not in PLAIN_INITS:
        odd.append(f"init_lora_weights={value_in_short(card['init_lora_weights'])}")
    if odd:
        raise WeightsError(f"{', '.join(odd)}: addnorm lacks this option of peft")
    values = {
        "kind": kind,
        "alpha": _number(card, "lora_alpha"),
        "dropout": _number(card, "lora_dropout"),
    }
    if kind == "lora":
        return values | {"rank": _setting(card, "r")}
    return values | {
        "init_rank": _setting(card, "init_r"),
        "target_rank": _setting(card, "target_r"),
        "steps": _setting(card, "total_step"),
        "tinit": _setting(card, "tinit"),
        "tfinal": _setting(card, "tfinal"),
        "delta_t": _setting(card, "deltaT"),
        "orthogonality": _setting(card, "orth_reg_weight"),
    }


def _unstacked(
    model: GPT,
    tensors: Mapping[str, Tensor],
    updates: Mapping[str, tuple[int, float]],
    card: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, tuple[int, float]]]:
    """(our tensors, our name -> rank and scale) from peft's: the blocks that ``updates``, of our
    record, name, or without one each of q, k and v reads by the whole A."""
    table = {_bare(theirs): ours for theirs, ours in _table(model)[1].items()}
    modules: dict[str, dict[str, Tensor]] = {}
    places: dict[tuple[str, str], str] = {}
    for full, t in tensors.items():
        name, _, factor = _bare(full.removesuffix(".weight")).rpartition(".")
        if name not in table or factor not in ("lora_A", "lora_B", "lora_E"):
            raise WeightsError(f"the model has no place for {full}")
        if places.setdefault((name, factor), full) != full:
            raise WeightsError(f"{places[name, factor]} and {full} are both {factor} of {name}")
        modules.setdefault(name, {})[factor] = t
    values: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, float]] = {}
    for theirs, factors in modules.items():
        names = table[theirs]
        sizes = [len(model.get_submodule(o).get_parameter("weight")) for o in names]
        a, b = (factors.get(factor, torch.empty(())) for factor in ("lora_A", "lora_B"))
        if (a.dim(), b.dim()) != (2, 2) or len(b) != sum(sizes) or b.shape[1] != len(a):
            raise WeightsError(
                f"the adapter is of another model: lora_A and lora_B of {theirs} have the shapes "
                f"{tuple(a.shape)} and {tuple(b.shape)}, expected (r, n) and ({sum(sizes)}, r)"
            )
        scale = _scale(card, theirs, len(a))
        rows = b.split(sizes)
        first = 0
        for name, mine in zip(names, rows, strict=True):
            part = slice(None)
            if updates:
                if name not in updates:
                    continue
                rank, scale = updates[name]
                part, first = slice(first, first + rank), first + rank
            values |= {f"{name}.lora_A": a[part], f"{name}.lora_B": mine[:, part]}
            if "lora_E" in factors:
                values[f"{name}.lora_E"] = factors["lora_E"].flatten()[part]
            ranks[name] = len(a[part]), scale
    return values, ranks


def _scale(card: Mapping[str, Any], name: str, rank: int) -> float:
    """What peft multiplies the update of a module by: alpha, which patterns of its ``card`` may
    give for the module, by the rank or its root. ``name``: the module's, without wrappers;
    ``rank``: of its tensors. A ``WeightsError`` where the card makes no sense."""
    if card["peft_type"] == TYPES["adalora"]:
        check_whole("init_r", _setting(card, "init_r"))
        return _number(card, "lora_alpha") / (card["init_r"] + PEFT_EPS)
    alpha, patterns = _number(card, "lora_alpha"), card.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise WeightsError(f"alpha_pattern is {reading.in_words(patterns)}, expected an object")
    for key, value in patterns.items():
        try:
            fits = re.fullmatch(rf"(.*\.)?({key})", name)
        except re.error as error:
            raise WeightsError(
                f"alpha_pattern {key!r} is not a regular expression: {error}"
            ) from None
        if fits and not is_number(value):
            raise WeightsError(f"alpha_pattern {key!r} is {value_in_short(value)}, not a number")
        if fits:
            alpha = value
            break
    return float(alpha / (max(rank, 1) ** 0.5 if card.get("use_rslora") else max(rank, 1)))


def _of_prefix(card: Mapping[str, Any]) -> dict[str, Any]:
    """peft's settings of a prefix as ours: in peft tokens begin behind it."""
    return {
        "kind": "prefix",
        "length": _setting(card, "num_virtual_tokens"),
        "positions": "shifted",
    }


def _of_prompt(card: Mapping[str, Any]) -> dict[str, Any]:
    """peft's settings of a prompt as ours. What it began as does not matter any more."""
    return {"kind": "prompt", "length": _setting(card, "num_virtual_tokens")}


def _soft_tokens(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our name -> the one table of peft's; a ``WeightsError`` where the model has no place for
    it, or there is another tensor."""
    if not isinstance(model, GPT) or config_json.why_not_gpt2(model.config):
        raise WeightsError("a prompt of peft's is for GPT-2 only")
    if tensors.keys() != {PROMPT}:
        raise WeightsError(f"there is {', '.join(sorted(tensors))}, expected {PROMPT} alone")
    return {"prompt.table.weight": tensors[PROMPT]}


def _prompts(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our name -> keys or values of an attention, from peft's one table; a ``WeightsError`` where
    the model has no place for it. In a model that GPT-2 can be, attention and MLP take turns in the
    stack, so that attentions have the even numbers."""
    if not isinstance(model, GPT) or config_json.why_not_gpt2(model.config):
        raise WeightsError("a prefix of peft's is for GPT-2 only")
    layers, dim = model.config.n_layers, model.config.dim
    table = tensors.get(PROMPT, torch.empty(()))
    if table.dim() != 2 or table.shape[1] != 2 * layers * dim:
        raise WeightsError(
            f"{PROMPT} has the shape {tuple(table.shape)}, and {layers} layers of width {dim} need "
            f"(length, {2 * layers * dim})"
        )
    own = table.split(dim, 1)
    return {
        f"stack.subs.{2 * i}.branch.prefix.{what}.weight": own[2 * i + j].contiguous()
        for i in range(layers)
        for j, what in enumerate(("keys", "values"))
    }


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in PEFT_WRAPPERS)
