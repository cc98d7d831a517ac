"""General Points: reach a target number with every card used once (Chu et al., arXiv 2501.17161)."""
