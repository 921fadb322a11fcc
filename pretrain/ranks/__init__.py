"""Several processes as one run.

world.py        process groups and small agreements
agreement.py    what ranks must have in common before the first step
heartbeat.py    who went silent
stragglers.py   who is slow, in which phase
"""
