"""The controller laboratory: the real methods and the real mathematics on tiny models, seconds a run, without Ray."""
