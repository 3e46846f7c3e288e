"""What happens over hours on machines that are not here: discrete events (`simpy`), no torch, no clock but theirs."""
