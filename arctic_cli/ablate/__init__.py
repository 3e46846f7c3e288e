"""`arctic ablate`: an ablation on this machine; its trainings share one start of torch, and keep what is found."""

from arctic_cli.ablate.command import ablate as ablate
