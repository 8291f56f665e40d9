"""Measures heddle against git, Mercurial, bindfs and fuse-overlayfs, each pair in one run on one
machine.

``python -m benchmarks --help`` says how; ``script/bench`` installs what is needed first. Nothing
here is a test: a figure that is not reached is a line in a table, and the tests of the project
never look at a clock.
"""
