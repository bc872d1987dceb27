"""Quality of quantised models: a model to measure on, and the comparison."""
