"""``python -m addnorm`` is the command ``addnorm``, for torchrun and the like."""

import sys

from addnorm.cli import main

sys.exit(main())
