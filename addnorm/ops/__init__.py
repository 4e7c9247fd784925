"""The numerics of Add & Norm.

``reference`` is the definition, ``dispatch`` decides which implementation serves a call and can say
why. See docs/numerics.md.
"""

from addnorm.ops import aten
from addnorm.ops.dispatch import add_norm, explain, reference_only, register
from addnorm.ops.kernel import Kernel
from addnorm.ops.reference import settle

__all__ = ["Kernel", "add_norm", "explain", "reference_only", "register", "settle"]

register(aten.KERNEL)
