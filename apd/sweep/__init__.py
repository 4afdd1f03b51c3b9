"""Many runs from one line: a grid of cells, run in parallel, killed and continued at will."""
