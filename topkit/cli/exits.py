"""How a command ends: one line on stderr and an exit code.

0 done, 1 a gate failed, 2 bad input, 3 undecided, 70 a fault of topkit itself, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import typer

from topkit.errors import (
    EXTRA_OF,
    GateFailed,
    InputError,
    MissingExtra,
    Undecided,
    memory_is_full,
)

DONE, GATE_FAILED, BAD_INPUT, UNDECIDED, FAULT, INTERRUPTED = 0, 1, 2, 3, 70, 130

# Click's root of errors, whether typer imports click or carries it.
UsageProblem = typer.BadParameter.__mro__[2]


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a typer app on the arguments (by default those of the process); returns the exit code."""
    command = typer.main.get_command(app)
    return exit_code(lambda: command.main(arguments, prog_name="topkit", standalone_mode=False))


def exit_code(body: Callable[[], object]) -> int:
    """Call `body`, and turn whatever it raises into a line and an exit code."""
    try:
        returned = body()
        # Some versions of typer return 130 where others raise.
        if returned == INTERRUPTED:
            raise KeyboardInterrupt
        return returned if isinstance(returned, int) else DONE
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; run the same command again to go on", INTERRUPTED)
    except GateFailed as error:
        return _say(error, GATE_FAILED)
    except Undecided as error:
        return _say(error, UNDECIDED)
    except InputError as error:
        return _say(error, BAD_INPUT)
    except BrokenPipeError:
        # The reader of our output left (`| head`); Python would complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        return _say(_of_system(error), BAD_INPUT)
    except Exception as error:
        return _of_others(error)


def _of_others(error: Exception) -> int:
    if isinstance(error, UsageProblem):
        return _say(error.format_message(), BAD_INPUT)  # type: ignore[attr-defined]
    if memory_is_full(error):
        return _say("out of memory; lower --batch-size, --jobs or --length", BAD_INPUT)
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF:
        return _say(MissingExtra(error.name), BAD_INPUT)
    traceback.print_exception(error)
    return _say("this is a fault of topkit, not of your command", FAULT)


def _of_system(error: OSError) -> str:
    name = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{name}"


def _say(message: object, code: int) -> int:
    line = " ".join(str(message).split())
    print(f"topkit: {line}", file=sys.stderr)
    return code
