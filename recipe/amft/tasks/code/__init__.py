"""Programs written by the model, judged by a benchmark's tests in a sandbox."""
