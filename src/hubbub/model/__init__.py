"""The words of hubbub as types: what is said, by whom, and how it ends. Imports nothing above it, never Trio."""
