"""The four papers' comparison in miniature: `python -m benchmarks.papers` writes docs/papers.md."""
