"""Sweeps: which there are, what may be searched, and the records that they leave beside the artefacts.

A job writes ``<store>/.sweeps/<id>/``: ``sweep.json`` (what is searched, how far it is), ``trials.json`` (every trial
so far) and ``tensorboard/``, in local and in remote stores. The service reads the first two; jobs and service meet
nowhere else.
"""
