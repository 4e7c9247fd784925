"""What a rule is asked about: the user's model, what they say of it, and a copy to probe."""

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.specimen import Specimen
from addnorm.anatomy.structure import Structure
from addnorm.anatomy.trace import Trace


@final
@dataclass(frozen=True)
class Subject:
    """A model under examination."""

    original: nn.Module
    """The user's own. Read only: rules look at its weights and never call it."""
    specimen: Specimen
    """A copy of it and a call. A rule that changes the copy (mode, weights, hooks) puts it back."""
    causal: bool | None = None
    """True: position t must not see what comes after; False: it may; None: nobody said."""
    optimizer: torch.optim.Optimizer | None = None

    @property
    def model(self) -> nn.Module:
        """The copy that is probed."""
        return self.specimen.model

    @property
    def inputs(self) -> Inputs:
        """The call with which it is run."""
        return self.specimen.inputs

    @property
    def trace(self) -> Trace:
        """All operations of one forward of the copy."""
        return self.specimen.trace

    @property
    def structure(self) -> Structure:
        """The stream, sublayers, norms and attentions found in the trace."""
        return self.specimen.structure
