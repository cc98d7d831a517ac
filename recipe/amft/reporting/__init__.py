"""From run folders to figures and tables: pure functions of what a run has written."""
