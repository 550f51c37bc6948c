"""Errors that a person outside the program is told about."""


class StartError(Exception):
    """The daemon can't start; the text is one line for the operator: what was wrong and what to do."""


class RoomNameError(ValueError):
    """A room name that isn't allowed; the text says what is."""
