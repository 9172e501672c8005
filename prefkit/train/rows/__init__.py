"""The rows of a run: layouts, packing, streams, templates, cached references."""
