"""Made-up inputs for any Transformer, and what each of them is to it, found by trying.

Names of arguments, annotations, ``main_input_name`` and ``config`` are what the author claims: they
decide what is tried first. What counts is that the forward runs and returns finite numbers. Batch
and lengths are small primes that are no other size of the model, so that axes can be told apart.
"""

import inspect
import itertools
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from addnorm.linting.subject import Inputs, main_output

SECONDS = 30.0  # for all attempts together
ATTEMPTS = 400


class CannotMakeInputs(ValueError):
    """No call of the model was found that runs; says what was tried."""


def inputs_from(given: Any) -> Inputs:
    """What a user gave: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(given, Inputs):
        return given
    if isinstance(given, Tensor):
        return Inputs((given,))
    if isinstance(given, Mapping):  # a tokenizer's BatchEncoding is a mapping and no dict
        if not given or not all(isinstance(name, str) for name in given):
            raise TypeError("inputs as a dict are keyword arguments: names to values, at least one")
        return Inputs((), dict(given))
    if isinstance(given, tuple | list):
        return Inputs(tuple(given))
    raise TypeError(
        "inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(given).__name__}"
    )


def make_inputs(model: nn.Module) -> Inputs:
    """A call of ``model`` that runs and returns finite floating-point numbers.

    The model is called, in evaluation mode: give a copy. Modes and the RNG are put back.
    """
    with quietly(model):
        facts = _Facts(model)
        tried: dict[str, str] = {}
        start = time.monotonic()
        for number, (label, inputs) in enumerate(_candidates(facts)):
            if label in tried:
                continue
            why = _refusal(model, inputs)
            if why is None:
                return _fitted(model, inputs, facts)
            tried[label] = why
            if number >= ATTEMPTS or time.monotonic() - start > SECONDS:
                break
    shown = list(tried.items())
    lines = [f"  {label}: {why}" for label, why in [*shown[:4], *shown[-2:]][: len(shown)]]
    names = list(facts.parameters)
    arguments = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise CannotMakeInputs(
        f"no inputs were found with which {type(model).__name__}.forward({arguments}) runs; "
        f"{len(shown)} kinds of call were tried, among them\n"
        + "\n".join(dict.fromkeys(lines))
        + "\nGive a batch of your own: lint(model, inputs=tensor), lint(model, inputs=(a, b)) for "
        "positional or lint(model, inputs={'name': a}) for keyword arguments."
    )


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no warnings, a fixed RNG; all put back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


# --- what there is to go by -----------------------------------------------------------------------

_SKIP = {"args", "kwargs", "self"}
_MASK = re.compile(r"mask|(^|_)(valid|keep|pad|padding|attend)(_|$)|padding")
_SOURCE = re.compile(r"src|source|memory|enc(?!_?dec)|context|cond")
_SQUARE = re.compile(r"tgt|trg|target|causal|look|future|attn_mask|decoder|dec_|subsequent|^tril")
_FEATURES = re.compile(
    r"memory|embed|hidden|feature|states?$|^enc_out|encoder_out|context|latent|query|key|value"
)
_IDS = re.compile(r"ids?$|idx|tok|^src$|^tgt$|^trg$|source|target|text|words|seq|^y$")
_IMAGE = re.compile(r"pixel|image|^imgs?$|picture|frames?$")
_WAVE = re.compile(r"input_values|wave|audio|speech|signal")
_NOT_TRIED = re.compile(
    r"label|cache|past|return|output_|head_mask|loss|embeds|weights|inputs_embeds|encoder_outputs"
)


class _Facts:
    """The model's signature, sizes and claims."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config = getattr(model, "config", None)
        try:
            found = inspect.signature(model.forward).parameters
        except (TypeError, ValueError):
            found = inspect.signature(lambda x: x).parameters
        self.parameters = {
            name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        self.open = len(self.parameters) < len(found)  # *args or **kwargs
        self.required = [n for n, p in self.parameters.items() if p.default is p.empty]
        self.modules = list(model.named_modules())
        at = next(itertools.chain(model.parameters(), model.buffers()), torch.zeros(()))
        self.device = at.device
        floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        taken = self._sizes()
        self.batch = next((n for n in (3, 2, 5) if n not in taken), 3)
        primes = [n for n in (7, 11, 13, 17, 19, 23) if n not in taken and n != self.batch]
        self.time, self.source = [*primes, 7, 11][:2]
        self.tables = [m for _, m in self.modules if isinstance(m, nn.Embedding)]
        lookups = [p for n, p in model.named_parameters() if p.dim() == 2 and _TABLE.search(n)]
        self.has_tables = bool(self.tables or lookups)

    def claim(self, *names: str) -> Any:
        """The first of these that the config or the model itself states."""
        for owner in (self.config, self.model):
            for name in names:
                value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
                if value is not None and not callable(value):
                    return value
        return None

    def _sizes(self) -> set[int]:
        sizes = {n for p in self.model.parameters() for n in p.shape}
        for _, module in self.modules:
            sizes |= {
                v
                for k, v in vars(module).items()
                if type(v) is int and not re.search("id$|idx|index", k)
            }
        told = (
            self.config if isinstance(self.config, dict) else getattr(self.config, "__dict__", {})
        )
        return sizes | {v for k, v in told.items() if type(v) is int and not k.endswith("_id")}

    def lengths(self) -> list[tuple[int, int]]:
        """(time, source) to try: small primes, shorter ones, and lengths the model fixes."""
        fixed = []
        for name, tensor in itertools.chain(
            self.model.named_parameters(), self.model.named_buffers()
        ):
            shape = tuple(tensor.shape)
            if "pos" in name.lower() or (len(shape) == 3 and 1 in shape[:2]):
                fixed += [n for n in shape[:-1] if n > 1]
            elif (
                len(shape) >= 2 and shape[-1] == shape[-2] and not isinstance(tensor, nn.Parameter)
            ):
                fixed.append(shape[-1])
        for name in _LENGTHS:
            for owner in (self.config, *(m for _, m in self.modules[:20])):
                value = getattr(owner, name, None)
                if type(value) is int:
                    fixed.append(value)
        more = [n for n in dict.fromkeys(fixed) if 2 <= n <= 2048]
        pairs = [(self.time, self.source), (5, 5), (3, 3)]
        return list(dict.fromkeys(pairs + [(n, n) for n in more]))

    def widths(self) -> list[int]:
        """Feature widths, in the order in which modules would first eat them."""
        found: list[int] = []
        for _, m in self.modules:
            if isinstance(m, nn.Linear):
                found.append(m.in_features)
            elif isinstance(m, nn.LayerNorm):
                found.append(m.normalized_shape[-1])
            elif isinstance(m, nn.MultiheadAttention):
                found.append(m.embed_dim)
            elif isinstance(m, nn.Conv1d):
                found.append(m.in_channels)
            elif isinstance(m, nn.LSTM | nn.GRU):
                found.append(m.input_size)
        for name in ("d_model", "dim", "hidden_size", "n_embd", "embed_dim", "width"):
            value = self.claim(name)
            if type(value) is int:
                found.append(value)
        if not found:
            found += [n for p in self.model.parameters() for n in p.shape]
        return list(dict.fromkeys(n for n in found if n > 0))[:6] or [8]

    def images(self) -> list[tuple[int, int, int]]:
        """(channels, height, width) to try."""
        conv = next((m for _, m in self.modules if isinstance(m, nn.Conv2d)), None)
        channels = [c for c in [self.claim("num_channels", "in_chans", "channels")] if c]
        steps: list[tuple[int, int]] = []  # (channels, patch)
        if conv is not None:
            steps.append((conv.in_channels, int(conv.stride[0])))
        for width in self.widths()[:3]:  # patches cut by a reshape
            for c in (*channels, 3, 1):
                side = math.isqrt(width // c)
                if side > 1 and side * side * c == width:
                    steps.append((c, side))
        sizes: list[tuple[int, int, int]] = []
        for c, step in dict.fromkeys(steps):
            for owner in (self.config, *(m for _, m in self.modules)):
                for name in ("image_size", "img_size"):
                    value = getattr(owner, name, None)
                    if type(value) is int:
                        sizes.append((c, value, value))
                    elif isinstance(value, tuple | list) and len(value) == 2:
                        sizes.append((c, int(value[0]), int(value[1])))
            for _, p in self.model.named_parameters():
                if p.dim() in (2, 3) and step >= 4:
                    for extra in (1, 0, 2):
                        side = math.isqrt(max(p.shape[-2] - extra, 0))
                        if side > 1 and side * side + extra == p.shape[-2]:
                            sizes.append((c, side * step, side * step))
            few = [4 * step] if step >= 4 else []  # smaller steps are those of a deep front end
            sizes += [(c, side, side) for side in (*few, 64, 32, 28, 224)]
        fit = [s for s in dict.fromkeys(sizes) if s[1] * s[2] <= 512 * 512]
        return fit[:10]

    def mels(self) -> list[tuple[int, int]]:
        """(bins, frames) of a spectrogram, to try in both orders."""
        conv = next((m for _, m in self.modules if isinstance(m, nn.Conv1d)), None)
        bins = self.claim("num_mel_bins", "n_mels", "input_feat_per_channel")
        bins = bins or (conv.in_channels if conv is not None else 80)
        frames = [self.claim("max_source_positions"), self.claim("max_length")]
        fixed = [k * n for n in frames if type(n) is int for k in (2, 1)]
        return [(bins, n) for n in dict.fromkeys([*fixed, 2 * self.source]) if n <= 6000]

    def waves(self) -> list[int]:
        """Numbers of samples that give a few dozen frames: as many as are masked in training."""
        need = 23
        convs = [
            (m.kernel_size[0], m.stride[0]) for _, m in self.modules if isinstance(m, nn.Conv1d)
        ]
        strided = [c for c in convs if c[1] > 1]
        claimed = self.claim("conv_kernel"), self.claim("conv_stride")
        if all(isinstance(c, tuple | list) for c in claimed):
            strided = list(zip(*claimed, strict=False))
        for kernel, stride in reversed(strided):
            need = (need - 1) * stride + kernel
        return list(dict.fromkeys([min(need, 20000), 4000, 16000]))


_TABLE = re.compile(r"emb|tok|wte|table|lookup", re.IGNORECASE)
_LENGTHS = ("block_size", "context_length", "max_len", "max_seq_len", "seq_len", "max_length")


# --- calls to try ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    batch: int
    time: int  # of the main input
    source: int  # of the encoder's input
    dtype: torch.dtype

    def of(self, name: int | str) -> int:
        """What a letter stands for."""
        if isinstance(name, int):
            return name
        return {"B": self.batch, "T": self.time, "S": self.source}[name]


@dataclass(frozen=True)
class _Value:
    """One way to make one argument."""

    label: str
    make: Callable[[_Sizes], Any]


def _candidates(facts: _Facts) -> Iterator[tuple[str, Inputs]]:
    for time_, source in facts.lengths():
        sizes = _Sizes(facts.batch, time_, source, facts.dtype)
        for names in _selections(facts):
            ways = [_ways(name, facts, names) for name in names]
            for chosen in _by_rank(ways):
                label = ", ".join(f"{n}={v.label}" for n, v in zip(names, chosen, strict=True))
                yield f"{label} (T={time_})", _call(facts, names, [v.make(sizes) for v in chosen])


def _selections(facts: _Facts) -> Iterator[list[str]]:
    """Which arguments to give: the required ones; where there are none, what is claimed."""
    named = [n for n in facts.parameters if not _NOT_TRIED.search(n)]
    main = getattr(facts.model, "main_input_name", None)
    given = facts.required
    if not given or (isinstance(main, str) and main in facts.parameters and main not in given):
        if not isinstance(main, str) or main not in facts.parameters:
            main = next((n for n in named if n not in _SKIP), None)
        if main is None:
            yield ["args"] if facts.open else []
            return
        given = [*facts.required, main]
    decoder = [n for n in ("decoder_input_ids", "tgt", "target", "trg") if n in named]
    more = [n for n in decoder if n not in given][:1]
    both = [n for n in ("pixel_values", "input_ids", "input_features") if n in named]
    tries = [[*given, *more]] if more else []
    tries.append(given)
    if [n for n in both if n not in given]:
        tries.append(list(dict.fromkeys([*given, *both])))
    optional_masks = [n for n in named if _MASK.search(n) and n not in given]
    if optional_masks:  # optional by signature and needed all the same
        tries.append([*given, *more, *optional_masks[:2]])
    seen = set()
    for names in tries:
        ordered = [n for n in facts.parameters if n in names] or names
        if tuple(ordered) not in seen:
            seen.add(tuple(ordered))
            yield ordered


def _by_rank(ways: Sequence[Sequence[_Value]]) -> Iterator[tuple[_Value, ...]]:
    """Combinations, those of first choices first."""
    places = itertools.product(*(range(len(w)) for w in ways))
    ranked = sorted(itertools.islice(places, 20000), key=lambda p: (sum(p), max(p, default=0)))
    for place in ranked[:ATTEMPTS]:
        yield tuple(w[i] for w, i in zip(ways, place, strict=True))


def _call(facts: _Facts, names: Sequence[str], values: Sequence[Any]) -> Inputs:
    """By place as long as the signature allows, then by name."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    order = list(facts.parameters)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            value = value.to(facts.device)
        parameter = facts.parameters.get(name)
        if parameter is None or (
            parameter.default is parameter.empty
            and parameter.kind is not parameter.KEYWORD_ONLY
            and order[: len(args) + 1] == [*order[: len(args)], name]
            and not kwargs
        ):
            args.append(value)
        else:
            kwargs[name] = value
    return Inputs(tuple(args), kwargs or None)


def _ways(name: str, facts: _Facts, names: Sequence[str]) -> list[_Value]:
    """The values to try for one argument, the likeliest first."""
    low = name.lower()
    parameter = facts.parameters.get(name)
    kind = parameter.annotation if parameter is not None else None
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    alone = sum(not _MASK.search(n.lower()) for n in names) == 1
    encoded = low in ("input_ids", "attention_mask") and "decoder_input_ids" in names
    source = encoded or (bool(_SOURCE.search(low)) and not alone)
    length = "S" if source else "T"
    nothing = _Value("None", lambda s: None)
    if kind in ("int", "float", "bool"):
        plain = {"int": 0, "float": 1.0, "bool": False}[kind]
        return [_Value(kind, lambda s: plain)]
    if _MASK.search(low):
        square = bool(_SQUARE.search(low)) and not re.search("pad|key", low)
        return [*_masks(low, square=square, source=source), nothing]
    if re.search(r"pos(ition)?s?(_ids?)?$|position", low):
        return [
            _Value("positions (B, T)", lambda s: torch.arange(s.time).expand(s.batch, -1).clone()),
            _Value("positions (T,)", lambda s: torch.arange(s.time)),
            nothing,
        ]
    if re.search(r"length|lens?$", low):
        return [_Value("lengths (B,)", lambda s: torch.full((s.batch,), s.of(length))), nothing]
    if re.search(r"type|segment", low):
        return [_Value("zeros", lambda s: torch.zeros(s.batch, s.time, dtype=torch.long)), nothing]
    if re.search(r"^t$|timesteps?$|^step$|^noise|sigma", low):
        return [
            _Value("steps (B,)", lambda s: torch.arange(s.batch)),
            _normal("noise (B,)", "B"),
            _Value("0", lambda s: 0),
        ]
    ids = [_Value("ids", lambda s: torch.randint(0, 2, (s.batch, s.of(length))))]
    widths = facts.widths()
    features = [_normal(f"features of {w}", "B", length, w) for w in widths]
    second = [_normal(f"features of {w}, time first", length, "B", w) for w in widths[:2]]
    images = [_normal(f"image {size}", "B", *size) for size in facts.images()]
    waves = [_normal(f"wave of {n}", "B", n) for n in facts.waves()]
    mels = [
        _normal(f"spectrogram {z}", "B", *z)
        for bins, frames in facts.mels()
        for z in ((bins, frames), (frames, bins))
    ]
    convs = [m for _, m in facts.modules if isinstance(m, nn.Conv1d)][:1]
    channels = [_normal(f"{m.in_channels} channels first", "B", m.in_channels, "T") for m in convs]
    if low == "input_features":
        return [*mels, *features]
    if _WAVE.search(low):
        return [*waves, *mels, *features]
    if _IMAGE.search(low):
        return [*images, *features]
    if facts.has_tables and not _FEATURES.search(low):
        return [*ids, *features, *images]
    first = next(
        (m for _, m in facts.modules if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)), None
    )
    if _IDS.search(low) and facts.has_tables:
        return [*ids, *features]
    if isinstance(first, nn.Conv2d):
        return [*images, *features, *ids]
    if isinstance(first, nn.Conv1d):
        return [*features, *channels, *waves, *ids]
    return [*features, *second, *images, *ids, *channels]


def _normal(label: str, *shape: int | str) -> _Value:
    """Normal numbers of a shape in which letters stand for sizes."""
    return _Value(label, lambda s: torch.randn([s.of(n) for n in shape], dtype=s.dtype))


def _masks(name: str, *, square: bool, source: bool) -> list[_Value]:
    """Masks that keep everything or, where the name says so, the past; see ``_polarity`` for which
    way round they are."""

    length = "S" if source else "T"

    def padding(*axes: int) -> Callable[[_Sizes], Tensor]:
        def make(s: _Sizes) -> Tensor:
            shape = [{0: s.batch, 1: 1, 2: s.of(length)}[a] for a in axes]
            return torch.ones(shape, dtype=torch.bool)

        return make

    def seen(*front: int) -> Callable[[_Sizes], Tensor]:
        def make(s: _Sizes) -> Tensor:
            keys = s.of(length)
            lead = [{0: s.batch, 1: 1}[a] for a in front]
            past = torch.ones(s.time, keys, dtype=torch.bool)
            if not source:
                past = past.tril()
            return past.expand(*lead, -1, -1).clone() if lead else past

        return make

    pads = [
        _Value("mask (B, 1, 1, T)", padding(0, 1, 1, 2)),
        _Value("mask (B, 1, T)", padding(0, 1, 2)),
        _Value("mask (B, T)", padding(0, 2)),
    ]
    squares = [
        _Value("mask (B, 1, T, T)", seen(0, 1)),
        _Value("mask (B, T, T)", seen(0)),
        _Value("mask (T, T)", seen()),
    ]
    if re.search("pad|valid|key", name):
        pads = [pads[2], *pads[:2]]
    ways = [*squares, *pads] if square else [*pads, *squares]
    return [*ways, *map(_whole, ways)]


def _whole(mask: _Value) -> _Value:
    """Of 1 and 0, for those who compute 1 - mask."""
    return _Value(f"{mask.label} of int", lambda s: mask.make(s).long())


# --- does it run, and making it better ------------------------------------------------------------


def _refusal(model: nn.Module, inputs: Inputs) -> str | None:
    """Why this call does not do, or None."""
    try:
        out = main_output(inputs.call(model))
    except Exception as error:  # any failure of foreign code means: try another call
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{type(error).__name__}: {text[:160]}"
    if out.numel() == 0:
        return "an empty output"
    fed = inputs.tensors()
    masks = [n for n, v in fed.items() if _is_mask(n, v)]
    axes = max(
        (v.dim() + (not v.is_floating_point()) for n, v in fed.items() if n not in masks), default=9
    )
    if masks and out.dim() > axes:
        return "the mask's axes were added to the output's"
    if not bool(out.isfinite().all()) and masks:
        other = _flipped(inputs)
        try:
            if bool(main_output(other.call(model)).isfinite().all()):
                return None  # _fitted turns the masks
        except Exception:
            return "the output is not finite"
    return None


def _is_mask(name: str, value: Tensor) -> bool:
    if value.dtype is torch.bool:
        return True
    low = name.lower()
    if not name.isdecimal() and not _MASK.search(low):
        return False
    if value.is_floating_point():
        blocked = value[value != 0]
        return bool(value.numel()) and bool((blocked < -1e3).all()) and blocked.numel() > 0
    return not name.isdecimal() and bool(((value == 0) | (value == 1)).all())


def _flipped(inputs: Inputs) -> Inputs:
    for name, value in inputs.tensors().items():
        if value.dtype is torch.bool:
            inputs = inputs.replaced(name, ~value)
        elif _is_mask(name, value) and not value.is_floating_point():
            inputs = inputs.replaced(name, 1 - value)
    return inputs


class Lookups(TorchFunctionMode):
    """Which tables are looked up with which indices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, Tensor]] = []
        """(rows, indices)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "embedding" and len(args) >= 2:
            ids, table = args[0], args[1]
            if (
                isinstance(table, Tensor)
                and isinstance(ids, Tensor)
                and not ids.is_floating_point()
            ):
                table, ids = (table, ids)
            else:
                table, ids = ids, table
            self._note(table, ids)
        elif name in ("__getitem__", "index_select", "take_along_dim") and len(args) >= 2:
            self._note(args[0], args[-1])
        elif name == "one_hot" and len(args) >= 2 and isinstance(args[1], int) and args[1] > 0:
            self.seen.append((args[1], args[0].detach().clone()))
        return func(*args, **(kwargs or {}))

    def _note(self, table: Any, ids: Any) -> None:
        if not isinstance(table, Tensor) or not isinstance(ids, Tensor) or not table.dim():
            return
        if table.is_floating_point() and ids.dtype in (torch.int32, torch.int64):
            self.seen.append((table.shape[0], ids.detach().clone()))

    def rows(self, ids: Tensor) -> int | None:
        """The fewest rows of the tables that are looked up with just these ids."""
        same = [
            rows
            for rows, index in self.seen
            if index.numel() == ids.numel()
            and (
                torch.equal(index.reshape(-1), ids.reshape(-1))
                or (ids.dim() == 2 and torch.equal(index.reshape(-1), ids.t().reshape(-1)))
            )
        ]
        return min(same, default=None)


def table_rows(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """For every whole-number argument that is used as token ids: the rows of its table."""
    lookups = Lookups()
    with lookups:
        inputs.call(model)
    found = {}
    config = getattr(model, "config", None)
    claimed = getattr(config, "vocab_size", None)  # tables may be longer than the vocabulary
    for name, value in inputs.tensors().items():
        if value.dtype in (torch.int32, torch.int64) and value.dim() and not _is_mask(name, value):
            rows = lookups.rows(value)
            if rows is not None:
                fits = type(claimed) is int and 0 < claimed < rows and int(value.max()) < claimed
                found[name] = claimed if fits and type(claimed) is int else rows
    return found


def special_ids(model: nn.Module) -> set[int]:
    """Ids that mean something else than a word, as far as the model says: padding above all."""
    found = {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)} - {None}
    config = getattr(model, "config", None)
    for owner in (config, *model.modules()):
        for name, value in getattr(owner, "__dict__", {}).items():
            if re.search(r"token_id$|pad_?(idx|id|token|index)$|^pad$", name):
                found |= set(value if isinstance(value, list) else [value])
    return {v for v in found if type(v) is int}


def pad_ids(model: nn.Module) -> set[int]:
    """Ids of padding, as far as the model says."""
    found = {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)} - {None}
    for owner in (getattr(model, "config", None), *model.modules()):
        for name, value in getattr(owner, "__dict__", {}).items():
            if re.search(r"pad_token_id$|pad(ding)?_?(idx|id|index)$", name):
                found.add(value)
    return {v for v in found if type(v) is int and v >= 0}


def word_ids(rows: int, special: set[int]) -> list[int]:
    """Ids below ``rows`` that are surely words: no special ones, nor the lowest, where it fits."""
    for low in (4, 1, 0):
        words = [i for i in range(low, rows) if i not in special]
        if len(words) >= 8 or low == 0:
            return words or list(range(rows))
    return list(range(rows))


def _fitted(model: nn.Module, inputs: Inputs, facts: _Facts) -> Inputs:
    """The same call with words from all of the vocabulary, and masks the right way round."""
    special = special_ids(model)
    vocabulary = facts.claim("vocab_size")
    generator = torch.Generator().manual_seed(1)
    for name, rows in table_rows(model, inputs).items():
        ids = inputs.tensors()[name]
        limits = [rows, vocabulary if type(vocabulary) is int and vocabulary < rows else rows // 2]
        for limit in limits:
            words = torch.tensor(word_ids(max(limit, 2), special))
            lines = [  # no word twice in a line, where there are enough
                words[torch.randperm(len(words), generator=generator).repeat(-(-n // len(words)))]
                for n in [ids.shape[-1]] * (ids.numel() // ids.shape[-1])
            ]
            drawn = torch.stack([line[: ids.shape[-1]] for line in lines]).reshape(ids.shape)
            better = inputs.replaced(name, drawn.to(ids))
            if _refusal(model, better) is None:
                inputs = better
                break
    return _masked_rightly(model, inputs)


def _masked_rightly(model: nn.Module, inputs: Inputs) -> Inputs:
    """Masks that keep: turned or made additive where the model reads them so."""
    for name, value in inputs.tensors().items():
        if not _is_mask(name, value):
            continue
        reading = mask_reading(model, inputs, name)
        if reading is None:
            continue
        keep = value.bool()
        inputs = inputs.replaced(name, as_mask(keep, reading, value.dtype, floats_of(model)))
    return inputs


def floats_of(model: nn.Module) -> torch.dtype:
    """The floating-point type of the model's weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


# --- what each argument is to the model -----------------------------------------------------------

Reading = Literal["keep", "drop", "additive"]


def as_mask(keep: Tensor, reading: Reading, dtype: torch.dtype, floats: torch.dtype) -> Tensor:
    """A mask of "may be seen" in the way the model reads it."""
    if reading == "additive":
        return torch.zeros(keep.shape, dtype=floats).masked_fill(~keep, float("-inf"))
    kept = keep if reading == "keep" else ~keep
    return kept if dtype is torch.bool else kept.to(dtype)


def perturbed(
    inputs: Inputs, name: str, where: Any, rows: int | None, special: set[int], seed: int = 0
) -> Inputs:
    """The same call with other values at ``where`` (an index) of one argument."""
    value = inputs.tensors()[name].clone()
    old = value[where]
    if value.is_floating_point():
        noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed + 5)).to(old)
        value[where] = old + noise * value.float().std(correction=0).clamp(min=0.1).to(old)
    else:
        words = word_ids(rows or int(value.max()) + 1, special)
        place = {w: i for i, w in enumerate(words)}
        step = 1 + seed % max(len(words) - 1, 1)
        moved = [words[(place.get(v, 0) + step) % len(words)] for v in old.reshape(-1).tolist()]
        value[where] = torch.tensor(moved, dtype=value.dtype, device=value.device).reshape(
            old.shape
        )
    return inputs.replaced(name, value)


def mask_reading(
    model: nn.Module, inputs: Inputs, name: str, tables: Mapping[str, int] | None = None
) -> Reading | None:
    """How a mask is read, measured: which of two tokens is still seen where one is marked.

    Everything is kept but one place: where that token is not seen and another is, 1 keeps; where
    it alone is seen, 1 drops. None: neither, the mask is without effect or not of that kind.
    """
    value = inputs.tensors()[name]
    keys = value.shape[-1]
    fed = [
        (other, axis)
        for other, tensor in inputs.tensors().items()
        if other != name and not _is_mask(other, tensor)
        for axis in range(min(tensor.dim(), 2))
        if tensor.shape[axis] == keys and tensor.dim() >= 2
    ]
    fed.sort(key=lambda pair: pair[1] != 1)
    floats = floats_of(model)
    special = special_ids(model)
    for other, axis in fed:
        tables = table_rows(model, inputs) if tables is None else tables
        rows = tables.get(other)
        for reading in ("keep", "additive"):
            keep = torch.ones(value.shape, dtype=torch.bool)
            keep[..., 0] = False
            masked = inputs.replaced(name, as_mask(keep, reading, value.dtype, floats))
            try:
                base = main_output(masked.call(model))
                if not bool(base.isfinite().any()):
                    continue
                moves = []
                for place in (0, 1):
                    where = tuple([slice(None)] * axis + [place])
                    new = main_output(perturbed(masked, other, where, rows, special).call(model))
                    moves.append(_observed(base, new, keys))
            except Exception:  # foreign code that does not take this mask
                continue
            if moves[1] and not moves[0]:
                return "keep" if reading == "keep" else "additive"
            if moves[0] and not moves[1] and reading == "keep":
                return "drop"
    return None


def _observed(base: Tensor, new: Tensor, keys: int) -> bool:
    """Whether the last place of the output, or all of it where it has no such axis, moved."""
    axes = [a for a in range(1, base.dim()) if base.shape[a] == keys]
    if axes:
        base, new = base.select(axes[0], keys - 1), new.select(axes[0], keys - 1)
    scale = float(base.nan_to_num().abs().max()) + 1e-30
    change = (base - new).nan_to_num().abs().max()
    return bool(change > 1e3 * torch.finfo(base.dtype).eps * scale)


Kind = Literal["ids", "features", "image", "wave"]


@dataclass(frozen=True)
class MaskRole:
    """An argument that says which places may be seen."""

    name: str
    of: str
    """The argument whose places it speaks of."""
    reading: Reading | None
    """Measured; None: no place could be hidden with it."""
    square: bool
    """It speaks of pairs of places, (T, T) in its last axes."""


@dataclass(frozen=True)
class Roles:
    """What each argument is to the model, found by changing them."""

    main: str
    """Named as in ``Inputs.tensors``: that whose places the output has; a decoder's own input."""
    kind: Kind
    batch: int = 0
    time: int | None = 1
    """Axes of the main input. Time is None for images and waves."""
    out_batch: int | None = None
    out_time: int | None = None
    """The output's axes that carry them; None: none does."""
    mixed: int | None = None
    """The axis of the main input along which tokens notice one another, if it is only one."""
    positions: int | None = None
    """The axis along which equal tokens come out different: there positions were added."""
    memory: str | None = None
    """The encoder's input, or the memory."""
    masks: tuple[MaskRole, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """For each argument of token ids the rows of its table."""
    special: frozenset[int] = frozenset()
    """Ids that are no words."""
    unclear: tuple[str, ...] = ()
    """What could not be told, and why."""


def find_roles(model: nn.Module, inputs: Inputs) -> Roles:
    """Who is who in a call that runs. The model is called: give a copy."""
    with quietly(model):
        return _roles(model, inputs)


def _roles(model: nn.Module, inputs: Inputs) -> Roles:
    rows, special = table_rows(model, inputs), special_ids(model)
    base = main_output(inputs.call(model))
    found: dict[str, _Carried] = {}
    unclear: list[str] = []
    names = argument_names(model, inputs)
    masks = []
    for name, value in inputs.tensors().items():
        said = names.get(name, name).lower()
        if _is_mask(name, value) or (value.dim() and _is_mask(said, value)):
            masks.append(name)
            continue
        kind: Kind
        if name in rows and value.dim() == 2:
            kind = "ids"
        elif value.is_floating_point() and value.dim() in (2, 3, 4):
            kind = {2: "wave", 3: "features", 4: "image"}[value.dim()]  # type: ignore[assignment]
            if re.search(r"ids?$|idx|tokens?$", said) and rows == {}:
                unclear.append(f"{said} sounds like token ids and is given as {value.dtype}")
        else:
            continue
        if re.search(r"label", said):
            continue
        try:
            found[name] = _carried(model, inputs, name, kind, base, rows, set(special))
        except Exception as error:  # foreign code that takes these values and no others
            unclear.append(f"{said} could not be changed: {type(error).__name__}: {error}"[:200])
    if not found:
        raise CannotMakeInputs(
            "no argument is a sequence of token ids, features or pixels whose change the model "
            f"takes; given are {', '.join(inputs.tensors()) or 'no tensors'}"
            + "".join(f"; {u}" for u in unclear)
        )
    main = max(found, key=lambda n: (found[n].moves, found[n].score, _decoder_like(names, n)))
    others = [n for n in found if n != main]
    memory = next((n for n in others if found[n].moves or _SOURCE.search(names.get(n, n))), None)
    if memory is None and others and names.get(main, main).startswith(("decoder", "tgt", "trg")):
        memory = others[0]
    own = found[main]
    batch, time_ = (0, 1) if own.kind in ("ids", "features") else (0, None)
    mixed, positions = own.mixed, None
    if time_ is not None:
        same = inputs
        for name in found:  # all of them: rows of another memory would tell the rows apart
            same = constant(same, name)
        positions = _position_axis(model, same, own)
        time_first = mixed == 0 and (
            positions == 0 or (positions is None and own.kind == "features" and not rows)
        )
        if time_first:
            batch, time_ = 1, 0
    spoken = tuple(
        MaskRole(
            name,
            _mask_of(inputs, name, [main, *others]),
            mask_reading(model, inputs, name, rows),
            _is_square(inputs.tensors()[name]),
        )
        for name in masks
    )
    return Roles(
        main,
        own.kind,
        batch,
        time_,
        own.axes[batch],
        None if time_ is None else own.axes[time_],
        mixed,
        positions,
        memory,
        spoken,
        rows,
        frozenset(special),
        tuple(unclear),
    )


def signature(model: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of forward by name, those that gather the rest left out."""
    try:
        found = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {n: p for n, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def mask_values(batch: int, places: int, floats: torch.dtype) -> list[Tensor]:
    """Padding masks that keep everything, in the shapes and types people use."""
    whole = torch.ones(batch, places, dtype=torch.bool)
    shaped = [whole, whole[:, None, None, :], whole[:, None, :]]
    return [*(m.long() for m in shaped[:1]), *shaped, *(m.to(floats) for m in shaped[:1])]


def argument_names(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """The names in the signature of arguments given by place: {"0": "idx"}."""
    try:
        order = [
            p.name
            for p in inspect.signature(model.forward).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return {}
    return {str(i): n for i, n in enumerate(order[: len(inputs.args)])}


@dataclass(frozen=True)
class _Carried:
    """Where the axes of one argument are in the output."""

    kind: Kind
    axes: tuple[int | None, int | None]
    score: float
    """How much of a change at one place is seen at that place."""
    moves: bool
    mixed: int | None


def _carried(
    model: nn.Module,
    inputs: Inputs,
    name: str,
    kind: Kind,
    base: Tensor,
    rows: Mapping[str, int],
    special: set[int],
) -> _Carried:
    value = inputs.tensors()[name]
    n0, n1 = value.shape[0], value.shape[1] if value.dim() > 1 else 1
    single = kind in ("ids", "features")
    points = [(0, 1), (n0 - 1, n1 // 2), (n0 // 2, n1 - 2)] if single else [(0, -1), (n0 - 1, -1)]
    floor = 1e3 * torch.finfo(base.dtype).eps * (float(base.nan_to_num().abs().max()) + 1e-30)
    shares: dict[tuple[int, int], list[float]] = {}
    changes = []
    for i, j in points:
        where = (i, j % n1) if single else (i,)
        new = main_output(perturbed(inputs, name, where, rows.get(name), special).call(model))
        if new.shape != base.shape:
            raise ValueError("the output's shape depends on the values")
        change = (new - base).nan_to_num().abs()
        changes.append(((i, j % n1), change))
        total = float(change.sum())
        for a, (n, index) in enumerate(((n0, i), (n1, j % n1))):
            for o in range(base.dim()):
                if base.shape[o] == n and total > 0 and (single or a == 0):
                    shares.setdefault((a, o), []).append(
                        float(change.select(o, index).sum()) / total
                    )
    moves = any(float(c.max()) > floor for _, c in changes)
    mean = {pair: sum(v) / len(v) for pair, v in shares.items()}
    best: tuple[int | None, int | None] = (None, None)
    top = -1.0
    for o0 in (None, *range(base.dim())):
        for o1 in (None, *range(base.dim())):
            if o0 is not None and o0 == o1:
                continue
            if any(o is not None and (a, o) not in mean for a, o in enumerate((o0, o1))):
                continue
            total = sum(
                mean[a, o] - 0.5 / n
                for a, (o, n) in enumerate(((o0, n0), (o1, n1)))
                if o is not None
            )
            if total > top + 1e-9:
                best, top = (o0, o1), total
    mixed = None
    if best[0] is not None and best[1] is not None:
        seen = [False, False]  # along axis 0, along axis 1
        for (i, j), change in changes:
            grid = change.movedim((best[0], best[1]), (0, 1)).flatten(2).amax(-1) > floor
            alone = grid.clone()
            alone[i, j] = False
            seen[0] |= bool(alone[:, j].any())
            seen[1] |= bool(alone[i].any())
        mixed = {(True, False): 0, (False, True): 1}.get((seen[0], seen[1]))
    score = 0.0
    if best[0] is not None and best[1] is not None:
        score = min(mean[0, best[0]], mean[1, best[1]])
    return _Carried(kind, best, score, moves, mixed)


def _decoder_like(names: Mapping[str, str], name: str) -> bool:
    return bool(re.search(r"decoder|tgt|trg|target", names.get(name, name).lower()))


def constant(inputs: Inputs, name: str) -> Inputs:
    """The same call with the same token everywhere in one argument."""
    value = inputs.tensors()[name]
    if value.is_floating_point():
        if value.dim() == 3:  # not one number: a norm would make zeros of it
            return inputs.replaced(name, value[:1, :1].expand_as(value).clone())
        return inputs.replaced(name, torch.full_like(value, 0.7))
    return inputs.replaced(name, torch.full_like(value, int(value.reshape(-1)[-1])))


def _position_axis(model: nn.Module, same: Inputs, own: _Carried) -> int | None:
    if own.axes[0] is None or own.axes[1] is None:
        return None
    out = main_output(same.call(model)).nan_to_num()
    floor = 1e3 * torch.finfo(out.dtype).eps * (float(out.abs().max()) + 1e-30)
    varied = [
        out.shape[o] > 1 and float((out - out.select(o, 0).unsqueeze(o)).abs().max()) > floor
        for o in own.axes
        if o is not None
    ]
    return {(True, False): 0, (False, True): 1}.get((varied[0], varied[1]))


def _is_square(mask: Tensor) -> bool:
    return (
        mask.dim() >= 2
        and mask.shape[-2] > 1
        and mask.shape[-1] > 1
        and (mask.dim() > 2 or mask.shape[-2] == mask.shape[-1])
    )


def _mask_of(inputs: Inputs, mask: str, others: Sequence[str]) -> str:
    keys = inputs.tensors()[mask].shape[-1]
    for name in others:
        if keys in inputs.tensors()[name].shape[:2]:
            return name
    return others[0]
