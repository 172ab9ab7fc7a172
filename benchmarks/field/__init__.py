"""The field: other proxies beside ours on one machine, what is asked of them, what they cost."""
