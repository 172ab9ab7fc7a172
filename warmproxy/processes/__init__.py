"""`processes = N`: a parent, and N processes that serve.

    seed     a process without an event loop, from which the others are forked
    link     what parent and process tell each other
    serving  one process: a share of the settings, listening sockets that the parent bound
    doors    those sockets: at each address one for each process, over which the kernel spreads
             connections
    merged   what the processes say, as one
    parent   starts and replaces them, passes signals on, and serves the admin pages

The parent keeps every listening socket open: who connects while a process is replaced waits in the
socket's backlog for the successor. With N = 1 nothing of this is imported.
"""
