"""The user's own recommender, as its factory gives it."""
