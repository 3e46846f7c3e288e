"""The one error of this package: a sentence that says what is wrong, where, and what to do."""


class ClusterError(RuntimeError):
    """The local cluster cannot do what was asked; the message is meant for the person who asked."""
