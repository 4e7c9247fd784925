"""The settings of the loop: what ``Trainer`` and the optimizers read, whatever is trained."""

from dataclasses import dataclass
from typing import Literal

from addnorm.training.config import ConfigError
from addnorm.training.parallel import Parallel

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
MOST_THREADS = 1024  # a process that is asked for very many dies without a word


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of the loop, whatever is trained."""

    steps: int = 1000
    """Optimizer steps."""
    seed: int = 0
    """Of the weights, of dropout, and of the order of the data."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: torch's, for the matrices of the stack; AdamW for the rest."""
    lr: float = 1e-3
    """AdamW's largest learning rate."""
    muon_lr: float = 2e-3
    """Muon's largest learning rate, for updates of the size of AdamW's."""
    schedule: Schedule = "cosine"
    """How the learning rate falls; wsd stays, and falls over the last decay of the steps."""
    warmup: int = 100
    """Steps over which it rises."""
    lr_floor: float = 0.1
    """Where it ends, as a share of the largest."""
    decay: float = 0.2
    """The last part of the steps, for wsd."""
    weight_decay: float = 0.1
    """Of matrices and tables, times the learning rate; never of norm gains and biases."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of its square."""
    clip: float = 1.0
    """The largest norm of the gradient; 0: any."""
    micro_rows: int | None = None
    """Rows that go through the model at once on each process; none: all of the step's."""
    precision: Precision = "auto"
    """auto: bf16 where the machine multiplies it fast, else fp32."""
    compile: Literal["auto", "true", "false"] = "auto"
    """torch.compile; auto: where there is a GPU, if a small trial works."""
    parallel: Parallel = "ddp"
    """On several processes: ddp copies the model, fsdp divides it among them."""
    nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """When loss or gradient are not finite: stop and say where, leave the step out, or go back to
    the last checkpoint and past the data that did it."""
    most_rollbacks: int = 3
    """Rollbacks after which the run stops all the same."""
    spike: float = 0.0
    """Leave out steps whose gradient norm exceeds so many times the recent median; 0: none."""
    eval_every: int = 250
    """Steps between evaluations; 0: at the end only."""
    save_every: int = 500
    """Steps between checkpoints; 0: at the end only."""
    keep: int = 2
    """Checkpoints that stay."""
    watch_every: int = 10
    """Steps between measurements of the residual stream, layer by layer; 0: none."""
    threads: int | None = None
    """CPU threads of each process; none: torch's choice."""
    device: str = "auto"
    """cpu, cuda, mps; auto: an accelerator if there is one."""

    def __post_init__(self) -> None:
        for name in ("steps", "keep", "most_rollbacks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "eval_every", "save_every", "watch_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "muon_lr", "weight_decay", "clip", "spike"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name):g}")
        for name in ("lr_floor", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name):g}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name):g}")
        for name in ("micro_rows", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1 or none, got {getattr(self, name)}")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise ConfigError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
