"""The register of designs: from a name or a text to a scheme, and what there is to say about it.

``schemes.py`` fills it with two decorators. A text is read, never evaluated.
"""

import ast
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast, final, get_type_hints

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from addnorm.branches import MLP, Attention
from addnorm.checks import MOST
from addnorm.errors import Mendable, unknown_name
from addnorm.norms import Norm
from addnorm.stream import Scheme, Site, Stack, Sublayer, Wiring
from addnorm.words import did_you_mean, plural

F = TypeVar("F", bound=Callable[..., Any])

LARGEST = 1e38  # of a number in the text of a scheme: float32 and bfloat16 hold it
LONGEST = 1000  # characters of the text of a scheme: any that means something is far shorter


@final
class SchemeError(Mendable):
    """A text that names no scheme, or a scheme that cannot be built as asked."""


# --- the register ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class SchemeEntry:
    """One function of schemes.py and where it comes from."""

    name: str
    function: Callable[..., Any]
    equation: str
    paper: str
    year: int
    plain: bool  # the function is the scheme itself; otherwise it returns one

    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Name -> (type, default or inspect.Parameter.empty); none for a plain scheme."""
        if self.plain:
            return {}
        hints = get_type_hints(self.function)
        signature = inspect.signature(self.function)
        return {n: (hints[n], p.default) for n, p in signature.parameters.items()}

    def usage(self) -> str:
        """How the entry is written in the text of a scheme: its name and arguments."""
        if not self.parameters():
            return self.name
        arguments = [
            n if default is inspect.Parameter.empty else f"{n}={default}"
            for n, (_, default) in self.parameters().items()
        ]
        return f"{self.name}({', '.join(arguments)})"


_designs: dict[str, SchemeEntry] = {}
_combinators: dict[str, SchemeEntry] = {}


def design(equation: str, paper: str, year: int) -> Callable[[F], F]:
    """Register a design: a function Site -> Wiring, or one that returns such a function."""
    return _register(_designs, equation, paper, year)


def combinator(equation: str, paper: str, year: int) -> Callable[[F], F]:
    """Register a function from a scheme to a scheme."""
    return _register(_combinators, equation, paper, year)


def _register(
    where: dict[str, SchemeEntry], equation: str, paper: str, year: int
) -> Callable[[F], F]:
    """A decorator that puts a function into ``where`` by its name, with what is said of it. One
    that returns a Wiring is a scheme itself; any other returns a scheme, and comes back guarded by
    ``_family``."""

    def add(function: F) -> F:
        plain = get_type_hints(function)["return"] is Wiring
        name = function.__name__
        guarded = function if plain else _family(function)
        where[name] = SchemeEntry(name, guarded, equation, paper, year, plain)
        return guarded

    return add


def _family(function: F) -> F:
    """A function that returns a scheme, as it is, but for a ``SchemeError`` where it is called with
    a Site, as if it were a scheme itself."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Site):
            usage = entry(function.__name__).usage()
            raise SchemeError(f"{function.__name__} is a family, to be called first: {usage}")
        return function(*args, **kwargs)

    return cast(F, guarded)


def names() -> list[str]:
    """The designs, in the order of schemes.py."""
    return list(_designs)


def combinators() -> list[str]:
    """The functions from a scheme to a scheme, in the order of schemes.py."""
    return list(_combinators)


def entry(name: str) -> SchemeEntry:
    """What is registered under a name, design or combinator; else a ``SchemeError``."""
    entries = _designs | _combinators
    if name not in entries:
        raise SchemeError(unknown_name("scheme", name, entries))
    return entries[name]


# --- reading a text -------------------------------------------------------------------------------


def parse(text: str) -> Scheme:
    """A scheme from text, such as ``"drop_path(mix_ln(0.25), p=0.1)"``.

    Names of designs and combinators, numbers, True and False; positional or named arguments.
    Anything else, and any value of the wrong type, is a ``SchemeError`` that says what would do.
    """
    return _scheme(_tree(text), text)


def _tree(text: str) -> ast.expr:
    """The syntax tree of a scheme's text, of which ``_scheme`` takes a small part; a
    ``SchemeError`` for what is no expression of Python."""
    if not isinstance(text, str):
        raise SchemeError(f"a scheme is named by text, got {type(text).__name__}: {text!r}")
    if len(text) > LONGEST:
        raise SchemeError(f"a scheme's text may have {LONGEST} characters, got {len(text)}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else error  # no place in a file
        raise SchemeError(
            f"cannot read {text!r}: write a name or name(argument, ...), {why}"
        ) from None


def _scheme(node: ast.expr, text: str) -> Scheme:
    """The scheme that a node of the tree stands for, its arguments read and checked; else a
    ``SchemeError``. ``text`` is the whole, for messages."""
    if isinstance(node, ast.Name):
        design, by_place, by_name = entry(node.id), [], []
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        design, by_place, by_name = entry(node.func.id), node.args, node.keywords
    else:
        raise SchemeError(
            f"cannot read {_source(node, text)!r} in {text!r}: expected a name or name(...)"
        )
    parameters = design.parameters()
    if len(by_place) > len(parameters):
        raise SchemeError(
            f"{design.name} takes {plural(len(parameters), 'argument')}, got {len(by_place)}: "
            f"{design.usage()}"
        )
    values = dict(zip(parameters, by_place, strict=False))
    for keyword in by_name:
        if keyword.arg is None or keyword.arg not in parameters:
            argument = "**" if keyword.arg is None else repr(keyword.arg)
            there = f"there are {', '.join(parameters)}" if parameters else "it takes none"
            hint = did_you_mean(keyword.arg, parameters) or there
            raise SchemeError(f"{design.name} has no argument {argument}; {hint}")
        if keyword.arg in values:
            raise SchemeError(f"{design.name}: argument {keyword.arg!r} is given twice")
        values[keyword.arg] = keyword.value
    for name, (_, default) in parameters.items():
        if default is inspect.Parameter.empty and name not in values:
            raise SchemeError(f"{design.name} needs {name!r}: {design.usage()}")
    arguments = {
        name: _value(design.name, name, parameters[name][0], value, text)
        for name, value in values.items()
    }
    scheme: Scheme = design.function if design.plain else design.function(**arguments)
    return scheme


def _value(owner: str, name: str, value_type: Any, node: ast.expr, text: str) -> Any:
    """The value of the argument ``name`` of a design, ``owner``: a scheme, or a constant of the
    ``value_type`` that the design's function is annotated with, where a whole number does for a
    float; else a ``SchemeError``."""
    if value_type is Scheme or value_type == Scheme:
        return _scheme(node, text)
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = None  # refused below: it is of none of the types
    if value_type is float and type(value) in (int, float) and -LARGEST < value < LARGEST:
        return float(value)
    if value_type is not float and type(value) is value_type and -MOST <= value <= MOST:
        return value
    kinds = {float: "a number", int: "a whole number", bool: "True or False"}
    large = type(value) in (int, float) and not -MOST <= value <= MOST and value_type is not bool
    limit = f" below {LARGEST if value_type is float else MOST:g}" if large else ""
    raise SchemeError(
        f"{owner}: {name} must be {kinds[value_type]}{limit}, got {_source(node, text)} in {text!r}"
    )


def _source(node: ast.expr, text: str) -> str:
    return ast.get_source_segment(text.strip(), node) or ast.dump(node)


# --- what there is to say about it ----------------------------------------------------------------


@final
@dataclass(frozen=True)
class SchemeExplanation:
    """What ``explain`` found: read off the wiring and counted on an instance without memory."""

    text: str
    equations: list[str]
    papers: list[str]
    notes: list[str]
    normalized: list[str]  # where, for each kind of site that differs
    init: str
    final_norm: bool
    shape: dict[str, int]
    parameters: int  # of the whole stack
    extra_parameters: int  # beyond the branches: norms and joins
    matmul_flops: int  # forward, of one sequence
    elementwise: int  # entries written by everything else, forward
    saved_bytes: int  # kept for backward, float32

    def __str__(self) -> str:
        lines = [self.text, *(f"  {e}" for e in self.equations)]
        lines += [f"  paper: {p}" for p in self.papers]
        lines += [f"  {n}" for n in self.notes]
        lines += ["the stream is normalized:", *(f"  {n}" for n in self.normalized)]
        lines += [f"init: {self.init}", f"final norm: {'yes' if self.final_norm else 'no'}"]
        shape = ", ".join(f"{k} {v}" for k, v in self.shape.items())
        lines += [
            f"counted for {shape}:",
            f"  {self.parameters:,} parameters, {self.extra_parameters:,} in norms and joins;",
            f"  forward: {self.matmul_flops:,} FLOPs in matrix products,",
            f"  {self.elementwise:,} entries written by everything else (reference norms, eager),",
            f"  {self.saved_bytes:,} bytes kept for backward in float32",
        ]
        return "\n".join(lines)


def explain(
    text: str, *, dim: int = 768, n_heads: int = 12, blocks: int = 12, tokens: int = 1024
) -> SchemeExplanation:
    """Everything there is to say about a design or a composition, named by ``text`` as for
    ``parse``, at a shape of your choice.

    Parameters, FLOPs and saved activations are counted on a decoder on the meta device: nothing is
    allocated and nothing is estimated.
    """
    tree = _tree(text)
    scheme = _scheme(tree, text)
    parts = [
        entry(node.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id in _designs | _combinators
    ]
    with torch.device("meta"):
        attention = partial(Attention, dim, n_heads, causal=True)
        stack = Stack(
            [("attn", attention), ("mlp", partial(MLP, dim, 4 * dim))] * blocks, dim, scheme
        )
        x = torch.empty(1, tokens, dim)
    total = sum(p.numel() for p in stack.parameters())
    branch = sum(
        p.numel()
        for sub in stack.sublayers()
        for name, p in sub.branch.named_parameters()
        if not name.startswith("inner.")
    )
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        stack(x)
    with _Elementwise() as rest, torch.no_grad():
        stack(x)
    memory = _Saved(stack)
    with memory:
        stack(x.requires_grad_())
    rule = stack.sublayers()[0].init
    return SchemeExplanation(
        text=text,
        equations=[f"{p.name}: {p.equation}" for p in parts],
        papers=[f"{p.paper} ({p.year})" for p in parts],
        notes=[" ".join(inspect.getdoc(p.function).split()) for p in parts],  # type: ignore[union-attr]
        normalized=_normalized_sites(stack),
        init=getattr(rule, "text", "custom"),
        final_norm=stack.final is not None or _has_norm(stack.exit),
        shape={"dim": dim, "heads": n_heads, "blocks": blocks, "tokens": tokens},
        parameters=total,
        extra_parameters=total - branch,
        matmul_flops=flops.get_total_flops(),
        elementwise=rest.entries,
        saved_bytes=memory.bytes,
    )


def _normalized_sites(stack: Stack) -> list[str]:
    """Where the stream is normalized, a line for each run of blocks that agree, then the ends."""
    lines: list[str] = []
    runs: list[tuple[int, int, str]] = []  # first block, last block, what is said
    for block in range(stack.sublayers()[-1].site.block + 1):
        places: dict[str, list[str]] = {}
        for sub in stack.sublayers():
            if sub.site.block == block:
                places.setdefault(_places(sub), []).append(sub.site.kind)
        text = "; ".join(f"{' and '.join(kinds)}: {place}" for place, kinds in places.items())
        if runs and runs[-1][2] == text:
            runs[-1] = (runs[-1][0], block, text)
        else:
            runs.append((block, block, text))
    for first, last, text in runs:
        which = f"block {first + 1}" if first == last else f"blocks {first + 1} to {last + 1}"
        lines.append(f"{which}: {text}")
    if stack.enter is not None and _has_norm(stack.enter):
        lines.append("what enters the stack")
    if stack.final is not None:
        lines.append("at the end, by the final norm")
    if _has_norm(stack.exit):
        lines.append("at the end, the second stream")
    return lines


def _places(sub: Sublayer) -> str:
    """Where a sublayer has a norm, in words."""
    places = [
        "before the branch" if sub.pre is not None else "",
        "inside the branch" if getattr(sub.branch, "inner", None) is not None else "",
        "the branch's output" if sub.out is not None else "",
        "after the addition" if sub.post is not None else "",
        sub.join.normalizes,
    ]
    return ", ".join(p for p in places if p) or "nowhere"


def _has_norm(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, Norm) for m in module.modules())


@final
class _Elementwise(TorchDispatchMode):
    """Counts the entries written by everything that is neither a matrix product nor a view."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation; counts the first of its outputs."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not any(p in name for p in ("mm", "bmm", "attention", "empty")):
            first = out[0] if isinstance(out, tuple) else out
            if isinstance(first, Tensor):
                self.entries += first.numel()
        return out


@final
class _Saved(saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self._pack, lambda t: t)
        self.bytes = 0
        self._storages = {p.untyped_storage()._cdata for p in module.parameters()}
        self._alive: list[Tensor] = []  # a freed storage's address must not come again

    def _pack(self, t: Tensor) -> Tensor:
        """Called with each tensor that autograd keeps; counts it, and returns it as it is."""
        storage = t.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self._alive.append(t)
            self.bytes += storage.nbytes()
        return t
