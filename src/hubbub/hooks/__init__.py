"""Event hooks: what a back end is asked before a client may do something, and what it is told afterwards."""
