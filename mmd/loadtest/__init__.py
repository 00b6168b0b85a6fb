"""Load on a running service: requests at a fixed rate whatever the answers take, and what came of them."""
