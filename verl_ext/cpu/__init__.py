"""verl, FSDP2 and vLLM on a machine without an accelerator: the same classes, a CPU platform beside them."""
