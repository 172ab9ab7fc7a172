"""warmproxy: a local forward proxy that hands out connections which are already open."""

__version__ = "0.1.0"
