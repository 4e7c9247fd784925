"""Finds the residual stream, its sublayers, norms and attentions in the operations of a forward.

Nothing is found by name. A value is *carried* along by operations that keep what is in it: views,
sums, factors, norms. Everything else *computes*: products with weights, softmax, nonlinearities. An
addition is a residual connection if one operand (the stream) is carried from a value ``fork`` that
the other (the branch) was computed from, through at least one product. Attention is a product with
a matrix that came, without further products, from a product of two activations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.trace import Call, Op, Trace, Value


def _names(text: str) -> frozenset[str]:
    """A set of operations from one line, by aten's names without their overloads."""
    return frozenset(text.split())


VIEWS = _names(
    "view _unsafe_view reshape _reshape_alias expand permute transpose t squeeze unsqueeze slice "
    "select split split_with_sizes chunk unbind alias detach clone contiguous _to_copy lift_fresh "
    "as_strided gather index index_select roll flip constant_pad_nd cat stack repeat where "
    "masked_fill native_dropout tril triu nan_to_num clamp clamp_min clamp_max copy movedim "
    "view_as_real view_as_complex _conj unfold masked_scatter slice_scatter select_scatter "
    "expand_copy narrow_copy pad new_copy remainder fmod flatten unflatten"
)
LINEAR = _names("add sub rsub neg")  # sums: they carry each operand whole
LOOKUPS = _names("embedding index index_select gather")  # rows of a table, by numbers
PRODUCTS = _names(
    "mm addmm bmm baddbmm addbmm convolution _convolution mkldnn_convolution mv addmv dot linear "
    "_addmm_activation"
)
NORM_OPS = _names(
    "native_layer_norm _fused_rms_norm rms_norm native_group_norm native_batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
    "_batch_norm_with_update _batch_norm_no_update"
)
REDUCTIONS = _names(
    "mean sum var std var_mean std_mean linalg_vector_norm norm amax amin max min _safe_softmax "
    "_softmax"
)


@final
@dataclass(frozen=True)
class Step:
    """One carrying operation: ``source`` is carried into ``target``."""

    source: Value
    target: Value
    kind: str
    """"view", "shift" (by a constant), "add", "scale", "norm" or "gate"."""
    op: Op | None = None  # that carries
    norm: "TracedNorm | None" = None  # where the kind is "norm"


@final
@dataclass(eq=False, frozen=True)
class TracedNorm:
    """One application of a norm."""

    source: Value  # what is normalized
    output: Value  # of the same shape
    path: str
    """The path of the module that is the norm, or in which it is computed."""
    op: Op  # the last of it
    module: nn.Module | None
    """None: computed in the forward of a larger module."""
    parameters: frozenset[str]  # names of what it reads: gain, bias, buffers


@final
@dataclass(eq=False, frozen=True)
class TracedAttention:
    """softmax(q k^T) v, or what stands in its place."""

    scores: Op  # the product of queries and keys
    mix: Op  # the product of weights and values
    weights: Value
    """What multiplies the values, (..., queries, keys)."""
    right: bool
    """The weights are the second factor of ``mix``, transposed."""
    between: tuple[Op, ...]
    """The operations from the scores to the weights, in order."""
    path: str  # of the module in which the scores are computed

    def table(self) -> Tensor:
        """The weights as they were, (..., queries, keys)."""
        weights = self.weights.tensor.detach()
        return weights.mT if self.right else weights


@final
@dataclass(eq=False, frozen=True)
class Residual:
    """One residual connection: ``add`` writes ``branch``, computed from ``fork``, on ``stream``."""

    add: Op
    stream: Value
    branch: Value
    fork: Value
    inside: frozenset[Value]
    """What was computed from the fork on the way to the branch's end, the fork not included."""
    steps: tuple[Step, ...]
    """From the fork to the stream's operand."""

    @property
    def output(self) -> Value:
        """The stream after the addition."""
        return self.add.outputs[0]

    @property
    def share(self) -> float:
        """The branch's size over the stream's."""
        b, a = (v.tensor.detach().double() for v in (self.branch, self.stream))
        return float(b.norm() / a.norm().clamp(min=1e-300))


@final
class Structure:
    """What was found in ``trace``, a ``record`` of ``model``; each part is found when asked for."""

    def __init__(self, trace: Trace, model: nn.Module) -> None:
        self.trace, self.model = trace, model
        self.modules = dict(model.named_modules())
        self.parameters = {name for name, _ in model.named_parameters()}
        self.activations = trace.descendants(*trace.inputs)
        leaves = torch.utils._pytree.tree_leaves(trace.result)
        self.results = [v for v in leaves if isinstance(v, Value)]
        self.live = trace.ancestors(*self.results)
        self._ancestors: dict[Value, set[Value]] = {}
        self._steps: dict[Value, list[Step]] = {}

    # --- carrying

    @cached_property
    def norms_by_output(self) -> dict[Value, TracedNorm]:
        """Norms that are modules or single operations."""
        norms: dict[Value, TracedNorm] = {}
        for call in self.trace.calls:
            norm = self._as_norm(call)
            if norm is not None:
                norms[norm.output] = norm  # of nested modules with one output the innermost
        for op in self.trace.ops:
            if op.name in NORM_OPS and op.outputs and op.outputs[0] not in norms:
                own = self.modules.get(op.module)
                alone = own if own is not None and not list(own.children()) else None
                names = frozenset(v.name for v in op.inputs if v.name)
                norm = TracedNorm(op.inputs[0], op.outputs[0], op.module, op, alone, names)
                norms[op.outputs[0]] = norm
        return norms

    def _as_norm(self, call: Call) -> TracedNorm | None:
        """A call as a norm: it takes one activation to another of its shape by statistics,
        elementwise and with vectors only. None: it is no norm."""
        module = call.module
        if any(p.squeeze().dim() > 1 for p in module.parameters()):
            return None
        sources = [v for v in call.inputs if v in self.activations and v.tensor.is_floating_point()]
        if len(set(sources)) != 1 or len(call.outputs) != 1:
            return None
        source, output = sources[0], call.outputs[0]
        if source.shape != output.shape or source is output:
            return None
        ops = self.trace.ops[call.first : call.last]
        if any(op.name in PRODUCTS or op.name in ("_softmax", "_safe_softmax") for op in ops):
            return None
        if not any(op.name in REDUCTIONS or op.name in NORM_OPS for op in ops):
            return None
        # A module may return what it did not compute.
        last = output.op if output.op in self._order else ops[-1]
        assert last is not None
        names = frozenset(v.name for op in ops for v in op.inputs if v.name)
        return TracedNorm(source, output, call.path, last, module, names)

    @cached_property
    def _order(self) -> dict[Op, int]:
        return {op: i for i, op in enumerate(self.trace.ops)}

    def order(self, op: Op) -> int:
        """The number of an operation in the order in which they ran."""
        return self._order[op]

    def ancestors(self, value: Value) -> set[Value]:
        """``Trace.ancestors`` of one value, remembered."""
        if value not in self._ancestors:
            self._ancestors[value] = self.trace.ancestors(value)
        return self._ancestors[value]

    def steps_into(self, value: Value) -> list[Step]:
        """The ways by which a value carries others."""
        if value not in self._steps:
            self._steps[value] = self._steps_into(value)
        return self._steps[value]

    def _steps_into(self, value: Value) -> list[Step]:
        """``steps_into``, measured. [] for what computes: the value carries nothing on."""
        norm = self.norms_by_output.get(value)
        if norm is not None:
            return [Step(norm.source, value, "norm", norm.op, norm)]
        op = value.op
        if op is None:
            return []
        moving = [v for v in op.inputs if v in self.activations]
        if op.name in VIEWS or op.name == "alias":
            if op.name in ("where", "gather", "index", "index_select"):  # not conditions and ids
                moving = [v for v in moving if v.tensor.is_floating_point()]
            return [Step(v, value, "view", op) for v in moving]
        if op.name in LINEAR:
            if len(moving) < 2:
                return [Step(v, value, "shift", op) for v in moving]
            inline = self._by_statistic(op, value, moving)
            return inline or [Step(v, value, "add", op) for v in moving]
        if op.name in ("lerp", "addcmul"):
            return [Step(v, value, "add", op) for v in moving]
        if op.name in ("mul", "div"):
            if len(moving) == 1:
                carries = op.name == "mul" or moving[0] is op.args[0]  # not as a divisor
                return [Step(moving[0], value, "scale", op)] if carries else []
            return self._by_statistic(op, value, moving) or self._gated(op, value, moving)
        return []

    def _by_statistic(self, op: Op, value: Value, moving: list[Value]) -> list[Step]:
        """The step of x - mean(x), x / std(x): one operand is a reduction of the other; else []."""
        if len(moving) != 2 or moving[0] is moving[1]:
            return []
        for carrier, statistic in ((moving[0], moving[1]), (moving[1], moving[0])):
            if op.name == "div" and carrier is not op.args[0]:
                continue
            if carrier.shape != value.shape or statistic.tensor.numel() >= carrier.tensor.numel():
                continue
            if self._reduces(statistic, carrier):
                if op.name in LINEAR:
                    return [Step(carrier, value, "scale", op)]
                names = frozenset(v.name for v in op.inputs if v.name)
                norm = TracedNorm(carrier, value, op.module, op, None, names)
                return [Step(carrier, value, "norm", op, norm)]
        return []

    def _reduces(self, statistic: Value, of: Value) -> bool:
        """Whether a statistic was computed from ``of``, without products and with a reduction."""
        sources = {of} | {
            v for v in self.ancestors(of) if v in self.activations and v.shape == of.shape
        }
        todo, values, reduced = [(statistic, False)], {statistic}, False
        while todo:
            value, past = todo.pop()
            if value in sources:
                reduced = reduced or past
                continue
            op = value.op
            if op is None or op.name in PRODUCTS:
                continue
            for v in op.inputs:
                if v in self.activations and v not in values:
                    values.add(v)
                    todo.append((v, past or op.name in REDUCTIONS))
        return reduced

    def _gated(self, op: Op, value: Value, moving: list[Value]) -> list[Step]:
        """The step of a product with a gate, whose values are all within 0 and 1; [] for others."""
        if op.name != "mul" or len(moving) != 2:
            return []
        for carrier, gate in ((moving[0], moving[1]), (moving[1], moving[0])):
            t = gate.tensor
            if carrier.shape != value.shape or not t.is_floating_point() or carrier is gate:
                continue
            if bool(((t >= 0) & (t <= 1)).all()):
                return [Step(carrier, value, "gate", op)]
        return []

    def carried(self, value: Value) -> dict[Value, Step | None]:
        """Every value carried into ``value`` -> the first step of a shortest way; its own: None."""
        steps: dict[Value, Step | None] = {value: None}
        todo = [value]
        for target in todo:
            for step in self.steps_into(target):
                if step.source not in steps:
                    steps[step.source] = step
                    todo.append(step.source)
        return steps

    def way(self, source: Value, target: Value) -> tuple[Step, ...]:
        """The steps by which ``source`` is carried into ``target``, as it must be, in order."""
        steps_out, steps = self.carried(target), []
        step = steps_out[source]
        while step is not None:
            steps.append(step)
            step = steps_out[step.target]
        return tuple(steps)

    @cached_property
    def steps_from(self) -> dict[Value, list[Step]]:
        """The steps out of each value."""
        steps: dict[Value, list[Step]] = {}
        for value in self.trace.values:
            if value in self.activations:
                for step in self.steps_into(value):
                    steps.setdefault(step.source, []).append(step)
        return steps

    def carried_on(self, value: Value) -> set[Value]:
        """Every value that ``value`` is carried into."""
        values, todo = {value}, [value]
        while todo:
            for step in self.steps_from.get(todo.pop(), ()):
                if step.target not in values:
                    values.add(step.target)
                    todo.append(step.target)
        return values

    # --- residual connections

    @cached_property
    def residuals(self) -> tuple[Residual, ...]:
        """The residual connections, in the order of their additions. What is added to the scores of
        an attention (masks, biases, the scores of the layer before) is not one."""
        residuals = []
        scores = {op for attention in self.attentions for op in attention.between}
        for op in self.trace.ops:
            if op.name not in ("add", "sub", "lerp", "addcmul") or not op.outputs or op in scores:
                continue
            out = op.outputs[0]
            moving = [v for v in op.inputs if v in self.activations and v.shape == out.shape]
            if len(moving) < 2 or not out.tensor.is_floating_point() or out not in self.live:
                continue
            for stream, branch in ((moving[0], moving[1]), (moving[1], moving[0])):
                residual = self._residual(op, stream, branch)
                if residual is not None:
                    residuals.append(residual)
                    break
        return tuple(residuals)

    def _residual(self, op: Op, stream: Value, branch: Value) -> Residual | None:
        """An addition as a residual connection, with its operands in these roles; None: it is none.

        The fork is the latest value that the stream carries and the branch was computed from, but
        does not carry.
        """
        before = self.carried(stream)
        mixed = self.ancestors(branch)
        own = self.carried(branch)
        forks = [v for v in before if v in mixed and v not in own and v in self.activations]
        if not forks:
            return None
        fork = max(forks, key=lambda v: v.number)
        inside = (self.trace.descendants(fork) & mixed) - {fork}
        if not any(v.op is not None and v.op.name in PRODUCTS for v in inside):
            return None
        if fork.tensor.numel() != stream.tensor.numel() and not self._equal_width(fork, stream):
            return None
        return Residual(op, stream, branch, fork, frozenset(inside), self.way(fork, stream))

    @staticmethod
    def _equal_width(fork: Value, stream: Value) -> bool:
        """Whether the last axes are equal: a stream may be cut or padded along others."""
        return bool(fork.shape) and fork.shape[-1] == stream.shape[-1]

    @cached_property
    def inside_branches(self) -> set[Value]:
        """Everything inside some branch."""
        return set().union(*(r.inside for r in self.residuals)) if self.residuals else set()

    @cached_property
    def chains(self) -> tuple[tuple[Residual, ...], ...]:
        """The streams: residual connections that write on one another, those of each with an
        attention somewhere."""
        chains = []
        for last in self.residuals:
            if self.next(last):
                continue
            chain = [last]
            while (before := self.previous(chain[-1])) is not None and before not in chain:
                chain.append(before)
            if any(a.mix.outputs[0] in r.inside for r in chain for a in self.attentions):
                chains.append(tuple(reversed(chain)))
        return tuple(chains)

    @property
    def width(self) -> int:
        """The width of the first stream; 0: there is none."""
        return self.residuals[0].output.shape[-1] if self.residuals else 0

    def previous(self, residual: Residual) -> Residual | None:
        """The residual connection that wrote last on what this one's branch forks from."""
        before = self.carried(residual.fork)
        writers = [r for r in self.residuals if r is not residual and r.output in before]
        return max(writers, key=lambda r: self.order(r.add)) if writers else None

    def next(self, residual: Residual) -> list[Residual]:
        """The residual connections that write next on what this one wrote."""
        return [r for r in self.residuals if self.previous(r) is residual]

    def norms_between(self, source: Value, target: Value) -> list[TracedNorm]:
        """The norms by which the stream goes from one to the other."""
        if source is target:
            return []
        return [s.norm for s in self.way(source, target) if s.norm is not None]

    def own_norms(self, residual: Residual) -> list[TracedNorm]:
        """The norms through which the branch reads the fork, before its first product."""
        norms: dict[Value, TracedNorm] = {}
        for value in self._carried_inside(residual.fork, residual.inside):
            for step in self.steps_into(value):
                if step.norm is not None:
                    norms[value] = step.norm
        return list(norms.values())

    def _carried_inside(self, fork: Value, inside: Iterable[Value]) -> list[Value]:
        """What the fork is carried into without leaving ``inside``; the fork is not among it."""
        limits = set(inside)
        values, todo = {fork}, [fork]
        reached = []
        while todo:
            for step in self.steps_from.get(todo.pop(), ()):
                if step.target in limits and step.target not in values:
                    values.add(step.target)
                    todo.append(step.target)
                    reached.append(step.target)
        return reached

    def readers(self, residual: Residual) -> list[tuple[Op, bool]]:
        """(first product of the branch, whether it reads the fork through a norm), each once."""
        readers: dict[Op, bool] = {}
        todo: list[tuple[Value, bool]] = [(residual.fork, False)]
        values = {residual.fork}
        while todo:
            value, normed = todo.pop()
            for op in value.readers:
                if op.name in PRODUCTS and any(v in residual.inside for v in op.outputs):
                    readers[op] = readers.get(op, False) or normed
            for step in self.steps_from.get(value, ()):
                if step.target in residual.inside and step.target not in values:
                    values.add(step.target)
                    todo.append((step.target, normed or step.norm is not None))
        return list(readers.items())

    @cached_property
    def norms(self) -> tuple[TracedNorm, ...]:
        """Every application of a norm, once, in the order in which they ran."""
        norms = {
            value: step.norm
            for value in self.trace.values
            if value in self.activations
            for step in self.steps_into(value)
            if step.norm is not None
        }
        return tuple(sorted(norms.values(), key=lambda n: self.order(n.op)))

    # --- attention, products, blocks

    def names(self, value: Value) -> set[str]:
        """The parameters and buffers that a value was computed from, if it is not an activation."""
        if value in self.activations:
            return set()
        return {v.name for v in self.ancestors(value) if v.name}

    def weights(self, op: Op) -> set[str]:
        """The names behind a product's factors."""
        return {name for factor in factors(op) for name in self.names(factor)}

    def weighted(self, op: Op) -> bool:
        """A product of an activation with weights."""
        return sum(v in self.activations for v in factors(op)) == 1

    @cached_property
    def attentions(self) -> tuple[TracedAttention, ...]:
        """The attentions, in the order in which they ran."""
        attentions = []
        for op in self.trace.ops:
            pair = factors(op)
            if op.name not in ("bmm", "baddbmm", "mm") or not all(
                v in self.activations for v in pair
            ):
                continue
            for right in (False, True):
                one = self._attention(op, pair[int(right)], right)
                if one is not None:
                    attentions.append(one)
                    break
        return tuple(attentions)

    def _attention(self, mix: Op, weights: Value, right: bool) -> TracedAttention | None:
        """A product of activations as ``mix`` of an attention, with one factor as its weights.

        Goes backwards from the weights, without products, to the product of two activations, which
        are the scores. None: there are none. ``right``: the weights are the second factor.
        """
        todo, values = [weights], {weights}
        scores = None
        for value in todo:
            op = value.op
            if op is None or value not in self.activations:
                continue
            if op.name in PRODUCTS:
                if op.name in ("bmm", "baddbmm", "mm") and all(
                    v in self.activations for v in factors(op)
                ):
                    scores = op
                    break
                continue
            for v in op.inputs:
                if v not in values:
                    values.add(v)
                    todo.append(v)
        if scores is None:
            return None
        queries, keys = weights.shape[-2:] if not right else weights.shape[:-3:-1]
        shape = scores.outputs[0].shape
        # sinks add a column or two and take them away again
        if queries not in shape[-2:] or (abs(keys - shape[-1]) > 2 and keys != shape[-2]):
            return None
        inside = self.trace.descendants(scores.outputs[0]) & self.ancestors(weights)
        between = {v.op for v in inside if v.op is not None} - {scores}
        ordered = tuple(sorted(between, key=self.order))
        return TracedAttention(scores, mix, weights, right, ordered, scores.module)

    @cached_property
    def tables(self) -> dict[str, Value]:
        """Parameters whose rows are looked up by numbers: path -> as it was read."""
        return {
            op.inputs[0].name: op.inputs[0]
            for op in self.trace.ops
            if op.name in LOOKUPS and op.inputs[0].name and len(op.inputs[0].shape) == 2
        }

    def block(self, path: str) -> str:
        """The repeated module that a path lies in: the innermost member of a list of modules that
        holds an attention; else the module around the attention; "" if there is none."""
        parts = path.split(".")
        for n in range(len(parts), 0, -1):
            at = ".".join(parts[:n])
            if parts[n - 1].isdecimal() and at in self.block_paths:
                return at
        for n in range(len(parts) - 1, 0, -1):
            at = ".".join(parts[:n])
            if at in self.block_paths:
                return at
        return ""

    @cached_property
    def block_paths(self) -> frozenset[str]:
        """Members of a list of modules with an attention and a product that reads its result, the
        innermost ones; where no list is, the modules around the attentions."""
        paths = set()
        mixing = [op for op in self.trace.ops if op.name in PRODUCTS and self.weighted(op)]
        for attention in self.attentions:
            parts = attention.path.split(".") if attention.path else []
            after = self.trace.descendants(attention.mix.outputs[0])
            reading = [op for op in mixing if op.outputs[0] in after]
            for n in range(len(parts), 0, -1):
                at = ".".join(parts[:n])
                if parts[n - 1].isdecimal() and any(within(op.module, at) for op in reading):
                    paths.add(at)
                    break
        if not paths:
            for attention in self.attentions:
                parts = attention.path.split(".") if attention.path else []
                if len(parts) > 1:
                    paths.add(".".join(parts[:-1]))
        return frozenset(paths)

    def block_calls(self) -> list[Call]:
        """The calls of blocks, in order."""
        return [c for c in self.trace.calls if c.path in self.block_paths]


def factors(op: Op) -> tuple[Value, ...]:
    """The two factors of a product, without what is added to it; () if it is another operation."""
    args = [a for a in op.args if isinstance(a, Value)]
    if op.name in ("addmm", "baddbmm", "addbmm", "addmv", "_addmm_activation"):
        return tuple(args[1:3])
    return tuple(args[:2]) if op.name in PRODUCTS else ()


def within(path: str, scope: str) -> bool:
    """Whether a module's path lies in another's."""
    return scope == "" or path == scope or path.startswith(scope + ".")


def uniform(t: Tensor) -> bool:
    """Whether all entries are one number."""
    return bool((t == t.flatten()[0]).all())


def number(value: Any) -> float | None:
    """A number, or a tensor or ``Value`` that holds one, as a float; None for anything else."""
    if isinstance(value, Value):
        value = value.tensor
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None
