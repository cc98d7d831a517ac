"""Adaptive Meta Fine-Tuning (AMFT): one training stage that learns how much to imitate and how much to explore."""
