"""hubbub: a real-time chat and messaging server on Trio."""

__version__ = "0.1.0"
