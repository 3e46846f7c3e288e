"""Every rank but 0: does tasks."""

from mpi4py import MPI
from mpi4py.futures import MPICommExecutor

with MPICommExecutor(MPI.COMM_WORLD) as executor:
    assert executor is None
