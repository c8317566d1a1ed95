"""The user's own recommender, made by a factory."""
