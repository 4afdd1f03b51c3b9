"""Work that is done by several processes: each piece is a ``Job`` with a folder of its own.

A job's folder says how far the job is. One process at a time owns it, and after a kill another one
continues there. This package does not know the kinds of jobs (runs of a sweep, shards of an
evaluation): they are defined above it.
"""
