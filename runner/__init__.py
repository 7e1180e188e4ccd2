"""The program inside every container: PID 1, and the worker that runs the user's Python. Standard library only.

The protocol and the ring format are in docs/runner.md. `worker.py` and `display.py` run on the image's Python (3.8 or
later), everything else on the interpreter that the agent ships.
"""
