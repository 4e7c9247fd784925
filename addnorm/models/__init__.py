"""Models, one file each: a front, one or more stacks, a head.

``gpt.py``, ``classifier.py`` and ``transformer.py`` are the models; ``weights.py``, ``configs.py``
and ``folders.py`` read and write them.
"""
