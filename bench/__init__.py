"""Timings of whole training steps and of inference, against other libraries; see README.md in this folder.

Nothing is imported here: a contender's process must set its number of threads before NumPy is loaded.
"""
