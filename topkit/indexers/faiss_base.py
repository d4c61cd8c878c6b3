# pyright: strict, reportUnknownMemberType=false
"""What the FAISS recipes share: one FAISS index per row and KV head."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from topkit.errors import InputError, extras_named
from topkit.indexers.base import Indexer
from topkit.indexers.rotation import rotated
from topkit.indexers.stated_cost import Cost, Shape
from topkit.indexers.traits import Traits

Vectors = np.ndarray[Any, Any]


def import_faiss(device: str = "cpu") -> Any:
    """The faiss module, one that works on a GPU for "cuda".

    Raises: InputError when it is not installed, hidden by a half-removed second distribution, or of a CPU alone.
    """
    with extras_named():
        import faiss
    if not hasattr(faiss, "IndexFlatIP"):
        raise InputError(
            "FAISS is broken: faiss-cpu and faiss-gpu overwrote each other; reinstall one"
        )
    if device == "cuda":
        known: Any = faiss
        if not hasattr(faiss, "StandardGpuResources"):
            raise InputError(
                "device='cuda' needs faiss-gpu, and faiss-cpu is installed; "
                "pip uninstall faiss-cpu, then pip install 'topkit[faiss-gpu]'"
            )
        if known.get_num_gpus() < 1 or not torch.cuda.is_available():
            raise InputError("device='cuda' needs a GPU, and there is none; use device='cpu'")
    return faiss


@dataclass(frozen=True)
class Hits:
    """What a search of one FAISS index gave.

    Shapes: scores, ids [q, n], best first, -1 behind them; compared, keys whose score was computed, [q], or
    of each query as many; probes [q, p], the lists that were searched, where there are lists.
    """

    scores: Tensor
    ids: Tensor
    compared: Tensor | float
    probes: Tensor | None = None

    @classmethod
    def of(
        cls, scores: Vectors, ids: Vectors, compared: Vectors | float, probes: Vectors | None = None
    ) -> Hits:
        """Hits of the arrays that FAISS gives."""
        many = torch.from_numpy(compared) if isinstance(compared, np.ndarray) else compared
        lists = None if probes is None else torch.from_numpy(probes)
        return cls(torch.from_numpy(scores), torch.from_numpy(ids), many, lists)


class FaissRecipe(Indexer):
    """A recipe that makes, fills and searches one FAISS index over the keys of one head.

    center takes off the mean of the keys at build, hadamard turns keys and queries by an orthonormal
    rotation: products change by the same for all keys of a query, or not at all.
    """

    # Parameters of most recipes, behind their own.
    center: bool = False
    hadamard: bool = False

    family: ClassVar[str] = "ann"
    requires: ClassVar[str] = "faiss"

    @property
    def on_gpu(self) -> bool:
        return getattr(self, "device", "cpu") == "cuda"

    @property
    def apart(self) -> bool:
        """Whether a key scores as `rounded` says, so that it may stand behind an index that it is not in."""
        return False

    def traits(self) -> Traits:
        return Traits(exhaustive=False, may_come_short=True, drifts=True, host=not self.on_gpu)

    def foresee(self, keys: int, length: int, width: int, rows: int, heads: int) -> None:
        """Refuse an append that would take too long.

        keys: new ones of one head, of all rows together; length: slots of a row once they are in.
        """

    @abstractmethod
    def make(self, faiss: Any, keys: Tensor) -> Any:
        """A FAISS index of keys [n, D] float32."""

    @abstractmethod
    def size(self, graph: Any) -> int:
        """Bytes that the index holds."""

    def add(self, faiss: Any, graph: Any, keys: Tensor) -> None:
        """Let keys [n, D] join the index."""
        graph.add(plain(keys))

    def search(self, faiss: Any, graph: Any, queries: Tensor, n: int) -> Hits:
        """The best n keys for each of queries [q, D]."""
        scores, ids = graph.search(plain(queries), n)
        return Hits.of(scores, ids, graph.ntotal)

    def remove(self, faiss: Any, graph: Any, adds: list[int]) -> Any:
        """The index cut to its first adds[-1] keys; `adds` are its lengths after each add that stays."""
        graph.remove_ids(faiss.IDSelectorRange(adds[-1], graph.ntotal))
        return graph

    def clone(self, faiss: Any, graph: Any) -> Any:
        """A copy that may be added to."""
        return faiss.clone_index(graph)

    def rounded(self, faiss: Any, graph: Any, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [n, D] as the index would score them, and the list of each [n]; for recipes that are `apart`."""
        vectors = plain(keys)
        return torch.from_numpy(graph.sa_decode(graph.sa_encode(vectors))), keys.new_zeros(
            len(keys), dtype=torch.int64
        )

    def key_bytes(self, graph: Any) -> int:
        """Bytes that a search reads for one key."""
        return graph.code_size

    def fixed_bytes(self, graph: Any) -> int:
        """Bytes that every search reads besides the keys it compares."""
        return 0

    def offset_bytes(self, shape: Shape) -> float:
        """Bytes a token of the mean key that is taken off, where it is."""
        return 4 * shape.Hk * shape.D / shape.T if self.center else 0

    def scanned(self, shape: Shape, key: float, fixed: float, build: float) -> Cost:
        """The cost of reading every key of a head for each of its queries.

        key: bytes of one key of one head; fixed: bytes of one head besides; build: multiplications a key.
        """
        s = shape
        return Cost(
            index=s.Hk * (key + fixed / s.T) + self.offset_bytes(s),
            read=s.Hq * s.T * key,
            operations=s.Hq * s.T * s.D,
            build=s.Hk * s.T * build,
            append=s.Hk * build,
            lists=s.Hq,
            kept=s.kept,
            estimated=True,
        )

    def reach(self, graph: Any) -> float:
        """About how many keys a search compares."""
        return graph.ntotal

    @property
    def placing(self) -> float:
        """About how many keys or centroids a new key is compared with."""
        return 64

    def counter(self, faiss: Any) -> float | None:
        """Distances computed since FAISS was started, where it counts them for all searches together."""
        return None

    def turned(self, x: Tensor) -> Tensor:
        """Keys or queries as FAISS is given them, in float32."""
        return rotated(x) if self.hadamard else x.float()


def plain(tensor: Tensor) -> Vectors:
    """A tensor of the host as a NumPy array whose rows are contiguous; a copy where they are not."""
    return np.ascontiguousarray(tensor.numpy())
