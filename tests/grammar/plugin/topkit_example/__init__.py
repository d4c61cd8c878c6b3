"""A package of somebody else's, with an indexer and a task for topkit."""
