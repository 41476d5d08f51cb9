"""Benchmarks, in folders by what is measured: `python -m benchmarks.FOLDER.SCRIPT`, from the root of a checkout."""
