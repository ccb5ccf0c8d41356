"""Conditioned diffusion models on brain MRI: trained, searched and evaluated on Ray, from split files to anomaly maps."""
