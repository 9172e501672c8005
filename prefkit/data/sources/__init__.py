"""Where rows come from: files, folders, datasets, lists, streams."""
