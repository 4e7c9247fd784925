"""What is looked for: a rule or a family of rules a file.

They are checked in this order, and of findings that are equally grave the first come first. A rule
says what it finds, and with which evidence, in an object (``linting/rule.py``), and has its page in
``pages/``.
"""
# ruff: noqa: F401, I001

from addnorm.linting.rules import norm_formula
from addnorm.linting.rules import norm_axes
from addnorm.linting.rules import norm_gradient
from addnorm.linting.rules import norm_precision
from addnorm.linting.rules import norm_inline
from addnorm.linting.rules import no_residual
from addnorm.linting.rules import residual
from addnorm.linting.rules import norm_placement
from addnorm.linting.rules import sublayers
from addnorm.linting.rules import attention
from addnorm.linting.rules import init
from addnorm.linting.rules import parameters
from addnorm.linting.rules import embeddings
from addnorm.linting.rules import optimizer_groups
from addnorm.linting.rules import future
from addnorm.linting.rules import samples
from addnorm.linting.rules import masks
from addnorm.linting.rules import arguments
from addnorm.linting.rules import positions
from addnorm.linting.rules import modes
