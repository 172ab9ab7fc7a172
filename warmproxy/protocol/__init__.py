"""Floor 2, HTTP: bytes in, decisions out. Knows no sockets and counts none."""
