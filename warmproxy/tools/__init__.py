"""Programs beside the daemon, each one file; they speak to it over its admin listener."""
