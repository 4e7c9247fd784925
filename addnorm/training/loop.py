"""The trainer: batches, gradients, optimizer steps, all state that these have, and what to do when
numbers break. ``fit.py`` says when it evaluates and saves.

One optimizer step is one unit: micro-batches of all processes add up sums of the loss and of its
gradients, which are divided once by the number of targets. Everything that a step depends on is in
the checkpoint or follows from (seed, step), so that a resumed run equals the uninterrupted one.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from addnorm.settings import SettingsError
from addnorm.temporary import evaluation_mode, hooked
from addnorm.training import memory
from addnorm.training.loop_settings import LoopSettings, Precision
from addnorm.training.optim import factor, gradients, optimizers
from addnorm.training.parallel import World, distributed_model, put, sum_dtype, whole
from addnorm.training.task import Batch, Task
from addnorm.words import first_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RECENT = 64  # gradient norms that the spike guard compares with; it begins at a quarter of them
LOSS_SCALE = 2.0**16  # of float16 at the beginning (Micikevicius et al. 2018)
GROWS_AFTER = 2000  # steps without overflow


@final
class Diverged(RuntimeError):
    """Numbers that are not finite, and where they come from."""


@final
@dataclass(frozen=True)
class Outcome:
    """What one optimizer step was, over all processes; of no targets (``count`` 0) there is no
    mean, and it is NaN."""

    loss: float  # the mean over targets
    parts: dict[str, float]  # of the sums that the task told, the means over targets
    count: int  # targets
    grad_norm: float  # of the mean loss, before clipping
    lr: float  # AdamW's
    skipped: bool  # the weights are as they were


@final
class Trainer:
    """Model, optimizers and position of one run: ``step`` takes one optimizer step.

    ``task``: what is learned. ``loop``: how. ``world``: this process among the others, each of
    which makes a Trainer and calls the same methods. Torch's random numbers begin anew, by the
    seed.

    ``done`` steps are behind it; ``shift`` is how much further the data is, after rollbacks;
    ``seen`` are the targets of all steps. ``raw`` is the task's model, ``model`` the same as it is
    called over several processes, ``compiled`` that as the loss calls it, and ``why`` says in a
    line why it is compiled or not. ``divided``: each process has only a part of every parameter.
    """

    def __init__(self, task: Task, loop: LoopSettings, world: World) -> None:
        self.task, self.loop, self.world = task, loop, world
        self.precision = resolved_precision(loop.precision, world.device)
        self.warmup = min(loop.warmup, loop.steps)
        needs = task.needs(loop.micro_rows, world.size)
        if needs is not None:
            memory.check(needs, loop, world)
        torch.manual_seed(loop.seed)
        self.raw = task.model().to(world.device).train()
        self.model = distributed_model(self.raw, world, loop.parallel)
        self.compiled, self.why = self._maybe_compiled()
        self.divided = world.size > 1 and loop.parallel == "fsdp"
        self.optimizers = optimizers(self.raw, loop, fused=not self.divided)
        torch.manual_seed(loop.seed + 1 + world.rank)  # dropout differs between processes
        self.done = self.shift = self.seen = self.skipped = self.rollbacks = 0
        self.scale = LOSS_SCALE if self.precision == "fp16" else 1.0
        self.good = 0  # steps since the scale last changed
        self.nominal = 0.0  # see _nominal; 0: no micro-batch was seen yet
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.next_batch: tuple[int, Batch] | None = None  # and its position

    # --- one step ---------------------------------------------------------------------------------

    def step(self, before_part: Callable[[int], None] = lambda index: None) -> Outcome:
        """One optimizer step; ``Diverged`` if its numbers broke and that is not to be survived.

        ``before_part`` is called with the index of each micro-batch before it goes through the
        model. After ``Diverged`` neither the weights nor ``done`` have changed.
        """
        loop, nominal = self.loop, self.nominal
        batch = self.batch()
        total, count, parts = self._accumulate(batch, before_part)
        # Every process sees the same sums, and so decides the same.
        empty = count == 0
        if empty:  # nothing to learn from, nor a sign of how many targets are usual
            norm, finite, self.nominal = math.nan, True, nominal
        else:
            norm = self._norm(count)
            finite = math.isfinite(total) and math.isfinite(norm)
        share = factor(self.done, loop.steps, self.warmup, loop.schedule, loop.lr_floor, loop.decay)
        skipped = empty or not finite or self._spikes(norm)
        if not skipped:
            self._divide(count, loop.clip / norm if 0 < loop.clip < norm else 1.0)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = share * group["peak"]
                optimizer.step()
            after = getattr(self.raw, "after_step", None)  # a model's own, as nGPT's
            if after is not None:
                after(self.done + 1)
            self.recent.append(norm)
        if not empty:
            self._rescale(finite)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        # Below 1 it is no longer the scale that overflows.
        overflow = not finite and self.precision == "fp16" and self.scale >= 1.0
        if not finite and not overflow and loop.nonfinite != "skip":
            raise Diverged(self._divergence(batch, total, norm))
        self.done += 1
        self.seen += int(count)
        self.skipped += skipped
        return Outcome(
            loss=total / (count or math.nan),
            parts={name: value / (count or math.nan) for name, value in parts.items()},
            count=int(count),
            grad_norm=norm,
            lr=share * loop.lr,
            skipped=skipped,
        )

    @property
    def position(self) -> int:
        """The step of the data that is next."""
        return self.done + self.shift

    def batch(self) -> Batch:
        """This process's rows of the step that is next."""
        if self.next_batch is None or self.next_batch[0] != self.position:
            self.next_batch = self.position, self._rows(self.position)
        return self.next_batch[1]

    def _rows(self, position: int) -> Batch:
        return self.task.batch("train", self.loop.seed, position, self.world.rank, self.world.size)

    def _fetch_next(self) -> None:
        """Read what comes after this step, while an accelerator still computes it."""
        if self.done + 1 < self.loop.steps:
            with suppress(Exception):  # the step that needs it asks again, and it is raised there
                self.next_batch = self.position + 1, self._rows(self.position + 1)

    def micro(self, batch: Batch) -> Iterator[Batch]:
        """The batch in parts that go through the model at once, on the device. A batch without
        rows is one part without rows: gradients are exchanged by all processes or none."""
        rows = len(next(iter(batch.values())))
        size = self.loop.micro_rows or max(rows, 1)
        for first in range(0, max(rows, 1), size):
            yield self.on_device({k: v[first : first + size] for k, v in batch.items()})

    def _accumulate(
        self, batch: Batch, before_part: Callable[[int], None] = lambda index: None
    ) -> tuple[float, float, dict[str, float]]:
        """Add up the gradients of this process's micro-batches, those of the summed loss times
        ``scale / nominal``, on gradients of None; returns (loss, targets, parts), summed over all
        processes. The first call of a run sets ``nominal``.

        The sums stay on the device until all is on its way: to read one waits for the device.
        """
        dtype = sum_dtype(self.world.device)
        zero = torch.zeros((), dtype=dtype, device=self.world.device)
        sums, sums_of_parts = [zero, zero], dict[str, Tensor]()
        for index, (part, last) in enumerate(_with_last(self.micro(batch))):
            before_part(index)
            with self._unsynchronized(not last), self.autocast():
                loss, count, parts = self.task.loss(self.compiled, part)
                if not self.nominal:
                    self.nominal = self._nominal(count)
                # Near 1 a target's share neither overflows nor underflows in half precision; a
                # power of two changes no bit of what comes out.
                (loss * (self.scale / self.nominal)).backward()
            sums = [a + b.detach().to(zero) for a, b in zip(sums, (loss, count), strict=True)]
            for name, value in parts.items():
                before = sums_of_parts.get(name, zero)
                sums_of_parts[name] = before + value.detach().to(zero)
        self._fetch_next()
        every = self.world.total(torch.stack([*sums, *sums_of_parts.values()]))
        total, number, *totals = every.tolist()
        return total, number, dict(zip(sums_of_parts, totals, strict=True))

    def _nominal(self, count: Tensor) -> float:
        """About how many targets a micro-batch has, as a power of two: from the ``count`` of this
        process's first one and those of the others, who all must ask."""
        counts = [c for c in self.world.gather(float(count)) if isinstance(c, float)]
        return 2.0 ** round(math.log2(max(*counts, 1.0)))

    def _mean_factor(self, count: float) -> float:
        """What gradients as they add up are to be multiplied by to be those of the mean loss over
        ``count`` targets."""
        # DDP and FSDP take the mean over processes: times their number it is the sum again.
        return self.nominal * self.world.size / (self.scale * count)

    def _norm(self, count: float) -> float:
        """The norm, over all parameters, of the gradient of the mean loss: 0 if there are no
        gradients. These are as ``_accumulate`` leaves them: ``_divide`` comes after this."""
        grads = list(gradients(self.raw))
        if not grads:
            return 0.0
        return float(whole(torch.nn.utils.get_total_norm(grads))) * self._mean_factor(count)

    def _divide(self, count: float, clip_factor: float = 1.0) -> None:
        """Make the gradients, in place and once a step, of what ``_accumulate`` leaves those of the
        mean loss, times ``clip_factor``: one multiplication for both."""
        grads = list(gradients(self.raw))
        if grads:
            torch._foreach_mul_(grads, clip_factor * self._mean_factor(count))

    def _spikes(self, norm: float) -> bool:
        """Whether a step is to be left out for its gradient norm (the setting ``spike``); none is
        before a quarter of RECENT norms are there to compare with."""
        if not self.loop.spike or len(self.recent) < RECENT // 4:
            return False
        return norm > self.loop.spike * statistics.median(self.recent)

    def _rescale(self, finite: bool) -> None:
        """Set float16's loss scale for the next step, to be called once a step: halved where this
        one was not ``finite``, which is an overflow, doubled where none was for GROWS_AFTER."""
        if self.precision != "fp16":
            return
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good >= GROWS_AFTER:
            self.scale, self.good = self.scale * 2, 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the forward computes in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, PRECISIONS[self.precision])

    def _unsynchronized(self, more_follow: bool) -> AbstractContextManager[Any]:
        """A context for a micro-batch, in which processes do not exchange gradients if more
        micro-batches of the step follow: the last one's exchange is of the sum."""
        if not more_follow or self.world.size == 1:
            return nullcontext()
        no_sync = getattr(self.model, "no_sync", None)  # DistributedDataParallel; FSDP2 has none
        context: AbstractContextManager[Any] = nullcontext() if no_sync is None else no_sync()
        return context

    def on_device(self, batch: Batch) -> Batch:
        """A batch where the model is."""
        return {name: t.to(self.world.device, non_blocking=True) for name, t in batch.items()}

    # --- looking ----------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[nn.Module]:
        """The model to look at, as it is, not compiled: without dropout or gradients, in the run's
        precision; modes and random numbers are afterwards what they were."""
        random = random_state(self.world.device)
        try:
            with evaluation_mode(self.raw.modules()), torch.no_grad(), self.autocast():
                yield self.raw
        finally:
            set_random_state(random, self.world.device)

    def run_only(self, batch: Batch) -> None:
        """A batch through model and loss, to be looked at by hooks; nothing that training depends
        on changes."""
        with self.looking() as model:
            self.task.loss(model, self.on_device(batch))

    def _divergence(self, batch: Batch, total: float, norm: float) -> str:
        """The message of a ``Diverged``: it names the first parameter that is not finite, or else
        the first module whose output is not. Runs the batch again; all processes must ask."""
        names = {id(m): n or "the model" for n, m in self.raw.named_modules()}
        first: list[str] = []

        def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor)]
            if not first and not all(bool(whole(t).isfinite().all()) for t in tensors):
                first.append(f"{names[id(module)]} ({type(module).__name__})")

        for name, p in self.raw.named_parameters():
            if not bool(whole(p.detach()).isfinite().all()):
                first.append(f"the parameter {name}, before the step")
                break
        with hooked(self.raw.modules(), after=look):
            for part in self.micro(batch):
                if not first:
                    self.run_only(part)
        everywhere = [str(f) for f in self.world.gather(first[0] if first else "") if f]
        where = (
            f"the first module with such an output is {everywhere[0]}"
            if everywhere
            else "every module's output is finite, so that it is the backward pass that breaks"
        )
        return (
            f"step {self.done}: loss {total:g} and gradient norm {norm:g} are not both finite; "
            f"{where}. A smaller lr or a longer warmup often helps; nonfinite=skip leaves such "
            "steps out"
        )

    # --- state ------------------------------------------------------------------------------------

    def weights(self, keep: bool = True) -> dict[str, Tensor]:
        """Whole, on the CPU, and under the names that the task's model has for them; every process
        must ask, and one that does not ``keep`` them gets none: it has one tensor at a time."""
        weights: dict[str, Tensor] = {}
        for name, t in self._weights().items():
            together = whole(t)  # of which every process has a part
            if keep:
                weights[name] = together.cpu()
        return weights

    def _weights(self) -> dict[str, Tensor]:
        return {n: t.detach() for n, t in self.raw.state_dict().items()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What ``parts`` gives, whole, on the CPU and on every process; all must ask."""
        return {
            group: {name: whole(t).cpu() for name, t in tensors.items()}
            for group, tensors in self.parts().items()
        }

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """Weights, optimizer and random state, by the groups "model", "optimizer" and "random"; of
        a divided model, this process's part only. All processes must ask.

        Names in "optimizer" are PARAMETER.STATE, in "random" RANK.GENERATOR; ``restore`` reads
        them.
        """
        states: dict[str, Tensor] = {}
        for name, p in self.parameters().items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    value = value if isinstance(value, Tensor) else torch.tensor(value)
                    full = f"{name}.{key}"
                    assert full not in states, f"two states of optimizers are {full}"
                    states[full] = value.detach()
        states_of = self.world.gather(random_state(self.world.device))
        random = {
            f"{rank}.{name}": t
            for rank, of in enumerate(states_of)
            if isinstance(of, dict)
            for name, t in of.items()
        }
        return {"model": self._weights(), "optimizer": states, "random": random}

    def facts(self) -> dict[str, Any]:
        """Everything else that the next step depends on, as JSON, for checkpoints: ``restore``,
        ``run.py`` and ``tasks/prove.py`` read it by these keys."""
        return {
            "done": self.done,
            "shift": self.shift,
            "seen": self.seen,
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "scale": self.scale,
            "good": self.good,
            "nominal": self.nominal,
            "recent": list(self.recent),
            "precision": self.precision,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "device": self.world.device.type,
        }

    def restore(
        self, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
    ) -> list[str]:
        """Take up a state of this or another call, as ``tensors`` or ``parts`` and ``facts`` gave
        it; returns what is not the same as then, in words, and goes on all the same.

        Weights of another shape, or of an optimizer that is not there, are a ``SettingsError``. In
        another precision the loss scale begins anew, on another device or number of processes the
        random numbers do.
        """
        own = self.raw.state_dict(keep_vars=True)
        _check_names_and_shapes("weights", own, tensors["model"])
        for name, t in own.items():
            put(t, tensors["model"][name])
        self._restore_optimizers(tensors["optimizer"])
        of_precision = ("scale", "good") if facts["precision"] == self.precision else ()
        for name in ("done", "shift", "seen", "skipped", "rollbacks", "nominal", *of_precision):
            setattr(self, name, facts[name])
        self.recent = deque(facts["recent"], maxlen=RECENT)
        random = {
            name.partition(".")[2]: t
            for name, t in tensors["random"].items()
            if name.partition(".")[0] == str(self.world.rank)
        }
        now = self.facts()
        differ = [
            f"{name} {facts[name]} then, {now[name]} now"
            for name in ("processes", "threads", "device", "precision")
            if facts[name] != now[name]
        ]
        if facts["processes"] == self.world.size and facts["device"] == now["device"]:
            set_random_state(random, self.world.device)
        else:
            # as at the beginning, but other ones after every step: processes are fewer than 2**20
            torch.manual_seed(self.loop.seed + 1 + self.world.rank + (self.done << 20))
        return differ

    def rewind(self, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Take up an earlier state of this run, and go on with the data after the step that is
        next, which did not go well."""
        times, position = self.rollbacks + 1, self.position
        self.restore(tensors, facts)
        self.rollbacks = times
        self.shift = position + 1 - self.done

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, each once."""
        return dict(self.raw.named_parameters())

    def _restore_optimizers(self, states_then: Mapping[str, Tensor]) -> None:
        """Give the optimizers their states of then. ``states_then``: PARAMETER.STATE -> whole
        tensor. A parameter that has none keeps none: it was never stepped. A ``SettingsError`` for
        the state of one that is not trained here."""
        states: dict[str, dict[str, Tensor]] = {}
        for full, t in states_then.items():
            name, _, key = full.rpartition(".")
            states.setdefault(name, {})[key] = t
        for name, p in self.parameters().items():
            for optimizer in self.optimizers:
                own = {id(q) for g in optimizer.param_groups for q in g["params"]}
                if id(p) not in own or name not in states:
                    continue
                optimizer.state[p] = {}
                for key, value in states.pop(name).items():
                    if value.shape == p.shape:  # for each weight one: divided as the weights are
                        mine = torch.zeros_like(p.detach(), dtype=value.dtype)
                        put(mine, value)
                    else:  # the number of steps: fused AdamW has it where the weights are
                        on = (
                            value.device
                            if optimizer.defaults.get("fused") is not True
                            else p.device
                        )
                        mine = value.clone().to(on)
                    optimizer.state[p][key] = mine
        if states:
            raise SettingsError(
                f"the checkpoint holds optimizer state of {next(iter(states))}, which this run "
                "does not train: the model or the optimizer was changed"
            )

    def _maybe_compiled(self) -> tuple[nn.Module, str]:
        """(the model as the loss calls it, in one line why it is compiled or not); a
        ``SettingsError`` where it must be compiled and cannot."""
        wish = self.loop.compile
        if wish == "false":
            return self.model, "not compiled: compile=false"
        if wish == "auto" and self.world.device.type == "cpu":
            return self.model, "not compiled: on a CPU only long runs gain (compile=true does it)"
        failure = compiler_failure(self.world.device)
        if failure is not None:
            if wish == "true":
                raise SettingsError(f"compile=true, but the compiler does not work here: {failure}")
            return self.model, f"not compiled: the compiler does not work here: {failure}"
        compiled: Any = torch.compile(self.model)
        return compiled, "compiled"


# --- parts ----------------------------------------------------------------------------------------


def resolved_precision(wish: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision that a setting asks for, with "auto" resolved for the ``device``: bf16 where
    the processor multiplies it itself. Elsewhere it is emulated, and slower than fp32."""
    if wish != "auto":
        return wish
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "fp32"


def compiler_failure(device: torch.device) -> str | None:
    """Why torch.compile does not work here, tried on a toy; None if it does."""
    try:
        toy = torch.compile(lambda x: (x * 2).relu().sum())
        toy(torch.ones(4, device=device, requires_grad=True)).backward()
    except RuntimeError as error:  # of torch._dynamo and torch._inductor: all are RuntimeErrors
        return first_line(str(error))
    return None


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's random number generators: the CPU's and the device's."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _with_last(parts: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """(part, whether it is the last) of at least one part; the part after is read ahead."""
    waiting = next(parts)
    for part in parts:
        yield waiting, False
        waiting = part
    yield waiting, True


def _check_names_and_shapes(what: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise a ``SettingsError`` if the checkpoint's tensors (``theirs``) do not go into this
    model's (``own``). ``what`` they are, in the plural, for the message."""
    missing, extra = sorted(own.keys() - theirs.keys()), sorted(theirs.keys() - own.keys())
    if missing or extra:
        raise SettingsError(
            f"the checkpoint's {what} are not this model's: missing {missing[:3]}, not known "
            f"{extra[:3]}. The model's settings were changed"
        )
    for name, t in own.items():
        if t.shape != theirs[name].shape:
            raise SettingsError(
                f"the checkpoint's {name} has shape {tuple(theirs[name].shape)}, this model's "
                f"{tuple(t.shape)}: the model's settings were changed"
            )
