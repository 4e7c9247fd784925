"""The numerics of Add & Norm.

``reference`` is the definition, ``dispatch`` the door to it, ``offers`` says which implementation
served a call and why not another. See docs/numerics.md.
"""

from addnorm.ops.dispatch import add_norm
from addnorm.ops.kernel import NormCall, NormKernel, NormOutput
from addnorm.ops.offers import Declined, explain, reference_only, register
from addnorm.ops.reference import settle

__all__ = [
    "Declined",
    "NormCall",
    "NormKernel",
    "NormOutput",
    "add_norm",
    "explain",
    "reference_only",
    "register",
    "settle",
]
