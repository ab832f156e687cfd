"""Our code beside the library's, side by side in one run. ``python -m benchmarks`` runs all."""
