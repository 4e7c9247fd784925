"""Made-up inputs for any Transformer.

Names of arguments, annotations, ``main_input_name`` and ``config`` are what the author claims: they
decide what is tried first. What counts is that the forward runs and returns finite numbers. Batch
and lengths are small primes, unlike every other size of the model, so that axes can be told apart.
"""

import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import mask_reading
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MASK, as_mask, floats_of, is_mask
from addnorm.anatomy.outputs import main_output
from addnorm.anatomy.signature import FEATURES, SHOWN, SOURCE, gathers, parameters_of
from addnorm.anatomy.token_ids import special_ids, table_rows, word_ids
from addnorm.errors import Mendable
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line

SECONDS = 30.0  # for all attempts together


ATTEMPTS = 400  # calls of the model, all together


@final
class CannotMakeInputs(Mendable):
    """No call of the model was found that runs; says what was tried."""


def make_inputs(model: nn.Module) -> Inputs:
    """A call of ``model`` that runs and returns finite floating-point numbers.

    The model is called, in evaluation mode: give a copy. Modes and the RNG are put back. Where none
    is found in ``SECONDS`` and ``ATTEMPTS``, a ``CannotMakeInputs`` says what was tried.
    """
    with undisturbed(model, gradients=False):
        facts = _Facts(model)
        refusals: dict[str, str] = {}
        start = time.monotonic()
        for number, (label, inputs) in enumerate(_candidates(facts)):
            if label in refusals:
                continue
            why = _refusal(model, inputs)
            if why is None:
                return _fitted(model, inputs, facts)
            refusals[label] = why
            if number >= ATTEMPTS or time.monotonic() - start > SECONDS:
                break
    tries = list(refusals.items())
    lines = [f"  {label}: {why}" for label, why in [*tries[:4], *tries[-2:]][: len(tries)]]
    names = list(facts.parameters)
    arguments = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise CannotMakeInputs(
        f"no inputs were found with which {type(model).__name__}.forward({arguments}) runs; "
        f"{len(tries)} kinds of call were tried, among them\n"
        + "\n".join(dict.fromkeys(lines))
        + "\nGive a batch of your own: lint(model, inputs=tensor), lint(model, inputs=(a, b)) for "
        "positional or lint(model, inputs={'name': a}) for keyword arguments."
    )


# --- what there is to go by -----------------------------------------------------------------------

_SKIP = {"args", "kwargs", "self"}  # names of no input


_SQUARE = re.compile(r"tgt|trg|target|causal|look|future|attn_mask|decoder|dec_|subsequent|^tril")
"""Names of masks that are (T, T) rather than (B, T)."""


_IDS = re.compile(r"ids?$|idx|tok|^src$|^tgt$|^trg$|source|target|text|words|seq|^y$")
"""Names of arguments that are token ids where the model has a table, whatever its first layer."""


_IMAGE = re.compile(r"pixel|image|^imgs?$|picture|frames?$")
"""Names of arguments that are images."""


_WAVE = re.compile(r"input_values|wave|audio|speech|signal")
"""Names of arguments that are sound, as a wave or as a spectrogram."""


_NOT_TRIED = re.compile(
    r"label|cache|past|return|output_|head_mask|loss|embeds|weights|inputs_embeds|encoder_outputs"
)
"""Names of arguments that are not given unless the signature requires them."""


@final
class _Facts:
    """The model's signature, sizes and claims."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config = getattr(model, "config", None)
        parameters = parameters_of(model.forward)
        if parameters is None:  # Python cannot tell: one argument is the best guess
            parameters = parameters_of(lambda x: x) or {}
        self.parameters = {name: p for name, p in parameters.items() if not gathers(p)}
        self.open = len(self.parameters) < len(parameters)  # it takes *args or **kwargs
        self.required = [n for n, p in self.parameters.items() if p.default is p.empty]
        self.modules = list(model.named_modules())
        at = next(itertools.chain(model.parameters(), model.buffers()), torch.zeros(()))
        self.device = at.device
        floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
        self.dtype = floats[0] if floats else torch.float32
        sizes = self._sizes()
        self.batch = next((n for n in (3, 2, 5) if n not in sizes), 3)
        primes = [n for n in (7, 11, 13, 17, 19, 23) if n not in sizes and n != self.batch]
        self.time, self.source = [*primes, 7, 11][:2]  # lengths, see ``_Sizes``
        self.tables = [m for _, m in self.modules if isinstance(m, nn.Embedding)]
        lookups = [p for n, p in model.named_parameters() if p.dim() == 2 and _TABLE.search(n)]
        self.has_tables = bool(self.tables or lookups)

    def claim(self, *names: str) -> Any:
        """The value of the first of these names that the config or else the model itself states;
        None: neither does."""
        for owner in (self.config, self.model):
            for name in names:
                value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
                if value is not None and not callable(value):
                    return value
        return None

    def _sizes(self) -> set[int]:
        """Every size that the model has, by its parameters, its modules' settings and its config:
        an axis of one of these would not be told from batch or time. Ids are no sizes."""
        sizes = {n for p in self.model.parameters() for n in p.shape}
        for _, module in self.modules:
            sizes |= {
                v
                for k, v in vars(module).items()
                if type(v) is int and not re.search("id$|idx|index", k)
            }
        claims = (
            self.config if isinstance(self.config, dict) else getattr(self.config, "__dict__", {})
        )
        return sizes | {v for k, v in claims.items() if type(v) is int and not k.endswith("_id")}

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
            for owner in (self.config, *(m for _, m in self.modules[:20])):  # the outermost say it
                value = getattr(owner, name, None)
                if type(value) is int:
                    fixed.append(value)
        more = [n for n in dict.fromkeys(fixed) if 2 <= n <= 2048]  # longer ones take too long
        pairs = [(self.time, self.source), (5, 5), (3, 3)]
        return list(dict.fromkeys(pairs + [(n, n) for n in more]))

    def widths(self) -> list[int]:
        """Up to six feature widths, in the order of the modules that take them."""
        widths: list[int] = []
        for _, m in self.modules:
            if isinstance(m, nn.Linear):
                widths.append(m.in_features)
            elif isinstance(m, nn.LayerNorm):
                widths.append(m.normalized_shape[-1])
            elif isinstance(m, nn.MultiheadAttention):
                widths.append(m.embed_dim)
            elif isinstance(m, nn.Conv1d):
                widths.append(m.in_channels)
            elif isinstance(m, nn.LSTM | nn.GRU):
                widths.append(m.input_size)
        for name in ("d_model", "dim", "hidden_size", "n_embd", "embed_dim", "width"):
            value = self.claim(name)
            if type(value) is int:
                widths.append(value)
        if not widths:
            widths += [n for p in self.model.parameters() for n in p.shape]
        return list(dict.fromkeys(n for n in widths if n > 0))[:6] or [8]

    def images(self) -> list[tuple[int, int, int]]:
        """Up to ten (channels, height, width) to try, those that the model fixes first."""
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
                if p.dim() in (2, 3) and step >= 4:  # a table with a position for each patch
                    for extra in (1, 0, 2):  # class and distillation tokens
                        side = math.isqrt(max(p.shape[-2] - extra, 0))
                        if side > 1 and side * side + extra == p.shape[-2]:
                            sizes.append((c, side * step, side * step))
            few = [4 * step] if step >= 4 else []  # smaller steps are those of a deep front end
            # then sizes of images that are usual
            sizes += [(c, side, side) for side in (*few, 64, 32, 28, 224)]
        fit = [s for s in dict.fromkeys(sizes) if s[1] * s[2] <= 512 * 512]  # for time and memory
        return fit[:10]

    def mels(self) -> list[tuple[int, int]]:
        """(bins, frames) of a spectrogram, to try in both orders."""
        conv = next((m for _, m in self.modules if isinstance(m, nn.Conv1d)), None)
        bins = self.claim("num_mel_bins", "n_mels", "input_feat_per_channel")
        bins = bins or (conv.in_channels if conv is not None else 80)
        frames = [self.claim("max_source_positions"), self.claim("max_length")]
        fixed = [k * n for n in frames if type(n) is int for k in (2, 1)]
        # Whisper takes 3000 frames; with far more a call takes too long
        return [(bins, n) for n in dict.fromkeys([*fixed, 2 * self.source]) if n <= 6000]

    def waves(self) -> list[int]:
        """Numbers of samples that give a few dozen frames: as many as are masked in training."""
        need = 23  # frames that the last convolution gives
        convs = [
            (m.kernel_size[0], m.stride[0]) for _, m in self.modules if isinstance(m, nn.Conv1d)
        ]
        strided = [c for c in convs if c[1] > 1]
        claimed = self.claim("conv_kernel"), self.claim("conv_stride")
        if all(isinstance(c, tuple | list) for c in claimed):
            strided = list(zip(*claimed, strict=False))
        for kernel, stride in reversed(strided):
            need = (need - 1) * stride + kernel
        # else a quarter of a second and a second, of 16,000 samples each second
        return list(dict.fromkeys([min(need, 20000), 4000, 16000]))


_TABLE = re.compile(r"emb|tok|wte|table|lookup", re.IGNORECASE)
"""In names of matrices that are looked up in, where there is no ``nn.Embedding``."""


_LENGTHS = ("block_size", "context_length", "max_len", "max_seq_len", "seq_len", "max_length")
"""Attributes of a model or config that may say the only length it takes."""


# --- calls to try ---------------------------------------------------------------------------------


@final
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


@final
@dataclass(frozen=True)
class _Value:
    """One way to make one argument."""

    label: str
    """What it is, for the list of failed attempts; two calls with equal labels are one attempt."""
    make: Callable[[_Sizes], Any]


def _candidates(facts: _Facts) -> Iterator[tuple[str, Inputs]]:
    """(label, call) of every call to try, made as it is asked for, the likeliest first."""
    for time_, source in facts.lengths():
        sizes = _Sizes(facts.batch, time_, source, facts.dtype)
        for names in _selections(facts):
            ways = [_ways(name, facts, names) for name in names]
            for values in _by_rank(ways):
                label = ", ".join(f"{n}={v.label}" for n, v in zip(names, values, strict=True))
                yield f"{label} (T={time_})", _call(facts, names, [v.make(sizes) for v in values])


def _selections(facts: _Facts) -> Iterator[list[str]]:
    """Lists of names of arguments to give: the required ones; where there are none, what is
    claimed. A forward that only gathers gets one, by the name "args"."""
    usable = [n for n in facts.parameters if not _NOT_TRIED.search(n)]
    main = getattr(facts.model, "main_input_name", None)
    base = facts.required
    if not base or (isinstance(main, str) and main in facts.parameters and main not in base):
        if not isinstance(main, str) or main not in facts.parameters:
            main = next((n for n in usable if n not in _SKIP), None)
        if main is None:
            yield ["args"] if facts.open else []
            return
        base = [*facts.required, main]
    decoder = [n for n in ("decoder_input_ids", "tgt", "target", "trg") if n in usable]
    more = [n for n in decoder if n not in base][:1]
    both = [n for n in ("pixel_values", "input_ids", "input_features") if n in usable]
    tries = [[*base, *more]] if more else []
    tries.append(base)
    if [n for n in both if n not in base]:
        tries.append(list(dict.fromkeys([*base, *both])))
    optional_masks = [n for n in usable if MASK.search(n) and n not in base]
    if optional_masks:  # optional by signature and needed all the same
        tries.append([*base, *more, *optional_masks[:2]])
    before = set()
    for names in tries:
        ordered = [n for n in facts.parameters if n in names] or names
        if tuple(ordered) not in before:
            before.add(tuple(ordered))
            yield ordered


def _by_rank(ways: Sequence[Sequence[_Value]]) -> Iterator[tuple[_Value, ...]]:
    """One of its ``ways`` for each argument, combinations of first choices first, ``ATTEMPTS`` at
    most; of a great many combinations only the first 20000 are ranked, to save time."""
    places = itertools.product(*(range(len(w)) for w in ways))
    ranked = sorted(itertools.islice(places, 20000), key=lambda p: (sum(p), max(p, default=0)))
    for place in ranked[:ATTEMPTS]:
        yield tuple(w[i] for w, i in zip(ways, place, strict=True))


def _call(facts: _Facts, names: Sequence[str], values: Sequence[Any]) -> Inputs:
    """The call that gives ``values`` to the arguments ``names``, on the model's device: by place as
    long as the signature allows, then by name. A name that it does not have is a place in
    ``*args``."""
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
    """The values to try for one argument, the likeliest first; ``names`` are all arguments that the
    call has, by which it is told whether this one belongs to an encoder's input.

    An annotation as a number or a truth value decides first, then a name that says what stands
    beside a sequence, then what a sequence holds.
    """
    low = name.lower()
    parameter = facts.parameters.get(name)
    kind = parameter.annotation if parameter is not None else None
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    alone = sum(not MASK.search(n.lower()) for n in names) == 1
    # transformers' names for the encoder, beside which the decoder has names of its own
    encoded = low in ("input_ids", "attention_mask") and "decoder_input_ids" in names
    # a source is one beside another sequence: alone, an input of any name is the input
    source = encoded or (bool(SOURCE.search(low)) and not alone)
    if kind in ("int", "float", "bool"):
        plain = {"int": 0, "float": 1.0, "bool": False}[kind]
        return [_Value(kind, lambda s: plain)]
    return _beside(low, source) or _contents(low, facts, source, first=name == names[0])


def _beside(low: str, source: bool) -> list[_Value]:
    """For what is said of a sequence beside it (masks, positions, lengths); [] for others.

    ``low`` is the argument's name in lower case; with ``source`` it belongs to the encoder's input.
    """
    length = "S" if source else "T"
    nothing = _Value("None", lambda s: None)
    if MASK.search(low):
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
    return []


def _contents(low: str, facts: _Facts, source: bool, *, first: bool) -> list[_Value]:
    """For what is read itself: ids, features, images, waves; the arguments as in ``_beside``.

    ``first``: it is the first argument of the call, and so rather the ids than what goes with them.
    """
    length = "S" if source else "T"
    ids = [_Value("ids", lambda s: torch.randint(0, 2, (s.batch, s.of(length))))]
    widths = facts.widths()
    features = [_normal(f"features of {w}", "B", length, w) for w in widths]
    if facts.has_tables and not first and SHOWN.search(low):  # not as many as there are tokens
        features = [_normal(f"{w} shown", "B", "S", w) for w in widths] + features
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
    if facts.has_tables and not FEATURES.search(low):
        return [*ids, *features, *images]
    if _IDS.search(low) and facts.has_tables:
        return [*ids, *features]
    entry = next(
        (m for _, m in facts.modules if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)), None
    )
    if isinstance(entry, nn.Conv2d):
        return [*images, *features, *ids]
    if isinstance(entry, nn.Conv1d):
        return [*features, *channels, *waves, *ids]
    return [*features, *second, *images, *ids, *channels]


def _normal(label: str, *shape: int | str) -> _Value:
    """Normal numbers of a shape in which letters stand for sizes."""
    return _Value(label, lambda s: torch.randn([s.of(n) for n in shape], dtype=s.dtype))


def _masks(name: str, *, square: bool, source: bool) -> list[_Value]:
    """Masks that keep everything or, if ``square``, the past, before the others; with ``source``
    they are of the encoder's input. True keeps; where the model reads it the other way round,
    ``_masked_rightly`` turns it."""

    length = "S" if source else "T"

    def padding(*axes: int) -> Callable[[_Sizes], Tensor]:
        """``axes`` are 0 for the batch, 1 for an axis of one, 2 for the keys."""

        def make(s: _Sizes) -> Tensor:
            shape = [{0: s.batch, 1: 1, 2: s.of(length)}[a] for a in axes]
            return torch.ones(shape, dtype=torch.bool)

        return make

    def pairs(*front: int) -> Callable[[_Sizes], Tensor]:
        """(queries, keys), behind axes as in ``padding``."""

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
        _Value("mask (B, 1, T, T)", pairs(0, 1)),
        _Value("mask (B, T, T)", pairs(0)),
        _Value("mask (T, T)", pairs()),
    ]
    if re.search("pad|valid|key", name):
        pads = [pads[2], *pads[:2]]
    ways = [*squares, *pads] if square else [*pads, *squares]
    return [*ways, *map(_int_mask, ways)]


def _int_mask(mask: _Value) -> _Value:
    """A mask of 1 and 0 instead of booleans, for models that compute 1 - mask."""
    return _Value(f"{mask.label} of int", lambda s: mask.make(s).long())


# --- does it run, and making it better ------------------------------------------------------------


def _refusal(model: nn.Module, inputs: Inputs) -> str | None:
    """Why this call does not do, or None.

    Numbers that are not finite are a reason only if there is a mask and the model does not run with
    its opposite: a broken model is to be looked at all the same.
    """
    try:
        out = main_output(inputs.call(model))
    except Exception as error:  # any failure of foreign code means: try another call
        return error_in_a_line(error, 160)
    if out.numel() == 0:
        return "an empty output"
    tensors = inputs.tensors()
    masks = [n for n, v in tensors.items() if is_mask(n, v)]
    # The most axes that an output can have: ids become vectors. Without inputs but masks, any.
    axes = max(
        (v.dim() + (not v.is_floating_point()) for n, v in tensors.items() if n not in masks),
        default=9,
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


def _flipped(inputs: Inputs) -> Inputs:
    """The call with the opposite of each argument of booleans, or of 0 and 1 that is a mask."""
    for name, value in inputs.tensors().items():
        if value.dtype is torch.bool:
            inputs = inputs.replaced(name, ~value)
        elif is_mask(name, value) and not value.is_floating_point():
            inputs = inputs.replaced(name, 1 - value)
    return inputs


def _fitted(model: nn.Module, inputs: Inputs, facts: _Facts) -> Inputs:
    """A call that runs, with ids from all of the vocabulary where the model takes them, and masks
    the right way round."""
    special = special_ids(model)
    vocabulary = facts.claim("vocab_size")
    generator = torch.Generator().manual_seed(1)
    for name, rows in table_rows(model, inputs).items():
        ids = inputs.tensors()[name]
        # Tried in this order: a model may refuse ids that its table has rows for.
        limits = [rows, vocabulary if type(vocabulary) is int and vocabulary < rows else rows // 2]
        for limit in limits:
            words = torch.tensor(word_ids(max(limit, 2), special))
            lines = [  # no word twice in a line, where there are enough
                words[torch.randperm(len(words), generator=generator).repeat(-(-n // len(words)))]
                for n in [ids.shape[-1]] * (ids.numel() // ids.shape[-1])
            ]
            ids_drawn = torch.stack([line[: ids.shape[-1]] for line in lines]).reshape(ids.shape)
            better = inputs.replaced(name, ids_drawn.to(ids))
            if _refusal(model, better) is None:
                inputs = better
                break
    return _masked_rightly(model, inputs)


def _masked_rightly(model: nn.Module, inputs: Inputs) -> Inputs:
    """The call with its masks, in which True or 1 keeps, turned or made additive where the model
    reads them so."""
    for name, value in inputs.tensors().items():
        if not is_mask(name, value):
            continue
        reading = mask_reading(model, inputs, name)
        if reading is None:
            continue
        keep = value.bool()
        inputs = inputs.replaced(name, as_mask(keep, reading, value.dtype, floats_of(model)))
    return inputs
