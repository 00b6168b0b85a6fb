"""ConKD (arXiv 2310.18119): one student that talks and recommends, distilled from two teachers through a gate."""
