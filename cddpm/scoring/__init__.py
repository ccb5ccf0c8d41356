"""From reconstructions to scores: residuals, thresholds, metrics and how sure they are."""
