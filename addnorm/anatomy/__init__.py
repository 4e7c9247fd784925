"""What is in anybody's model: its operations, structure, norms and arguments, by measurement.

Nothing here judges. ``linting`` and ``testing`` do, with what this room measures; it imports torch,
knows no class of ours and no name of a library, and never imports the rooms that use it.
"""
