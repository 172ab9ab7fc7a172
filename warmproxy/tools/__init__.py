"""Programs beside the daemon; they speak to it over its admin listener.

`exec` and `bench` start a daemon of their own by `child`. `bench` and `doctor` ask origins by
`direct`; what `doctor` prints, `examine` finds out and `advice` judges.
"""
