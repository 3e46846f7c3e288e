"""Checkpoints in a format of our own: per parameter under its Hugging Face name, readable by a world of any shape.

A run's folder in the store:

    owner.json                        uid of the ArcticTraining that it belongs to
    staging/EPOCH/step-N/             being written under an epoch
    checkpoints/step-N/               committed
        manifest.json                 what it is, and size and SHA-256 of every file
        shard-R-of-W.safetensors      what rank R of W held: flat pieces of fp32 masters and of both moments

A piece is named `KIND:START:NAME`: elements from START on of the flattened tensor NAME; KIND is `master`, `exp_avg` or
`exp_avg_sq`. No rank sends anything to another: each writes the pieces that ZeRO gave it and reads those that it needs.
"""
