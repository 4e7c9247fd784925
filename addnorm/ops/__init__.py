"""The numerics of Add & Norm, and of attention.

``reference`` is the definition of Add & Norm and ``dispatch`` the door to it; ``attention`` has
both; ``offers`` says which implementation served a call and why not another. See docs/numerics.md.
"""

from addnorm.ops.attention import AttentionCall, AttentionKernel, attend
from addnorm.ops.dispatch import add_norm
from addnorm.ops.kernel import NormCall, NormKernel, NormOutput
from addnorm.ops.offers import Declined, explain, reference_only, register
from addnorm.ops.reference import settle
from addnorm.ops.verification import verify

__all__ = [
    "AttentionCall",
    "AttentionKernel",
    "Declined",
    "NormCall",
    "NormKernel",
    "NormOutput",
    "add_norm",
    "attend",
    "explain",
    "reference_only",
    "register",
    "settle",
    "verify",
]
