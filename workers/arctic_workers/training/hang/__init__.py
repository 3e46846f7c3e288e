"""Finds a rank that makes no progress while its peers wait for it, and ends the attempt with its name and its stack.

A slow rank looks like a hung one to its peers: neither has entered the collective that they wait in. What tells them
apart is asked of the kernel, which a stopped process and a thread that never lets go of the interpreter can't fool:

- every rank notes how many collectives of each group it has launched, and whether it is in a step (`pulse`);
- the process that starts a pod's ranks looks at those notes, and where they don't change at the rank's threads: one
  that runs, waits for a processor or has used one is alive, however slow (`process`);
- a rank is hung when it is still for longer than steps here can take, its peers get no further, and it is the one that
  has entered the fewest collectives: all others wait, in the end, for it (`judge`);
- each pod judges its own ranks, by what the others put into the store of the rendezvous (`watchdog`).
"""
