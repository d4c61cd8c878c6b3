"""A module that fails where it is imported."""

raise RuntimeError("not on this machine")
