"""Programs beside the daemon, each one file; they speak to it over its admin listener.

`exec` and `bench` start a daemon of their own by `child`.
"""
