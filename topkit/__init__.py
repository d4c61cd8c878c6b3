"""How good must an approximate Top-k indexer be before a language model notices?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from topkit.lazy import lazily

if TYPE_CHECKING:
    from topkit import testing
    from topkit.experiments.capture.capture import Capture
    from topkit.experiments.decode.attach import attach
    from topkit.experiments.evaluate.evaluate import evaluate
    from topkit.indexers.spec import parse as indexer

__version__ = "0.2.0"

# Imported when first asked for, so that `import topkit` is instant.
__getattr__, __dir__ = lazily(
    __name__,
    {
        "Capture": "topkit.experiments.capture.capture",
        "attach": "topkit.experiments.decode.attach",
        "evaluate": "topkit.experiments.evaluate.evaluate",
        "indexer": "topkit.indexers.spec:parse",
        "measure": "topkit.experiments.measure.measure",
        "testing": "topkit.testing:",
    },
)

__all__ = ["Capture", "__version__", "attach", "evaluate", "indexer", "measure", "testing"]
