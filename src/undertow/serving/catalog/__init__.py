"""What a service offers by name: models, adapters and embeddings, found by their headers. No torch."""
