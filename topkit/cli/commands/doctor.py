"""`topkit doctor`: what is installed, and what of it is broken."""

from __future__ import annotations

from topkit.cli import options as o
from topkit.cli.screen import show
from topkit.errors import GateFailed


def doctor(as_json: o.Json = False) -> None:
    """Check versions, device and disk; exit 1 if something is broken."""
    from topkit.cli.doctor import examine

    findings = examine()
    show([vars(finding) for finding in findings], as_json)
    broken = [f"{finding.name}: {finding.problem}" for finding in findings if finding.problem]
    if broken:
        raise GateFailed("; ".join(broken))
