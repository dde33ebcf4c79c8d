"""The one bridge between torch and the records: runs the workspace's jobs, one after the other, in a process of its own.

    python -m tracin_core.worker WORKSPACE

The process holds the workspace's worker lock, takes jobs from the catalogue in order, and ends after a while without work. Killed
at any instant, the next worker takes the job up again; finished blocks, checkpoints and recordings are found on disk, not redone.
"""
