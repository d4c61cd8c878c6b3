"""HELMET (arXiv 2410.02694): its Recall, RAG, Re-rank and ICL files."""
