"""One training: what it learns, how fast, on what its time goes, and whether it is safe."""

from arctic_cli.dashboards.grafana import Dashboard, Panel, Query, Variable

_IT = 'namespace="$namespace", name="$name"'
_OBJECT = f"{{{_IT}}}"

ONE_TRAINING = Dashboard(
    "arctic-training",
    "Arctic / Training",
    "Loss, speed, routers and checkpoints of one ArcticTraining.",
    (
        (
            Panel(
                "Loss",
                (
                    Query(f"arctic_training_loss{_OBJECT}", "all"),
                    Query(f"arctic_training_loss_by_source{_OBJECT}", "{{source}}"),
                ),
                description="Mean cross-entropy, in nats a token: of a step, and of each source's latest sequences.",
            ),
            Panel(
                "Held-out loss",
                (Query(f"arctic_training_validation_loss{_OBJECT}", "{{stage}} at its {{moment}}"),),
                description="On held-out text of each stage's main category.",
            ),
        ),
        (
            Panel(
                "Tokens a second",
                (Query(f"arctic_training_tokens_per_second{_OBJECT}", "tokens a second"),),
            ),
            Panel(
                "Model FLOPs utilization",
                (Query(f"arctic_training_mfu{_OBJECT}", "MFU"),),
                unit="percentunit",
                description="Useful operations by the hardware's peak.",
            ),
            Panel(
                "Progress",
                (
                    Query(f"arctic_training_tokens_total{_OBJECT}", "tokens"),
                    Query(f"arctic_training_steps_total{_OBJECT}", "steps"),
                ),
            ),
        ),
        (
            Panel(
                "Where the time goes",
                (Query(f"rate(arctic_training_seconds_total{_OBJECT}[$__rate_interval])", "{{part}}"),),
                unit="percentunit",
                description="Of rank 0, as its main thread sees it: what is hidden behind compute counts as compute.",
                stacked=True,
            ),
            Panel(
                "Exchanges that are waited for",
                (
                    Query(
                        f"avg by (kind, pass) (arctic_training_exposed_communication_ratio{_OBJECT})",
                        "{{kind}}, {{pass}}",
                    ),
                ),
                unit="percentunit",
                description="Share of the time of exchanges between ranks that rank 0 could only wait for them.",
            ),
        ),
        (
            Panel(
                "Gradient and updates left out",
                (
                    Query(f"arctic_training_gradient_norm{_OBJECT}", "norm of the gradient"),
                    Query(f"arctic_training_skipped_updates_total{_OBJECT}", "updates left out"),
                ),
            ),
            Panel(
                "Learning rate",
                (Query(f"arctic_training_learning_rate{_OBJECT}", "learning rate"),),
                unit="sci",
            ),
        ),
        (
            Panel(
                "Routers",
                (
                    Query(f"max by (layer) (arctic_training_router_imbalance{_OBJECT})", "imbalance, layer {{layer}}"),
                    Query(f"min by (layer) (arctic_training_router_entropy{_OBJECT})", "entropy, layer {{layer}}"),
                    Query(f"sum(arctic_training_router_dead_experts{_OBJECT})", "dead experts"),
                    Query(f"max(arctic_training_router_dropped{_OBJECT})", "dropped, at most"),
                ),
                description="Imbalance: the busiest expert's load over even routing's. Entropy: 1 where all are alike.",
            ),
            Panel(
                "Load of experts",
                (Query(f"topk(8, arctic_training_expert_load{_OBJECT})", "layer {{layer}}, expert {{expert}}"),),
                unit="percentunit",
                description="The eight with the largest share of their layer's choices.",
            ),
        ),
        (
            Panel(
                "Steps that no checkpoint has",
                (
                    Query(
                        f"arctic_training_steps_total{_OBJECT} - arctic_training_last_checkpoint_step{_OBJECT}",
                        "steps since the last one",
                    ),
                    Query(f"arctic_training_checkpoint_every_steps{_OBJECT}", "asked for"),
                ),
                description="What is lost if the attempt ends now.",
            ),
            Panel(
                "Age of the last checkpoint",
                (
                    Query(f"time() - arctic_training_last_checkpoint_timestamp_seconds{_OBJECT}", "age"),
                    Query(f"arctic_training_checkpoint_every_seconds{_OBJECT}", "asked for"),
                ),
                unit="s",
            ),
            Panel(
                "Time lost to checkpoints",
                (
                    Query(
                        f"rate(arctic_training_checkpoint_stall_seconds_total{_OBJECT}[$__rate_interval])",
                        "share of the time",
                    ),
                ),
                unit="percentunit",
            ),
        ),
        (
            Panel(
                "What it does",
                (
                    Query(
                        f"max by (epoch, stage, phase) (arctic_training_attempt_info{_OBJECT})",
                        "attempt {{epoch}}: {{phase}}, stage {{stage}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                "State and restarts",
                (
                    Query(f"max by (state) (arctic_operator_training_info{_OBJECT})", "{{state}}"),
                    Query(f"max(arctic_operator_training_restarts{_OBJECT})", "failed attempts that count"),
                ),
            ),
        ),
    ),
    (Variable("namespace", "arctic_operator_training_info"), Variable("name", "arctic_operator_training_info")),
)
