"""Things that are broken on purpose, and what comes of them: the rows of `python -m benchmarks reliability`.

`faults.c` is loaded before the C library and makes a disk full at any write, moves a clock, or forbids the network.
`line` runs lines of the command line in forks; `road` is the small world in which they run.
"""
