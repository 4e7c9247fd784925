"""Training: tasks and their settings, the loop, a run's folder, checkpoints, several processes.

``run.py`` is the way through: settings -> task -> loop -> folder. docs/training.md.
"""
