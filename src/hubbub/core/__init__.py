"""The pure core: no Trio, no I/O, no clock, no randomness; what it needs of those is passed in.

Everything here is a plain `def`. Under Trio such a function runs between two checkpoints, so it is atomic:
that is why nothing in this package has a lock.
"""
