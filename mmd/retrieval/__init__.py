"""DR, SDR and MDR (arXiv 2506.11499): the best text, picture or product for a dialogue."""
