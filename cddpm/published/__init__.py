"""All that speaks of the published code alone: its weights and files, its evaluation, its printed numbers."""
