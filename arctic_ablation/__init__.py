"""What an ablation trains next, and what its trainings say: pure, and the same on a laptop and in the operator.

`study` says what is to run, given all that has been found so far; nothing else is remembered, so that an ablation which
is interrupted goes on from what its trainings have left.
"""
