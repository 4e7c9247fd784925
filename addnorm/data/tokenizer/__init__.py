"""Text to ids and back: GPT-2's byte-level BPE, BERT's WordPiece, characters, bytes.

Byte-level BPE (Sennrich, Haddow & Birch 2016, arXiv 1508.07909; over bytes: Radford et al. 2019,
"Language Models are Unsupervised Multitask Learners", section 2.2) splits a text into words by a
regular expression, writes each word as UTF-8 bytes, and merges neighbours, the earliest learned
pair first. The work is done by the ``tokenizers`` package; here is what it leaves open:

* ``encode`` adds nothing, and the text of a special token (``<|endoftext|>``) in somebody's text is
  text. With ``allow_special=True`` it is the token.
* ``decode(encode(text)) == text`` for every text. What would break that is refused when a
  tokenizer is loaded. The exceptions are a tokenizer that declares the NFC normalizer (Pythia,
  Qwen), which gives the text in NFC, and WordPiece, which loses case and spacing.
* Ids are bytes first: ``decode_bytes`` joins those of ``token_bytes``. ``decode`` reads them as
  UTF-8 with U+FFFD where they are not, as ``bytes.decode(errors="replace")`` does, and so does
  ``stream``, which holds back a character until it is complete.
* ``identity`` is a hash of all that decides which ids a text gets. It belongs into every file of
  ids and every checkpoint; two tokenizers with the same identity are interchangeable.
"""

from addnorm.data.tokenizer.kind import TokenizerError
from addnorm.data.tokenizer.tokenizer import TextStream, Tokenizer

__all__ = ["TextStream", "Tokenizer", "TokenizerError"]
