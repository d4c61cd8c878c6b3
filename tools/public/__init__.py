"""What public code chooses of drawn tensors: a file a method, run on the CPU from a checkout of it."""
