"""Networks, noise and diffusion: mathematics that knows neither Ray, nor MLflow, nor files."""
