"""A synthetic DATA_DIR: drawn brains and lesions, so that everything runs without a scan of any person."""
