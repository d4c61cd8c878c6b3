"""Ten rooms, each of which imports only those below it; ARCHITECTURE.md draws them."""
