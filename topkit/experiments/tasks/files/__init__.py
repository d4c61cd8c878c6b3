"""Task files as their benchmarks publish them: read row by row, asked in the words of their format."""
