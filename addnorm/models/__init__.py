"""Models, one file each.

``gpt.py`` and ``classifier.py`` have a front, a stack and a head, ``transformer.py`` has stacks
alone; ``weights.py``, ``configs.py``, ``stored.py`` and ``folders.py`` read and write models.
"""
