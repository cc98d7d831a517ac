"""Sweeps: from the tables and figures of configs/sweep to runs, their folders, and the machines that run them."""
