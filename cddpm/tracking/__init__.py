"""The lab book (MLflow runs), the model package and the registry."""
