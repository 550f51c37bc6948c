"""Engines: where publications are kept, and what decides their order."""
