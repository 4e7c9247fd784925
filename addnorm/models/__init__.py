"""Models, one file each.

``gpt.py`` and ``classifier.py`` have a front, a stack and a head, ``transformer.py`` has stacks
alone. They know nothing of the disk; ``addnorm.files`` reads and writes them.
"""
