"""What simulate.py is made of: arrivals, the world around a pool, the rivals."""
