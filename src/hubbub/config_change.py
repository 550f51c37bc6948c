"""What becomes of a running server's settings when their sources say something else."""

from hubbub.config import FIXED, Settings
from hubbub.config_types import Namespace


def change(running: Settings, before: Settings, wanted: Settings) -> tuple[list[str], list[str]]:
    """Change the running settings by what is wanted now and wasn't before, where that is possible.

    Args:
        before: as read before; of what is fixed, as it was at the start.

    Returns the names of those that were changed, and of those that need a restart.
    """
    differing = [name for name in Settings.__struct_fields__ if getattr(before, name) != getattr(wanted, name)]
    changed = [name for name in differing if name not in FIXED]
    for name in changed:
        setattr(running, name, getattr(wanted, name))
    if "namespaces" in changed and _own(before) == _own(wanted):
        changed.remove("namespaces")
    return changed, [name for name in differing if name in FIXED]


def _own(settings: Settings) -> dict[str, dict[str, object]]:
    """Return what the namespaces have that the top level hasn't."""
    fields = Namespace.__struct_fields__
    return {
        name: {field: value for field in fields if (value := getattr(space, field)) != getattr(settings, field)}
        for name, space in settings.namespaces.items()
    }
