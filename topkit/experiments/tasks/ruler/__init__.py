"""RULER (arXiv 2404.06654): its files, and prompts in its manner over a text of one's own."""
