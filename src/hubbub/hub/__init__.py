"""The hub: the state of all rooms, and the only task that changes it."""
