"""What an engine process may reach, held by the kernel: files by Landlock, the network by a namespace of its own.

Standard library only: the guard loads this package without any site-packages, between fork and exec.
"""
