"""Shows attributions: as figures, as pages, as numbers, and in files that are read again."""
