"""`python -m topkit`: the console script."""

from __future__ import annotations

from topkit.cli import main

if __name__ == "__main__":
    main()
