"""Mathematics (and multiple choice) in one turn: a prompt, an answer, a grader."""
