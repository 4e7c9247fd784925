"""What an adapter is: its kind and its numbers, checked."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, final, get_args

from addnorm.checks import check_known, check_whole, is_number
from addnorm.errors import Mendable, value_in_short

AdapterKind = Literal["none", "lora", "adalora", "prefix", "prompt", "adapter"]
APART = ("prefix", "prompt", "adapter")
"""The kinds that are no update of the model's weights, and stay beside it."""


def _for(default: Any, *kinds: str) -> Any:
    """A setting that only these kinds have."""
    return field(default=default, metadata={"needs": ({"kind": kinds},)})


@final
@dataclass(frozen=True, kw_only=True)
class Adapt:
    """What is trained beside the frozen model."""

    kind: AdapterKind = "none"
    """lora, adalora, prefix, prompt, adapter; none: the whole model is trained."""
    targets: tuple[str, ...] = _for(("q", "v"), "lora", "adalora")
    """Which matrices of the branches get low-rank updates: q, k, v, out, up, down, gate."""
    rank: int = _for(8, "lora")
    """The rank of each update."""
    alpha: float = _for(16.0, "lora", "adalora")
    """Updates count alpha / rank times (adalora: alpha / init_rank)."""
    dropout: float = _for(0.0, "lora", "adalora")
    """The dropout on what the updates read, in [0, 1)."""
    init_rank: int = _for(12, "adalora")
    """The rank of each update in the beginning."""
    target_rank: int = _for(8, "adalora")
    """The mean rank of the updates at the end."""
    steps: int | None = _for(None, "adalora")
    """Optimizer steps in which the ranks fall; None: all that the run has when it begins."""
    tinit: int = _for(0, "adalora")
    """First steps in which nothing is pruned."""
    tfinal: int = _for(0, "adalora")
    """Last steps in which the ranks stay what they are."""
    delta_t: int = _for(1, "adalora")
    """Steps from one pruning to the next."""
    orthogonality: float = _for(0.1, "adalora")
    """Times |A A' - 1|^2 + |B' B - 1|^2, which is added to the mean loss."""
    length: int = _for(16, "prefix", "prompt")
    """Keys and values in front of every attention's own (prefix), or soft tokens in front of the
    text, which take as many places of the context (prompt)."""
    positions: Literal["kept", "shifted"] = _for("kept", "prefix")
    """Whether tokens keep their positions, or begin at length as in peft."""
    text: str | None = _for(None, "prompt")
    """What the soft tokens begin as: the tokens of a text, again and again up to length; none:
    tokens of the vocabulary at random."""
    width: int = _for(64, "adapter")
    """The width of the bottleneck."""

    def __post_init__(self) -> None:
        check_known("kind", self.kind, get_args(AdapterKind))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            kinds = f.metadata["needs"][0]["kind"] if "needs" in f.metadata else (self.kind,)
            if self.kind not in kinds and value != f.default:
                raise Mendable(f"{f.name} is a setting of {' and '.join(kinds)}, not {self.kind}")
            least = {"tinit": 0, "tfinal": 0}.get(f.name, 1)
            whole = f.type is int or (f.name == "steps" and value is not None)
            if whole:
                check_whole(f.name, value, least)
            if f.type is float and not is_number(value):
                raise Mendable(f"{f.name} must be a number, got {value_in_short(value)}")
        check_known("positions", self.positions, ("kept", "shifted"))
        if self.text is not None and not (isinstance(self.text, str) and self.text):
            raise Mendable(f"text must be words, got {value_in_short(self.text)}")
        names = self.targets if isinstance(self.targets, tuple) else ()
        if not names or not all(isinstance(name, str) for name in names):
            short = value_in_short(self.targets)
            raise Mendable(f"targets must be names such as ('q', 'v'), got {short}")
        if not self.alpha > 0 or not self.orthogonality >= 0:
            raise Mendable("alpha must be positive and orthogonality not negative")
        if not 0.0 <= self.dropout < 1.0:
            raise Mendable(f"dropout must be in [0, 1), got {self.dropout:g}")
        if self.kind == "adalora":
            if self.target_rank > self.init_rank:
                raise Mendable(
                    f"target_rank={self.target_rank} is above init_rank={self.init_rank}"
                )
            if self.steps is not None and self.tinit >= self.steps - self.tfinal:
                raise Mendable(
                    f"tinit={self.tinit} and tfinal={self.tfinal} leave none of {self.steps} steps "
                    "to prune in"
                )

    @property
    def scale(self) -> float:
        """What a low-rank update is multiplied by."""
        return self.alpha / (self.rank if self.kind == "lora" else self.init_rank)
