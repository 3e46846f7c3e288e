"""What every worker carries, whichever work it does: live control, metrics, probes, signals, the termination message.

Nothing in here knows a model: no torch, so that a supervisor starts in a moment and a probe never waits for a device.
"""
