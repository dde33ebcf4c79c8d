"""Disk and processes: kernel blocks, jobs, the workspace, files in existing formats."""
