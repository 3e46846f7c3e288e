"""NVIDIA's NIM: its container serves the API, and this process beside it is what the operator knows."""
