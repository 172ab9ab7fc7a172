"""Floor 2, pools: which connections there are and which there should be. Knows no HTTP."""
