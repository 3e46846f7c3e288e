"""What upcycling is worth: loss on held-out SQL of a model that grew experts, and of the same without, on equal tokens.

The model is SmolLM2-135M-Instruct, which a package ships, the text what `arctic corpus` has of SQL. Both take the same
sequences in the same order, with the same optimizer and learning rates, a step each in turn, and are judged by the same
documents, which no step reads. Losses are in nats a token of the model's own tokenizer.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from arctic_cli.small_model import smollm2
from arctic_cluster import paths
from arctic_model.config import ArcticConfig
from arctic_model.llama import Grown, Llama, open_llama
from arctic_model.loss import loss_sum
from arctic_model.model import ArcticModel
from arctic_model.upcycle import grown_config
from arctic_model.weights import load_weights
from arctic_workers.chat.tokenizer import read_tokenizer
from benchmarks.form import arguments, finish, note, print_table
from benchmarks.results import this_machine

LENGTH, SEQUENCES = 128, 4
STEPS, LOOKS = 20, 4
HELD_OUT_SEQUENCES = 24
PEAK, WARM_UP = 2e-4, 4
EVERY, EXPERTS, CHOSEN = 6, 4, 2
SEED = 1
HELD_OUT_EVERY = 10
"""One document of so many is held out."""


@dataclass
class Side:
    """A model and its optimizer."""

    model: ArcticModel
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, source: Llama, config: ArcticConfig) -> "Side":
        """Load a model that a dense one is, or grows into."""
        with torch.device("meta"):
            model = ArcticModel(config)
        load_weights(model.float(), Grown(source, config, SEED))
        return cls(model, torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0, fused=True))

    def step(self, tokens_BT: Tensor, rate: float) -> None:
        """Make one update."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, balance = self.losses(tokens_BT)
        torch.autograd.backward(loss + balance)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def losses(self, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss a token, and the routers'."""
        x_BTD, balance = self.model.normed_with_loss(tokens_BT[:, :-1])
        labels_S = tokens_BT[:, 1:].flatten()
        weights_S = torch.full(labels_S.shape, 1 / len(labels_S))
        assert self.model.lm_head is not None
        return loss_sum(x_BTD.flatten(0, 1), self.model.lm_head.weight, labels_S, weights_S), balance

    @torch.no_grad()
    def held_out_loss(self, sequences: list[Tensor]) -> float:
        """Return the mean loss a token of sequences that no step reads."""
        batches = torch.split(torch.stack(sequences), SEQUENCES)
        return sum(float(self.losses(batch)[0]) * len(batch) for batch in batches) / len(sequences)


def main() -> None:
    """Print the table and the figures."""
    told = arguments(__doc__, "a tenth of the steps")
    steps = STEPS // 10 if told.quick else STEPS
    source = open_llama(smollm2())
    train, held_out = sequences_of(source)
    grown = grown_config(source.config, experts=EXPERTS, every=EVERY, chosen=CHOSEN)
    sides = {"dense": Side.of(source, source.config), "upcycled": Side.of(source, grown)}
    rows: list[tuple[int, list[float]]] = []
    for step in range(steps + 1):
        if step % max(1, steps // LOOKS) == 0:
            rows.append((step * LENGTH * SEQUENCES, [side.held_out_loss(held_out) for side in sides.values()]))
            note(f"after {rows[-1][0]} tokens: {rows[-1][1]}")
        if step < steps:
            batch = torch.stack([next(train) for _ in range(SEQUENCES)])
            for side in sides.values():
                side.step(batch, PEAK * min(1.0, (step + 1) / WARM_UP))
    counts = [sum(parameter.numel() for parameter in side.model.parameters()) for side in sides.values()]
    shown = ", ".join(f"{name} {count / 1e6:.0f}M parameters" for name, count in zip(sides, counts, strict=True))
    print_table(
        f"Loss on held-out SQL on {this_machine()}; {shown}",
        ("tokens", *sides),
        [(tokens, *(f"{loss:.4f}" for loss in losses)) for tokens, losses in rows],
    )
    (_, before), (tokens, (dense, upcycled)) = rows[0], rows[-1]
    figures = {"tokens": tokens, "before": before[0], "dense": dense, "upcycled": upcycled, "gain": dense - upcycled}
    finish(told, figures, less_is_better=("before", "dense", "upcycled"), unjudged=("tokens",))


def sequences_of(source: Llama) -> tuple[Iterator[Tensor], list[Tensor]]:
    """Return sequences to train on, as many as are asked for, and those that are held out."""
    with tempfile.TemporaryDirectory() as folder:
        source.write_tokenizer(Path(folder))
        tokenizer = read_tokenizer(Path(folder))
    documents = sorted((paths.default_volumes() / paths.CORPUS / "sql").glob("*.sql"))
    kept = [path for index, path in enumerate(documents) if index % HELD_OUT_EVERY]
    held_out = documents[::HELD_OUT_EVERY]
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(SEED)).tolist()
    judged = _sequences(tokenizer, held_out)
    return _sequences(tokenizer, [kept[i] for i in order]), [next(judged) for _ in range(HELD_OUT_SEQUENCES)]


def _sequences(tokenizer: Tokenizer, documents: list[Path]) -> Iterator[Tensor]:
    """Yield a sequence from the beginning of each document that is long enough."""
    for path in documents:
        ids = tokenizer.encode(path.read_text(errors="replace")).ids[: LENGTH + 1]
        if len(ids) > LENGTH:
            yield torch.tensor(ids)


if __name__ == "__main__":
    main()
