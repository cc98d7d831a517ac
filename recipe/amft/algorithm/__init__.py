"""The mathematics of AMFT: pure functions of tensors and frozen dataclasses."""
