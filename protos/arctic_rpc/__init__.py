"""The control protocol between operator and workers; everything else here is generated from control.proto."""
