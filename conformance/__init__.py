"""File-system test suites and everyday programs, run in a mount and on the file system below it, and compared.

What ``script/conformance`` runs. The suites themselves are built elsewhere; nothing of theirs is here.
"""
