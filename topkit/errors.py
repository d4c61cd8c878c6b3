"""What topkit raises; the console script turns each into an exit code."""


class InputError(ValueError):
    """Bad input: what was expected, what came, what to do (exit 2)."""


class GateFailed(RuntimeError):
    """A gate that the caller set was not met (exit 1)."""


class Undecided(RuntimeError):
    """The data do not decide the question (exit 3)."""
