"""What runs how fast: measurements that ``launch/bench.py`` prints."""
