"""What topkit's kernels, and decoding through them, cost on a GPU, beside the fastest that is there."""
