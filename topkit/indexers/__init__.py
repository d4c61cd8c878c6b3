"""Indexers: one file a method, one line each in the registry."""

from topkit.grammar import Registry
from topkit.indexers.adakv import adakv
from topkit.indexers.base import Cache, Index, Indexer, Rest, Selection, Step
from topkit.indexers.clusterkv import clusterkv
from topkit.indexers.combinator import Combinator
from topkit.indexers.degraded import degraded
from topkit.indexers.double_sparsity import double_sparsity
from topkit.indexers.exact import exact
from topkit.indexers.exact_group import exact_group
from topkit.indexers.faiss_flat import faiss_flat
from topkit.indexers.faiss_hnsw import faiss_hnsw
from topkit.indexers.faiss_ivf import faiss_ivf
from topkit.indexers.faiss_ivfpq import faiss_ivfpq
from topkit.indexers.faiss_pq import faiss_pq
from topkit.indexers.faiss_rabitq import faiss_rabitq
from topkit.indexers.faiss_sq import faiss_sq
from topkit.indexers.h2o import h2o
from topkit.indexers.hashattention import hashattention
from topkit.indexers.hisa import hisa
from topkit.indexers.indexcache import indexcache
from topkit.indexers.indices import indices
from topkit.indexers.infllm import infllm
from topkit.indexers.keep import keep
from topkit.indexers.lightning import lightning
from topkit.indexers.loki import loki
from topkit.indexers.magicpig import magicpig
from topkit.indexers.misa import misa
from topkit.indexers.moba import moba
from topkit.indexers.native import native
from topkit.indexers.paged import Paged
from topkit.indexers.pqcache import pqcache
from topkit.indexers.previous import previous
from topkit.indexers.projected import projected
from topkit.indexers.quantized import quantized
from topkit.indexers.quest import quest
from topkit.indexers.rabitq import rabitq
from topkit.indexers.random import random
from topkit.indexers.refine import refine
from topkit.indexers.retrieval_attention import retrieval_attention
from topkit.indexers.retroinfer import retroinfer
from topkit.indexers.reuse import reuse
from topkit.indexers.sampled import sampled
from topkit.indexers.scored import Scored
from topkit.indexers.shared import shared
from topkit.indexers.sign import sign
from topkit.indexers.snapkv import snapkv
from topkit.indexers.sparq import sparq
from topkit.indexers.squeezed import squeezed
from topkit.indexers.stateless import Stateless
from topkit.indexers.streaming_llm import streaming_llm
from topkit.indexers.tactic import tactic
from topkit.indexers.tidaldecode import tidaldecode
from topkit.indexers.top_p import top_p
from topkit.indexers.traits import Traits
from topkit.indexers.twilight import twilight
from topkit.indexers.vattention import vattention

INDEXERS: dict[str, type[Indexer]] = {
    "exact": exact,
    "random": random,
    "streaming_llm": streaming_llm,
    "degraded": degraded,
    "quantized": quantized,
    "sign": sign,
    "rabitq": rabitq,
    "pqcache": pqcache,
    "quest": quest,
    "moba": moba,
    "faiss_flat": faiss_flat,
    "infllm": infllm,
    "hisa": hisa,
    "sparq": sparq,
    "double_sparsity": double_sparsity,
    "loki": loki,
    "faiss_ivf": faiss_ivf,
    "faiss_hnsw": faiss_hnsw,
    "clusterkv": clusterkv,
    "retroinfer": retroinfer,
    "squeezed": squeezed,
    "faiss_pq": faiss_pq,
    "faiss_ivfpq": faiss_ivfpq,
    "faiss_sq": faiss_sq,
    "faiss_rabitq": faiss_rabitq,
    "lightning": lightning,
    "misa": misa,
    "projected": projected,
    "native": native,
    "indices": indices,
    "keep": keep,
    "refine": refine,
    "shared": shared,
    "exact_group": exact_group,
    "snapkv": snapkv,
    "h2o": h2o,
    "retrieval_attention": retrieval_attention,
    "reuse": reuse,
    "previous": previous,
    "tidaldecode": tidaldecode,
    "indexcache": indexcache,
    "top_p": top_p,
    "magicpig": magicpig,
    "hashattention": hashattention,
    "adakv": adakv,
    "sampled": sampled,
    "tactic": tactic,
    "twilight": twilight,
    "vattention": vattention,
}

REGISTRY: Registry[Indexer] = Registry(
    "indexer", Indexer, INDEXERS, "topkit.indexers", "quest(page_size=16)"
)

__all__ = [
    "INDEXERS",
    "REGISTRY",
    "Cache",
    "Combinator",
    "Index",
    "Indexer",
    "Paged",
    "Rest",
    "Scored",
    "Selection",
    "Stateless",
    "Step",
    "Traits",
    *INDEXERS,
]
