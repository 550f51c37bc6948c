"""Python's garbage collector, set for a process that holds thousands of connections.

What a connection consists of is freed by counting references, when it ends (`Connection.release`). The collector is
there for what nobody foresaw, such as an exception that holds the frames that hold it. Its full passes stop
everything for as long as it takes to look at every object: 60 ms at 1,000 connections, and with Python's defaults one
comes whenever their number has grown by a quarter. So:

1. What exists at the start (modules, classes: 30 ms a pass) isn't looked at again.
2. Young objects are looked at often enough, in passes of 0.5 and 4 ms; all of them only once two million more have
   been made than freed.
"""

import gc

THRESHOLDS = (2_000, 5, 200)
"""New objects a pass over the youngest; such passes a pass over the middle; such a full pass."""


def tune_collector() -> None:
    """Say that the program is loaded and the server begins. To be called once a process, by the daemon."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
