"""The layer that knows model files: opening, viewing, folding. One folder a kind."""
