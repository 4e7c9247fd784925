"""Where a text may be cut without changing an id."""

import re

WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
r"""Unicode's White_Space, which is the \s of GPT-2's expression; str.isspace has more."""

# GPT-2's words never reach from a character that is no whitespace to one that is, and its only
# look-ahead starts in whitespace: between the two, a text may be cut without changing an id.
CUT = re.compile(f"[^{WHITESPACE}](?=[{WHITESPACE}])")
CUT_LAST = re.compile(f"(?s:.*)[^{WHITESPACE}](?=[{WHITESPACE}])")
