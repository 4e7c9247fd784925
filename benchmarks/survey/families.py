"""Which third of the survey a family belongs to.

A family is what was written together: a folder of transformers' ``models``, a group of options of
x-transformers, the attention of ``torch.nn``. Rules of lint are mended by what the first third
shows. The second is looked at once and its figures are written down as they are; then the third.
The split is by a hash of the name, so that nobody chose it and new families fall somewhere too.
"""

import hashlib

THIRDS = (1, 2, 3)


def third(family: str) -> int:
    """1, 2 or 3; ``family`` as in "transformers gpt2"."""
    digest = hashlib.sha256(family.encode()).digest()
    return THIRDS[int.from_bytes(digest[:8], "big") % len(THIRDS)]
