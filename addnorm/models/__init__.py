"""Models, one file each: a front, stacks, a head."""
