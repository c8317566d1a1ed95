"""The only users of mlflow: a run for each trial of a study, and the registry of models."""
