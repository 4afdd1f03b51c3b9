"""Work that is done by several processes: each piece is a ``Job`` with a folder of its own.

A folder says how far its job is, has one owner at a time, and is gone on with after a kill. What
the jobs are (runs of a sweep, shards of an evaluation) is known above this package.
"""
