"""What a forward computes: every operation, its tensors, and the module it ran in.

``record`` runs a function and writes down the aten operations below autograd, as a graph: values
know the operation they came from and those that read them. Nothing is assumed of the code that ran:
handwritten loops, functional calls, views and writes in place all end up as operations.
``altered`` runs it once more and changes what one operation receives, which shows what depends on
what by cause, not by reading.

Attention is recorded as the products and the softmax that it is: the fused kernels are kept away
meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

Key = tuple[int, int | torch.SymInt, tuple[int, ...], tuple[int, ...], torch.dtype]
"""A piece of memory as a tensor looks at it: storage, offset, shape, strides, dtype."""


@final
@dataclass(eq=False, slots=True)
class Value:
    """A tensor at one moment: what it holds is kept even if it is written over later."""

    number: int
    """In the order in which values came to be."""
    tensor: Tensor
    op: "Op | None"
    """What computed it; None: it was there before, or was made from nothing."""
    name: str = ""
    """The parameter's or buffer's path, if it is one."""
    readers: list["Op"] = field(default_factory=list)
    """The operations that it went into, so far."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the tensor."""
        return tuple(self.tensor.shape)

    def rms(self) -> float:
        """The root of the mean of its squares."""
        return float(self.tensor.detach().double().square().mean().sqrt())


@final
@dataclass(eq=False, slots=True)
class Op:
    """One aten operation, as it ran."""

    place: tuple[Any, int]
    """Which call of which overload it was. By overload, because recording adds a few operations of
    its own: autograd detaches what somebody else holds too."""
    name: str
    """Without overload: "add", "native_layer_norm"; in place as out of place: "add" too."""
    args: tuple[Any, ...]
    """As given, with values for tensors."""
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: str
    """The path of the innermost module whose forward ran it."""
    call: "Call | None"
    """That call of that module; None: it ran outside of all."""

    def __repr__(self) -> str:
        shapes = ", ".join(f"%{v.number}{list(v.shape)}" for v in self.inputs)
        outs = ", ".join(f"%{v.number}{list(v.shape)}" for v in self.outputs)
        return f"{outs} = {self.name}({shapes}) in {self.module!r}"


@final
@dataclass(eq=False, slots=True)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    parent: "Call | None"
    """The call around it; None: there is none."""
    first: int
    """Operations first to last - 1 ran inside."""
    last: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()


@final
@dataclass(frozen=True)
class Trace:
    """One forward: its operations, and the calls of modules that they ran in."""

    ops: tuple[Op, ...]
    calls: tuple[Call, ...]
    result: Any
    """What the function returned, with values for tensors."""
    values: tuple[Value, ...]
    outputs: tuple[Tensor, ...]
    """The tensors that it returned, with their place in autograd's graph."""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """What the outermost call was given."""
        return next((c.inputs for c in self.calls if c.parent is None), ())

    def parameters(self) -> set[str]:
        """The paths of parameters and buffers that were read."""
        return {v.name for v in self.values if v.name and v.readers}

    def ancestors(self, *values: Value) -> set[Value]:
        """Everything that some value was computed from, itself included."""
        ancestors, todo = set(values), list(values)
        while todo:
            op = todo.pop().op
            for v in op.inputs if op is not None else ():
                if v not in ancestors:
                    ancestors.add(v)
                    todo.append(v)
        return ancestors

    def descendants(self, *values: Value) -> set[Value]:
        """Everything that was computed from some value, itself included."""
        descendants, todo = set(values), list(values)
        while todo:
            for op in todo.pop().readers:
                for v in op.outputs:
                    if v not in descendants:
                        descendants.add(v)
                        todo.append(v)
        return descendants


def record(run: Callable[[], Any], model: nn.Module) -> Trace:
    """Run it, and write down what was computed; ``model`` names the modules and parameters. Modes,
    gradients and random numbers are the caller's to set, and what ``run`` raises goes through."""
    recorder = _Recorder(model)
    with _plain_attention(), recorder.hooks(), recorder:
        result = run()
    return recorder.trace(result)


def altered(
    run: Callable[[], Any],
    change: Mapping[Op, Callable[[tuple[Any, ...]], tuple[Any, ...]]],
) -> Any:
    """Run it again, with other arguments for some operations of its trace, and return what it does.

    ``change`` is by operation of a ``record`` of the same run; each function gets the positional
    arguments, with tensors, and returns as many. An operation counts by its place, so the run must
    take the same way up to there.
    """
    with _plain_attention(), _Altering(change):
        return run()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Within it attention runs as products and a softmax; torch's fused encoder layer is off as
    well."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _counted(func: Any) -> bool:
    """Whether an operation is one of the forward's computation, and no question of size."""
    return func.namespace != "prim" and not func.__name__.startswith(("sym_", "_local_scalar"))


def _attention(arguments: Mapping[str, Any], mask: Tensor | None) -> Tensor:
    """softmax(scale q k^T + mask) v, operation by operation.

    ``arguments`` are those of torch's fused operation, by its schema's names; ``mask`` is boolean
    (True is seen) or added.
    """
    q, k, v = arguments["query"], arguments["key"], arguments["value"]
    scale, heads = arguments.get("scale"), q.shape[:-2]
    if k.shape[:-2] != heads:  # grouped queries
        k, v = (t.repeat_interleave(heads[-1] // t.shape[-3], -3) for t in (k, v))
    scaled = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.bmm(scaled.flatten(0, -3), k.transpose(-2, -1).flatten(0, -3))
    scores = scores.unflatten(0, heads)
    if arguments.get("is_causal", False):
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    if mask is not None:
        boolean = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if boolean else scores + mask
    weights = torch.ops.aten._softmax(scores, -1, False)  # below autograd softmax stays one word
    return torch.bmm(weights.flatten(0, -3), v.flatten(0, -3)).unflatten(0, heads)


@final
class _Altering(TorchDispatchMode):
    """Counts operations as ``_Recorder`` does, and gives those in ``change`` other arguments."""

    def __init__(self, change: Mapping[Op, Callable[[tuple[Any, ...]], tuple[Any, ...]]]) -> None:
        super().__init__()
        self.change = {op.place: new for op, new in change.items()}
        self.counts: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each operation. Its place is the one that ``_Recorder`` gave it."""
        place = func, self.counts[func]
        self.counts[func] += 1
        if place in self.change:
            args = self.change[place](args)
        return func(*args, **(kwargs or {}))


@final
class _Recorder(TorchDispatchMode):
    """Tensors are told apart by the memory they look at: autograd gives views new objects."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.names: dict[Key, str] = {}
        for name, tensor in (*model.named_buffers(), *model.named_parameters()):
            if (key := _key(tensor)) is not None:
                self.names[key] = name
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.values: list[Value] = []
        self.latest: dict[Key, Value] = {}
        self.writes: dict[int, list[tuple[int, Value]]] = {}  # storage -> (when, what was written)
        self.counts: Counter[Any] = Counter()
        self.alive: list[Tensor] = []  # so that no memory is used for a second tensor

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Within it the recorder knows the stack of modules whose forward runs; the hooks are
        removed at the end."""
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                for handle in self._hooked(path, module):
                    stack.callback(handle.remove)
            yield

    def _hooked(self, path: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Register hooks that open and close a ``Call`` of a module at a path; returns their
        handles."""

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            parent = self.stack[-1] if self.stack else None
            inputs = tuple(
                self.value(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)
            )
            call = Call(path, module, parent, len(self.ops), len(self.ops), inputs)
            self.calls.append(call)
            self.stack.append(call)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            while self.stack:  # a forward that raised inside, and was caught, left its call here
                call = self.stack.pop()
                call.last = len(self.ops)
                if call.module is module:
                    call.outputs = tuple(
                        self.value(t) for t in tree_leaves(out) if isinstance(t, Tensor)
                    )
                    break

        return (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        )

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor holds now; one that is not known yet, or was written to by way of
        another view, gets a new value in the graph."""
        key = _key(tensor)
        latest = self.latest.get(key) if key is not None else None
        if latest is None:
            latest = self._new(tensor, None, self.names.get(key, "") if key is not None else "")
        later = [
            v
            for when, v in self.writes.get(key[0] if key else 0, ())
            if when > latest.number and v is not latest
        ]
        if not later:
            return latest
        # Written through another view of the same memory: the value is both, by an operation of
        # our own that is not counted.
        call = self.stack[-1] if self.stack else None
        path = call.path if call else ""
        op = Op((None, -1), "alias", (latest, *later), {}, (latest, *later), (), path, call)
        new = self._new(tensor, op)
        op.outputs = (new,)
        self.ops.append(op)
        for v in op.inputs:
            v.readers.append(op)
        return new

    def _new(self, tensor: Tensor, op: Op | None, name: str = "") -> Value:
        """A new value for what a tensor holds now, and from here on the latest of that memory."""
        new = Value(len(self.values), tensor, op, name)
        self.values.append(new)
        self.alive.append(tensor)
        if (key := _key(tensor)) is not None:
            self.latest[key] = new
        return new

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each operation: runs it, and adds it to the graph with its values."""
        kwargs = kwargs or {}
        if not _counted(func) or func is torch.ops.aten.detach.default:
            return func(*args, **kwargs)  # a question of size, or the same value by another name
        name = func._schema.name.split("::")[1].removesuffix("_")
        index = self.counts[func]
        self.counts[func] += 1
        value_args, value_kwargs = tree_map_only(Tensor, self.value, (args, kwargs))
        inputs = tuple(v for v in tree_leaves((value_args, value_kwargs)) if isinstance(v, Value))
        targets = [  # what the operation writes into, by its schema
            leaf
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for leaf in tree_leaves(value)
            if isinstance(leaf, Tensor)
        ]
        for tensor in targets:
            self._keep(tensor)
        out = func(*args, **kwargs)
        if name.startswith("_scaled_dot_product") and not name.endswith("math"):
            return self._open_attention(func, args, kwargs, out)
        call = self.stack[-1] if self.stack else None
        path = call.path if call else ""
        op = Op((func, index), name, value_args, value_kwargs, inputs, (), path, call)
        op.outputs = tuple(self._new(t, op) for t in tree_leaves(out) if isinstance(t, Tensor))
        for tensor, value in zip(targets, op.outputs, strict=False):
            storage = tensor.untyped_storage()._cdata
            self.writes.setdefault(storage, []).append((value.number, value))
        self.ops.append(op)
        for v in inputs:
            v.readers.append(op)
        return out

    def _open_attention(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """Record a fused attention that the model insists on, which gave ``out``: its products and
        softmax are computed once more and recorded, and the kernel's own result stands for theirs.
        Returns ``out``."""
        arguments = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        mask = arguments.get("attn_mask", arguments.get("attn_bias"))
        with torch.no_grad(), self:
            result = _attention(arguments, mask)
        source, call = self.value(result), self.stack[-1] if self.stack else None
        path = call.path if call else ""
        op = Op((None, -1), "alias", (source,), {}, (source,), (), path, call)
        op.outputs = (self._new(out[0], op),)
        self.ops.append(op)
        source.readers.append(op)
        return out

    def _keep(self, tensor: Tensor) -> None:
        """Before a write into a tensor: the values that look at its memory get copies of their
        own."""
        storage = tensor.untyped_storage()._cdata
        with torch.utils._python_dispatch._disable_current_modes():
            for key, value in self.latest.items():
                if key[0] == storage and value.tensor.untyped_storage()._cdata == storage:
                    value.tensor = value.tensor.detach().clone()

    def trace(self, result: Any) -> Trace:
        """What was written down."""
        values = tree_map_only(Tensor, self.value, result)
        outputs = tuple(t for t in tree_leaves(result) if isinstance(t, Tensor))
        return Trace(tuple(self.ops), tuple(self.calls), values, tuple(self.values), outputs)


def _key(tensor: Tensor) -> Key | None:
    """What a tensor looks at; None: nothing, so that it cannot be told from others."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return None
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
