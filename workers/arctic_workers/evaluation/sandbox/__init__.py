"""Runs what a model has written, in processes without network, rights, or files but a scratch folder.

`confine` is what a process gives up before it runs anything (Landlock, seccomp, resource limits: none of them needs a
right, so that a restricted pod has them too), `machine` what is here for that, `process` starts and watches such
processes, and `programs` is what they run. Code is never run in the process that knows the right answers: it is called
from there, and answers by values.
"""

from arctic_workers.evaluation.sandbox.machine import SandboxError as SandboxError
from arctic_workers.evaluation.sandbox.process import Ended as Ended
from arctic_workers.evaluation.sandbox.process import Ending as Ending
from arctic_workers.evaluation.sandbox.process import Limits as Limits
from arctic_workers.evaluation.sandbox.process import Program as Program
from arctic_workers.evaluation.sandbox.process import Sandbox as Sandbox
