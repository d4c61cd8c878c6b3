"""How large everything is that a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass

K = 1024


@dataclass(frozen=True)
class Scale:
    """Sizes and counts. The heads are those of an 8B model."""

    heads: int = 32
    groups: int = 8
    dim: int = 128
    index_heads: int = 64
    k: int = 2048
    small_k: int = 256
    lengths: tuple[int, int, int] = (128 * K, 512 * K, 1024 * K)
    shortest: int = 32 * K
    batch: int = 8
    gathered: tuple[int, ...] = (1, 8, 32)
    rows: tuple[int, ...] = (1, 8, 64, 512)
    copied: int = 1 << 29
    samples: int = 64
    sample_tokens: int = 8 * K
    truth_queries: int = 16
    hidden: int = 4096
    ffn: int = 14336
    vocabulary: int = 32000
    tokens: int = 24
    extra_layers: int = 2
    cold: bool = True
    # Of a token of a small model: SmolLM2-135M's.
    contexts: tuple[int, ...] = (4 * K, 8 * K)
    kept: int = 64
    small_layers: int = 30
    small_hidden: int = 576
    small_vocabulary: int = 49152
    truth_k: int = 64
    # Of attention that is trained through.
    attended: tuple[int, ...] = (16 * K, 32 * K)
    attended_dims: tuple[int, ...] = (64, 128)
    attended_heads: int = 8
    # Of the benchmarks of a CPU.
    captured: int = 32 * K
    captured_queries: int = 16
    budgets: tuple[str, ...] = ("16", "64", "256", "1%", "2048")
    context: int = 4 * K
    steps: int = 16
    repeats: int = 7
    # Rows of fidelity that are summarised.
    summed: int = 20_000_000
    # Tasks and haystacks of a report.
    reported: tuple[int, int] = (8, 128)

    @classmethod
    def tiny(cls) -> Scale:
        """Seconds on a CPU: shows that the benchmarks run, and nothing else."""
        return cls(
            heads=8, groups=2, index_heads=8, k=32, small_k=8, lengths=(256, 320, 512),
            shortest=128, batch=2, gathered=(1, 2), rows=(1, 3), copied=1 << 12, samples=1,
            sample_tokens=2048, truth_queries=2, hidden=64, ffn=64, vocabulary=97, tokens=12,
            cold=False, truth_k=16, captured=512, captured_queries=3,
            budgets=("4", "8", "16", "1%", "64"), context=128, steps=2, repeats=2,
            contexts=(512,), kept=24, small_layers=1, small_hidden=72, small_vocabulary=97,
            summed=4000, reported=(1, 3), attended=(96,), attended_dims=(16,), attended_heads=2,
        )  # fmt: skip


def length_of(tokens: int) -> str:
    """128K, 1M."""
    if tokens % (K * K) == 0:
        return f"{tokens // (K * K)}M"
    return f"{tokens // K}K" if tokens % K == 0 else str(tokens)
