"""From the hospital's files, or an official download, to a DATA_DIR in the published layout."""
