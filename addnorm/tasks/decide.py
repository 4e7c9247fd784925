"""Acting as episodes show it: what is done in a state, if so much return is still to come."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from addnorm.data.episodes import (
    FORMATS,
    NUMBER,
    Episode,
    Steps,
    best_part,
    kind_of,
    read_episodes,
)
from addnorm.data.sources import DataError
from addnorm.data.split import HASHES, text_hash
from addnorm.files import decisions
from addnorm.models.decisions import DecisionConfig, DecisionModel, spread_of
from addnorm.progress import ProgressBar
from addnorm.settings import AT_RESUME, HIDDEN, AtResume, SettingsError, check_effect, setting
from addnorm.tasks.examples import Picture, reached_returns, worst_decisions
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.task import Batch, Best, Task
from addnorm.uses import environments
from addnorm.uses.decision_scores import Foretold, action_losses, foretell, tensors
from addnorm.uses.decisions import Decisions
from addnorm.words import a_few, plural

EVAL_ROWS = 64  # windows, or environments, that go through the model at once in an evaluation
WORST, LOOKED_AT = 5, 500  # decisions in the report; those that they are taken from
FEW = 4  # numbers of a vector in the report
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
SOURCES = {"content": ["data", "val_data"], "rows_per_step": ["rows_per_step"]}
SOURCES |= {"model": ["data", "states", "actions"]}
"""Fact of a task -> the settings that it comes from."""
READ = ("states", "actions", "state_kind", "action_kind", "longest", "return_mean", "return_scale")
"""Of the model's choices those that the data decides."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class DecideSettings(TaskSettings):
    """The settings of the training of a model that acts, apart from the loop's."""

    name = "decide"
    data: str = setting("", AtResume.IF_SAME)
    """Episodes: a .jsonl file with states, actions and rewards, or minari:ID."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Episodes to hold out, in one of these formats; by itself a share of data."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the episodes are held out, chosen by a hash of each."""
    best_share: float = setting(1.0, AtResume.ANEW)
    """The share of the episodes that is learned from, those with the highest returns; without
    model.returns 0.1 clones the best tenth."""
    states: int | None = setting(None, AtResume.ANEW)
    """How many states there are, where they are whole numbers; none: up to the highest in data."""
    actions: int | None = setting(None, AtResume.ANEW)
    """How many actions there are, where they are whole numbers; none: up to the highest in data."""
    rows_per_step: int = setting(64, AtResume.BY_TUNING)
    """Windows of episodes in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In the front and in branches."""
    glance_windows: int = setting(1000, AtResume.WITH_NOTICE)
    """Held-out windows that evaluations before the last one see."""
    env: str = setting("", AtResume.FREELY)
    """Where it acts at the end, for the report: the id of a gymnasium environment, or
    module:factory; by itself nowhere."""
    returns: tuple[str, ...] = setting((), AtResume.FREELY)
    """Which returns it is asked for there; by itself the quartiles of those in data."""
    episodes: int = setting(100, AtResume.FREELY)
    """Episodes there for each of them."""
    model: DecisionConfig = field(
        default_factory=lambda: DecisionConfig(states=1, actions=1),
        metadata={HIDDEN: (*READ, "quartiles", "dropout"), AT_RESUME: AtResume.ANEW},
    )

    def __post_init__(self) -> None:
        check_effect(self)
        if not 0.0 < self.val_fraction < 1.0:
            raise SettingsError(
                f"val_fraction must be between 0 and 1, both excluded, got {self.val_fraction:g}"
            )
        if not 0.0 < self.best_share <= 1.0:
            raise SettingsError(
                f"best_share must be above 0 and at most 1, got {self.best_share:g}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise SettingsError(f"dropout must be in [0, 1), got {self.dropout:g}")
        for name in ("states", "actions", "rows_per_step", "glance_windows", "episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}")
        if self.returns and not self.env:
            raise SettingsError("returns has no effect without env, the environment to act in")
        if self.returns and not self.model.returns:
            raise SettingsError("returns has no effect with model.returns=false: nothing is asked")
        self.wishes()

    def wishes(self) -> list[float] | None:
        """Which returns are asked for; None: those of the data."""
        try:
            numbers = [float(word) for word in self.returns]
        except ValueError:
            raise SettingsError(f"returns must be numbers, got {', '.join(self.returns)}") from None
        if not all(map(math.isfinite, numbers)):
            raise SettingsError(f"returns must be finite, got {', '.join(self.returns)}")
        return numbers or None

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout, and no environment."""
        return {"dropout": 0.0, "env": "", "returns": ()}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "DecideTask":
        """Read the episodes, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError(f"data is not set: {FORMATS}")
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        try:
            train, val, remarks = divided(self.data, self.val_data, self.val_fraction)
            train = best_part(train, self.best_share)
            return DecideTask(self, self._config(train, val), train, val, remarks)
        except DataError as error:
            raise DataError(f"{words}: {error}") from None

    def _config(self, train: Sequence[Episode], val: Sequence[Episode]) -> DecisionConfig:
        """The model's choices, those that the data decides among them."""
        every = [*train, *val]
        steps, c = Steps(train), self.model
        sizes: dict[str, Any] = {}
        for name, wish in (("states", self.states), ("actions", self.actions)):
            columns = [getattr(episode, name) for episode in every]
            kind = kind_of(columns[0])
            sizes[f"{name[:-1]}_kind"] = kind
            most = 1 + max(int(c.max()) for c in columns) if kind == NUMBER else columns[0].shape[1]
            if wish is not None and (wish < most or kind != NUMBER):
                what = f"there are {most}" if kind == NUMBER else "they are lists of numbers"
                raise SettingsError(f"{name}={wish}: in {self.data} {what}")
            sizes[name] = wish or most
        spread = float(steps.to_go.std())
        totals = [episode.total for episode in train]
        return replace(
            c,
            **sizes,
            longest=max(len(e.rewards) for e in every),
            return_mean=float(steps.to_go.mean()),
            return_scale=spread if spread > 1e-6 else 1.0,
            quartiles=tuple(dict.fromkeys(float(q) for q in np.quantile(totals, QUARTERS))),
            dropout=self.dropout,
        )


def divided(
    data: str, val_data: str, val_fraction: float
) -> tuple[list[Episode], list[Episode], list[str]]:
    """(episodes to learn from, those that are held out, what is odd about them in sentences). An
    episode is held out by a hash of it, so that one that comes twice is on one side, or because it
    stands in ``val_data``; "": in no file of its own."""
    episodes = read_episodes(data)
    remarks = [*episodes.remarks]
    if val_data:
        others = read_episodes(val_data)
        first, other = episodes.rows[0], others.rows[0]
        for name in ("states", "actions"):
            a, b = getattr(first, name).shape[1:], getattr(other, name).shape[1:]
            if a != b:
                raise DataError(f"{name} are of one kind in {data} and of another in {val_data}")
        learned = {row.identity() for row in episodes.rows}
        if common := sum(row.identity() in learned for row in others.rows):
            remarks.append(
                f"{plural(common, 'episode')} of {val_data} stand in {data} too: what is measured "
                "on them is what was learned by heart"
            )
        return [*episodes.rows], [*others.rows], [*remarks, *others.remarks]
    sides: dict[bool, list[Episode]] = {False: [], True: []}
    for row in episodes.rows:
        sides[text_hash(row.identity()) / HASHES < val_fraction].append(row)
    for side, what in ((False, "learn from"), (True, "hold out")):
        if not sides[side]:
            raise DataError(
                f"{data} has too few episodes: of {len(episodes.rows):,}, with "
                f"val_fraction={val_fraction:g}, none is left to {what}"
            )
    return sides[False], sides[True], remarks


@final
class DecideTask(Task):
    """What is done next.

    ``settings``: those of the training. ``config``: the model's choices. ``train``, ``val``:
    episodes to learn from, and held out. ``remarks``: what is odd about them, in sentences.
    """

    best = Best("val_loss", "min")
    noun = "A model that acts"
    unit = "actions"
    commands = MappingProxyType(
        {
            "Ask it": "addnorm predict {model} moments.jsonl",
            "Let it act": "addnorm eval {model} --env ENV --returns R1,R2",
        }
    )

    def __init__(
        self,
        settings: DecideSettings,
        config: DecisionConfig,
        train: Sequence[Episode],
        val: Sequence[Episode],
        remarks: Sequence[str],
    ) -> None:
        self.settings, self.config, self.remarks = settings, config, remarks
        self.episodes = {"train": train, "val": val}
        self.splits = {name: Steps(rows) for name, rows in self.episodes.items()}
        self.spread: Tensor | None = None  # of actions that are vectors: the unit of their loss
        if config.action_kind != NUMBER:
            self.spread = spread_of(torch.from_numpy(self.splits["train"].actions)).float()
        self._pictures: list[Picture] = []
        self._make = environments.maker(settings.env) if settings.env else None

    # --- for the loop -----------------------------------------------------------------------------

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the windows of a step, and of each micro-batch what every layer keeps of the
        stream."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = counted(self._empty, c.n_layers)
        own = -(-size // processes)
        tokens = (3 if c.returns else 2) * c.context_length
        sizes = ((c.states, c.state_kind), (c.actions, c.action_kind))
        width = sum(size for size, kind in sizes if kind != NUMBER)
        # bytes: of a step a number of 8 four times at the least; two of the stream a layer
        batch = own * c.context_length * (32 + 4 * width)
        batch += min(micro_rows or own, own) * tokens * 4 * 2 * c.n_layers * c.dim
        because = ", ".join(
            f"model.{n}={getattr(c, n)}" for n in ("context_length", "dim", "n_layers")
        )
        because += f", rows_per_step={size}, micro_rows={micro_rows}, {c.states:,} states"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> DecisionModel:
        """The model without memory, with so many layers."""
        with torch.device("meta"):
            return DecisionModel(replace(self.config, n_layers=layers))

    def model(self) -> DecisionModel:
        """A new model, which knows mean and spread of vectors in the data."""
        model = DecisionModel(self.config)
        for inputs, values in (
            (model.states, self.splits["train"].states),
            (model.actions, self.splits["train"].actions),
        ):
            if values.ndim > 1:
                inputs.adapt(torch.from_numpy(values))
        return model

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's windows, which begin anywhere in an episode
        and end with it at the latest, filled up behind."""
        size, steps = self.settings.rows_per_step, self.splits[split]
        firsts = steps.firsts(step * size, (step + 1) * size, seed)[rank::world]
        return tensors(steps.windows(firsts, self.config.context_length))

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy of every action, or the mean square of what is off in units of the spread
        of vectors, summed; ``accuracy`` counts those that are the most probable."""
        output = model(batch["returns"], batch["states"], batch["actions"], batch["times"])
        valid = batch["valid"]
        loss = (action_losses(output, batch["actions"], self.spread) * valid).sum()
        if self.spread is not None:
            return loss, valid.sum(), {}
        right = (output.argmax(-1) == batch["actions"]) & valid
        return loss, valid.sum(), {"accuracy": right.sum()}

    # --- what is held out -------------------------------------------------------------------------

    def glance(self, model: nn.Module) -> dict[str, float]:
        """How well the actions of the first held-out windows are foretold."""
        return self._foretold(model, self.settings.glance_windows).figures()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """How well all held-out actions are foretold, and where there is an environment what is
        reached in it, ``reached``, if the highest return is asked for. Every process does all of
        it, since a sharded model is the work of all processes at once."""
        foretold = self._foretold(model, len(self.splits["val"]))
        self._pictures = worst_decisions(self._surprises(foretold), len(self.splits["val"]))
        if self._make is None or not isinstance(model, DecisionModel):
            return foretold.figures()
        use = Decisions(model)
        wish = {"returns": self.settings.wishes(), "episodes": self.settings.episodes}
        how = use.with_defaults({"env": self.settings.env, **wish})
        with ProgressBar("acting", patience=2.0) as bar:
            outcome = use.reached(self._make, how, batch_size=EVAL_ROWS, bar=bar)
        totals = [episode.total for episode in self.episodes["train"]]
        self._pictures = [*reached_returns(outcome, totals), *self._pictures]
        return {**foretold.figures(), "reached": outcome["return_mean"][-1]}

    def _foretold(self, model: nn.Module, most: int) -> Foretold:
        """What the model makes of the first ``most`` held-out windows."""
        c, steps = self.config, self.splits["val"]
        firsts = steps.every(c.context_length)[:most]
        with ProgressBar(hidden=True) as bar:
            return foretell(model, steps, firsts, c.context_length, self.spread, EVAL_ROWS, bar)

    def _surprises(self, foretold: Foretold) -> list[tuple[float, str, str, str, str]]:
        """Of the most surprising actions, each kind once, the loss, and in words the moment, the
        return to go, what was done, and what the model would have done."""
        steps, losses = self.splits["val"], dict[tuple[str, str, str, str], float]()
        for i in foretold.losses.argsort(descending=True)[:LOOKED_AT].tolist():
            place = int(foretold.places[i])
            to_go = f"{steps.to_go[place]:.4g}" if self.config.returns else "-"
            moment = f"{_short(steps.states[place])}, step {steps.times[place] + 1}"
            action, ours = _short(steps.actions[place]), _short(foretold.actions[i].numpy())
            losses.setdefault((moment, to_go, action, ours), float(foretold.losses[i]))
        return [(loss, *words) for words, loss in losses.items()][:WORST]

    def pictures(self) -> list[Picture]:
        """What the last ``evaluate`` reached, and what surprised it; nothing before."""
        return self._pictures

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``."""
        assert isinstance(model, DecisionModel)
        decisions.write(model, folder, None, None)

    def facts(self) -> dict[str, Any]:
        """The episodes, and what the model is."""
        content = hashlib.sha256()
        for name in ("train", "val"):
            content.update(name.encode())
            for episode in self.episodes[name]:
                content.update(episode.identity().encode())
        model = {k: v for k, v in asdict(self.config).items() if k not in ("dropout", "quartiles")}
        return {
            "content": content.hexdigest()[:16],
            "rows_per_step": self.settings.rows_per_step,
            "model": model,
        }

    def introduction(self) -> list[str]:
        """The data and the model."""
        c, train = self.config, self.episodes["train"]
        parameters, _ = counted(self._empty, c.n_layers)
        low, *_, high = (c.quartiles[0], c.quartiles[-1])
        share = self.settings.best_share
        best = f", the best {share:.3g} of them" if share < 1 else ""
        middle = float(np.median([episode.total for episode in train]))
        return [
            f"{self.settings.data}: {plural(len(train), 'episode')} to learn from{best}, "
            f"{plural(len(self.splits['train']), 'step')} with returns from {low:.4g} to "
            f"{high:.4g}, in the middle {middle:.4g}; {len(self.episodes['val']):,} held out",
            f"{_in_words('state', c.states, c.state_kind)}, "
            f"{_in_words('action', c.actions, c.action_kind)}",
            *self.remarks,
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"{plural(c.context_length, 'step')} at a time"
            f"{'' if c.returns else ', without returns: it clones what was done'}",
        ]


def _in_words(noun: str, size: int, kind: str) -> str:
    return plural(size, noun) if kind == NUMBER else f"{noun}s of {plural(size, 'number')}"


def _short(value: Any) -> str:
    """A state or an action for a table."""
    array = np.asarray(value)
    if not array.ndim:
        return str(int(array))
    return "[" + a_few([f"{v:.3g}" for v in array.tolist()], FEW) + "]"
