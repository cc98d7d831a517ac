"""V-IRL navigation: follow instructions along a route, one action per location (Chu et al., arXiv 2501.17161)."""
