"""The simulated world: the real node on a virtual clock, with in-memory connections and a seeded scheduler."""
