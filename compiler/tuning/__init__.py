"""Finding the fastest verified pipeline for a chip: what to try, how to judge it, how to search."""
