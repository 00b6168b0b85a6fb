"""KDSL (arXiv 2503.04201): intent recognition by a rule base found with MCTS, a classifier, and their gate."""
