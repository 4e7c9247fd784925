"""What is done next, if so much return is wanted; and what is reached by it in an environment."""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm import reading
from addnorm.data.episodes import (
    NUMBER,
    Column,
    Steps,
    column,
    kind_of,
    numbers,
    read_episodes,
)
from addnorm.data.sources import DataError
from addnorm.errors import Mendable, value_in_short
from addnorm.progress import ProgressBar
from addnorm.temporary import evaluation_mode
from addnorm.uses import environments
from addnorm.uses.decision_scores import foretell
from addnorm.uses.environments import Environment
from addnorm.uses.use import Answer, Unusable, Use, object_of
from addnorm.words import plural

MOST_STEPS = 1000
"""After so many an episode is over, by itself."""


class Actor(Protocol):
    """A model that says what is done, such as ``models.decisions.DecisionModel``."""

    @property
    def config(self) -> Any: ...

    @property
    def actions(self) -> Any: ...

    def __call__(
        self, returns: Tensor | None, observations: Tensor, actions: Tensor, times: Tensor
    ) -> Tensor: ...

    def parameters(self) -> Any: ...

    def modules(self) -> Any: ...


@final
@dataclass
class History:
    """What a model knows when it decides, the last steps of what was so far: of each the return to
    go, the state and its time, and of all but the last one the action."""

    to_go: list[float] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    time: int = 0
    """Of the last state in its episode."""

    def number(self) -> int:
        """One that depends on all of it, and on nothing else."""
        return zlib.crc32(repr(self).encode())


class Reached(NamedTuple):
    """What came of an episode."""

    total: float
    steps: int
    over: bool
    """Whether it came to its end, and was not given up."""


@final
class Decisions(Use):
    """A model that acts, asked for its next action.

    ``model``: says of each action how probable it is, or which one it is.

    Options: ``temperature``, that of the probabilities by which actions are drawn, 0 takes the most
    probable one: by itself 0, but in an environment 1, as in the paper's code, since whoever always
    does the same may do it for ever; ``seed``, of what is drawn. For an evaluation in an
    environment: ``env``, its name, ``returns``, those that are asked for, ``episodes`` for each of
    them, ``max_steps``, the most that one has.
    """

    options = MappingProxyType(
        {
            "temperature": None,
            "seed": 0,
            "env": None,
            "returns": None,
            "episodes": 100,
            "max_steps": MOST_STEPS,
        }
    )
    example = '{"return_to_go": 1, "states": [0, 4], "actions": [2], "rewards": [0]}'

    def __init__(self, model: Actor) -> None:
        self.model = model

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, where some were chosen; a ``Mendable`` says which value makes no sense."""
        every = super().with_defaults(options)
        heat = every["temperature"]
        if heat is not None and (type(heat) not in (int, float) or not 0 <= heat < math.inf):
            raise Mendable(f"temperature must be a number from 0 on, got {value_in_short(heat)}")
        if heat and self.model.config.action_kind != NUMBER:
            raise Mendable(
                "temperature has no effect: the actions of this model are numbers, "
                "of which none is drawn"
            )
        for name, least in {"seed": 0, "episodes": 1, "max_steps": 1}.items():
            if type(every[name]) is not int or every[name] < least:
                raise Mendable(
                    f"{name} must be a whole number of at least {least}, got "
                    f"{value_in_short(every[name])}"
                )
        returns = every["returns"]
        if returns is not None:
            if not self.model.config.returns:
                raise Mendable("returns has no effect: this model was trained without them")
            if not len(returns) or not all(
                type(r) in (int, float) and math.isfinite(r) for r in returns
            ):
                raise Mendable(f"returns must be numbers, got {value_in_short(returns)}")
        return every

    # --- asked ------------------------------------------------------------------------------------

    def question(self, item: str | Mapping[str, Any]) -> History:
        """From an object, or from a text that is one in JSON; ``Unusable`` says what is wrong."""
        c, entry = (
            self.model.config,
            object_of(item, self.example, "a text alone says nothing of states"),
        )
        try:
            lists = {
                name: reading.field(
                    {"actions": [], "rewards": [], **entry}, name, list, "the input"
                )
                for name in ("states", "actions", "rewards")
            }
            states = self._column("states", lists["states"], c.state_kind, c.states)
            actions = self._column("actions", lists["actions"], c.action_kind, c.actions)
            rewards = numbers(lists["rewards"], "rewards")
        except Mendable as error:
            raise Unusable(str(error)) from None
        if not len(states) == len(actions) + 1 == len(rewards) + 1:
            sizes = (plural(len(v), n[:-1]) for n, v in lists.items())
            raise Unusable(
                f"the input has {', '.join(sizes)}: there must be an action and a reward for each "
                "state but the last, for which an action is asked"
            )
        to_go = self._to_go(entry.get("return_to_go"), rewards)
        first = max(0, len(states) - c.context_length)
        return History(to_go[first:], [*states[first:]], [*actions[first:]], len(states) - 1)

    def _column(self, name: str, values: Sequence[Any], kind: str, size: int) -> Column:
        """States or actions of an input, which must be such as the model has learned."""
        rows = column(values, name)
        if not len(rows):
            return rows
        if kind_of(rows) != kind:
            words = "whole numbers" if kind == NUMBER else f"lists of {size} numbers"
            raise Unusable(f"{name} must be {words}, as those that the model has learned from")
        if kind == NUMBER and rows.max() >= size:
            raise Unusable(
                f"{name}[{int(rows.argmax())}] is {int(rows.max())}, and the model knows those "
                f"from 0 to {size - 1}"
            )
        if kind != NUMBER and rows.shape[1] != size:
            raise Unusable(f"{name} have {rows.shape[1]} numbers each, and the model knows {size}")
        return rows

    def _to_go(self, wish: Any, rewards: NDArray[np.float64]) -> list[float]:
        """The return to go at each state: what is still wanted at the last one, and what came
        since; or a list with one for each. Zeros for a model that reads none."""
        count = len(rewards) + 1
        if not self.model.config.returns:
            return [0.0] * count
        if isinstance(wish, list):
            if len(wish) != count:
                raise Unusable(
                    f"return_to_go has {plural(len(wish), 'number')}, and there are {count} "
                    "states: give one number, wanted from the last state on, or one for each"
                )
            return [*map(float, self._finite(wish))]
        last = self._finite([wish])[0]
        came = np.append(rewards[::-1].cumsum()[::-1], 0.0)
        return [float(last + since) for since in came]

    def _finite(self, values: Sequence[Any]) -> NDArray[np.float64]:
        if values == [None]:
            raise Unusable(f"the object has no return_to_go; one looks like {self.example}")
        try:
            return numbers(values, "return_to_go")
        except DataError as error:
            raise Unusable(str(error)) from None

    def answers(
        self, questions: Sequence[History], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """``action``, a whole number or a list of numbers; one answer to each."""
        if options["env"] is not None:
            raise Mendable("env has no effect here: an environment is for an evaluation")
        # by the question itself, so that it does not matter which others are asked with it
        draws = [np.random.default_rng([options["seed"], one.number()]) for one in questions]
        actions = self._decide(questions, options["temperature"] or 0.0, draws)
        return [[{"action": a if isinstance(a, int) else a.tolist()}] for a in actions]

    def line(self, answer: Answer) -> str:
        """The action as it is."""
        return json.dumps(answer["action"])

    def _decide(
        self, histories: Sequence[History], heat: float, draws: Sequence[np.random.Generator]
    ) -> list[Any]:
        """The next action of each; ``draws``: what decides it where one is drawn."""
        c, device = self.model.config, next(self.model.parameters()).device
        batch = {name: t.to(device) for name, t in _batch(histories, c).items()}
        with evaluation_mode(self.model.modules()), torch.inference_mode():
            output = self.model(batch["returns"], batch["states"], batch["actions"], batch["times"])
        last = batch["last"]
        rows = output[torch.arange(len(last), device=device), last].double().cpu()
        if not bool(rows.isfinite().all()):
            raise FloatingPointError(
                "the output of the model is not finite: the weights or the activations hold NaN or "
                "overflow"
            )
        if c.action_kind != NUMBER:
            low, high = (getattr(self.model.actions, name).cpu() for name in ("low", "high"))
            return [*rows.clamp(low.double(), high.double()).numpy()]
        if not heat:
            return rows.argmax(-1).tolist()
        sums = torch.softmax(rows / heat, -1).cumsum(-1).numpy()
        return [
            min(int((total <= draw.random() * total[-1]).sum()), c.actions - 1)
            for total, draw in zip(sums, draws, strict=True)
        ]

    # --- measured ---------------------------------------------------------------------------------

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """With ``env`` what is reached in the environment; else how well the model foretells the
        actions in files of episodes."""
        if options["env"] is None:
            if options["returns"] is not None:
                raise Mendable("returns has no effect without env, the environment to act in")
            return self._foretold(data, batch_size, bar)
        if data:
            raise Mendable(f"env stands in the place of data: leave out {data[0]}")
        make = environments.maker(options["env"])
        return self.reached(make, options, batch_size=batch_size, bar=bar)

    def _foretold(self, data: Sequence[str], batch_size: int, bar: ProgressBar) -> dict[str, Any]:
        """``loss``, in the mean over all actions the surprise of each in nats, or the square of its
        distance in units of the spread, and ``accuracy``, how often it is the most probable."""
        c = self.model.config
        episodes = [row for name in data for row in read_episodes(name).rows]
        for name, kind, size in (
            ("states", c.state_kind, c.states),
            ("actions", c.action_kind, c.actions),
        ):
            for row in episodes:
                _check_known(name, getattr(row, name), kind, size)
        steps = Steps(episodes)
        spread = None if c.action_kind == NUMBER else self.model.actions.spread
        firsts = steps.every(c.context_length)
        model = cast(nn.Module, self.model)
        foretold = foretell(model, steps, firsts, c.context_length, spread, batch_size, bar)
        figures = foretold.figures()
        loss = figures.pop("val_loss")
        return {"loss": loss, **figures, "actions": len(steps), "episodes": len(episodes)}

    def reached(
        self,
        make: Callable[[], Environment],
        options: Mapping[str, Any],
        *,
        batch_size: int,
        bar: ProgressBar,
    ) -> dict[str, Any]:
        """What is reached in environments that ``make`` makes, ``batch_size`` of them at a time:
        lists with an entry for each return that is asked for, or with one for a model that asks for
        none. Episode i begins with the seed ``seed`` + i, whatever is asked."""
        wishes: list[float | None] = [None]
        if self.model.config.returns:
            wishes = [*(options["returns"] or self.model.config.quartiles)]
            if not wishes:
                raise Mendable("returns is not set: say which returns are asked for")
        jobs = [*product(wishes, range(options["episodes"]))]
        bar.begin("acting", len(jobs))
        outcomes: dict[tuple[float | None, int], Reached] = {}
        for job, outcome in self._episodes(make, jobs, options, batch_size):
            outcomes[job] = outcome
            bar.update(len(outcomes), len(jobs))
        by_return = [[outcomes[r, i] for i in range(options["episodes"])] for r in wishes]
        totals = np.array([[o.total for o in row] for row in by_return])
        return {
            "return_asked": wishes,
            "return_mean": totals.mean(1).tolist(),
            "return_std": totals.std(1).tolist(),
            "steps_mean": [float(np.mean([o.steps for o in row])) for row in by_return],
            "episodes": options["episodes"],
            "given_up": sum(not o.over for row in by_return for o in row),
            "env": options["env"],
        }

    def _episodes(
        self,
        make: Callable[[], Environment],
        jobs: Sequence[tuple[float | None, int]],
        options: Mapping[str, Any],
        batch_size: int,
    ) -> Iterator[tuple[tuple[float | None, int], Reached]]:
        """Each of the jobs, (return that is asked for, number of the episode), as it is done."""
        heat = 1.0 if options["temperature"] is None else options["temperature"]
        rest = iter(jobs)
        every = [make() for _ in range(min(batch_size, len(jobs)))]
        # a function may return the same one each time: then there is one episode at a time
        free = [*{id(environment): environment for environment in every}.values()]
        running: list[_Episode] = []
        while True:
            for job in (next(rest, None) for _ in range(len(free))):
                if job is not None:
                    running.append(_Episode(self.model.config, free.pop(), job, options["seed"]))
            if not running:
                break
            histories = [one.history for one in running]
            draws = [one.draw for one in running]
            for one, action in zip(running, self._decide(histories, heat, draws), strict=True):
                one.step(action)
            ends = [one.over or one.steps >= options["max_steps"] for one in running]
            for one in (one for one, end in zip(running, ends, strict=True) if end):
                yield one.job, Reached(one.total, one.steps, one.over)
                free.append(one.environment)
            running = [one for one, end in zip(running, ends, strict=True) if not end]
        for environment in free:
            environments.close(environment)


@final
class _Episode:
    """An episode under way."""

    def __init__(
        self, config: Any, environment: Environment, job: tuple[float | None, int], seed: int
    ) -> None:
        wish, number = job
        self.config, self.environment, self.job = config, environment, job
        self.draw = np.random.default_rng([seed, number])
        self.total, self.steps, self.over = 0.0, 0, False
        state = self._state(environments.begin(environment, seed + number))
        self.history = History([wish or 0.0], [state])

    def _state(self, state: Any) -> Any:
        """A state as the model reads it."""
        if self.config.state_kind == NUMBER:
            return environments.as_number(state, self.config.states)
        return environments.as_vector(state, self.config.states)

    def step(self, action: Any) -> None:
        """Do what was decided, and see what comes of it."""
        move = action
        if self.config.action_kind != NUMBER:
            move = environments.bounded(self.environment, action)
        state, reward, self.over = environments.act(self.environment, move)
        self.total, self.steps = self.total + reward, self.steps + 1
        if self.over:
            return  # where it ends there may be no state
        h, room = self.history, self.config.context_length
        h.to_go = [*h.to_go, h.to_go[-1] - reward][-room:]
        h.states = [*h.states, self._state(state)][-room:]
        done_before = [*h.actions, action]
        h.actions = done_before[len(done_before) + 1 - len(h.states) :]
        h.time += 1


def _check_known(name: str, rows: Column, kind: str, size: int) -> None:
    """Raise a ``Mendable`` if states or actions of some data are not those of a model."""
    if kind_of(rows) != kind or (kind != NUMBER and rows.shape[1] != size):
        raise Mendable(f"the {name} of the data are of another kind than those of the model")
    if kind == NUMBER and rows.max() >= size:
        raise Mendable(
            f"the data has {int(rows.max())} among its {name}, and the model knows those from 0 to "
            f"{size - 1}"
        )


def _batch(histories: Sequence[History], config: Any) -> dict[str, Tensor]:
    """Histories, filled up at their ends; ``last``: the place of the state that is decided on."""
    rows, longest = len(histories), max(len(h.states) for h in histories)
    shapes = {
        "states": () if config.state_kind == NUMBER else (config.states,),
        "actions": () if config.action_kind == NUMBER else (config.actions,),
    }
    kinds = {name: np.float32 if shape else np.int64 for name, shape in shapes.items()}
    arrays = {n: np.zeros((rows, longest, *shape), kinds[n]) for n, shape in shapes.items()}
    returns, times = np.zeros((rows, longest), np.float32), np.zeros((rows, longest), np.int64)
    for i, h in enumerate(histories):
        n = len(h.states)
        returns[i, :n] = h.to_go
        times[i, :n] = np.arange(h.time + 1 - n, h.time + 1)
        arrays["states"][i, :n] = np.array(h.states)
        if n > 1:
            arrays["actions"][i, : n - 1] = np.array(h.actions)
    last = np.array([len(h.states) - 1 for h in histories])
    every = {"returns": returns, "times": times, "last": last, **arrays}
    return {name: torch.from_numpy(array) for name, array in every.items()}
