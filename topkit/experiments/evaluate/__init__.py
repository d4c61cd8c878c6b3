"""Prompts and cells to accuracy rows, and the fidelity observed meanwhile. Imports capture, decode and what is below."""
