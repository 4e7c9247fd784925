"""Resumes wrongly on purpose, for test_prove.py; the arguments are what is wrong, and FILE."""

import json
import sys
from pathlib import Path
from typing import Any

from addnorm.tasks import prove
from addnorm.training import loop
from addnorm.training.loop import Trainer


def forget_random_numbers() -> None:
    """Dropout begins anew."""
    loop.set_random_state.__globals__["torch"].set_rng_state = lambda state: None


def replay_data() -> None:
    """The first step after a resume reads what was read already."""
    restore = Trainer.restore

    def restored(self: Trainer, *args: Any) -> list[str]:
        found = restore(self, *args)
        self.shift -= 1
        return found

    Trainer.restore = restored


def forget_the_optimizer() -> None:
    """AdamW begins anew."""
    Trainer._restore_optimizers = lambda self, stored: None


if __name__ == "__main__":
    {f.__name__: f for f in (forget_random_numbers, replay_data, forget_the_optimizer)}[
        sys.argv[1]
    ]()
    prove.child(json.loads(Path(sys.argv[2]).read_text()))
