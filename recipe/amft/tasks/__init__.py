"""Tasks: prompts, environments and graders."""
