"""The settings of the loop: what ``Trainer`` and the optimizers read, whatever is trained."""

from dataclasses import dataclass
from typing import Literal, final

from addnorm.settings import AtResume, SettingsError, check_effect, setting
from addnorm.training.parallel import Parallel

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["cosine", "linear", "wsd", "constant"]
FREELY, WITH_NOTICE, BY_TUNING = AtResume.FREELY, AtResume.WITH_NOTICE, AtResume.BY_TUNING
MOST_RATE = 1e30  # an update times more is beyond float32, where an optimizer raises an error
MOST_THREADS = 1024  # a process that is asked for very many dies without a word


@final
@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """The settings of the loop, whatever is trained."""

    steps: int = setting(1000, FREELY)
    """Optimizer steps."""
    seed: int = setting(0, BY_TUNING)
    """Draws the weights, dropout, and the order of the data."""
    optimizer: Literal["adamw", "muon"] = setting("adamw", BY_TUNING)
    """muon: torch's, for the matrices of the stack; AdamW for the rest."""
    lr: float = setting(1e-3, WITH_NOTICE)
    """AdamW's largest learning rate."""
    muon_lr: float = setting(2e-3, WITH_NOTICE, {"optimizer": ("muon",)})
    """Muon's largest learning rate, for updates of the size of AdamW's."""
    schedule: Schedule = setting("cosine", WITH_NOTICE)
    """How the learning rate falls; wsd stays, and falls over the last decay of the steps."""
    warmup: int = setting(100, WITH_NOTICE)
    """Steps over which the learning rate rises at the start."""
    lr_floor: float = setting(0.1, WITH_NOTICE, {"schedule": ("cosine", "linear", "wsd")})
    """Where the learning rate ends, as a share of the largest."""
    decay: float = setting(0.2, WITH_NOTICE, {"schedule": ("wsd",)})
    """The last part of the steps, for wsd."""
    weight_decay: float = setting(0.1, WITH_NOTICE)
    """The decay of matrices and tables, times the learning rate; not of norm gains and biases."""
    beta1: float = setting(0.9, WITH_NOTICE)
    """AdamW's memory of the gradient."""
    beta2: float = setting(0.95, WITH_NOTICE)
    """AdamW's memory of the gradient's square."""
    clip: float = setting(1.0, WITH_NOTICE)
    """The largest norm of the gradient; 0: any."""
    micro_rows: int | None = setting(None, WITH_NOTICE)
    """Rows that go through the model at once on each process; none: all of the step's."""
    precision: Precision = setting("auto", WITH_NOTICE)
    """auto: bf16 where the machine multiplies it fast, else fp32."""
    compile: Literal["auto", "true", "false"] = setting("auto", WITH_NOTICE)
    """torch.compile; auto: where there is a GPU, if a small trial works."""
    parallel: Parallel = setting("ddp", WITH_NOTICE)
    """On several processes: ddp copies the model, fsdp divides it among them."""
    nonfinite: Literal["stop", "skip", "rollback"] = setting("stop", FREELY)
    """When loss or gradient are not finite: stop and say where, leave the step out, or go back to
    the last checkpoint and past the data that did it."""
    most_rollbacks: int = setting(3, FREELY, {"nonfinite": ("rollback",)})
    """Rollbacks after which the run stops all the same."""
    spike: float = setting(0.0, WITH_NOTICE)
    """Leave out steps whose gradient norm exceeds this many times the recent median; 0: none."""
    eval_every: int = setting(250, FREELY)
    """Steps between evaluations; 0: at the end only."""
    save_every: int = setting(500, FREELY)
    """Steps between checkpoints; 0: at the end only."""
    keep: int = setting(2, FREELY)
    """Checkpoints that stay."""
    watch_every: int = setting(10, FREELY)
    """Steps between measurements of the residual stream, layer by layer; 0: none."""
    threads: int | None = setting(None, WITH_NOTICE)
    """CPU threads of each process; none: torch's choice."""
    device: str = setting("auto", WITH_NOTICE)
    """cpu, cuda, mps; auto: an accelerator if there is one."""

    def __post_init__(self) -> None:
        check_effect(self)
        for name in ("steps", "keep", "most_rollbacks"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "eval_every", "save_every", "watch_every", "seed"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "muon_lr", "weight_decay", "clip", "spike"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must not be negative, got {getattr(self, name):g}")
        for name in ("lr", "muon_lr"):
            if getattr(self, name) > MOST_RATE:
                raise SettingsError(
                    f"{name} must be at most {MOST_RATE:g}, got {getattr(self, name):g}"
                )
        for name in ("lr_floor", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be in [0, 1], got {getattr(self, name):g}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} must be in [0, 1), got {getattr(self, name):g}")
        for name in ("micro_rows", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1 or none, got {getattr(self, name)}")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise SettingsError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
