from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from small_specs import TRAINING_SPEC

from arctic_api.training import ArcticTrainingSpec
from arctic_api.world import TrainingWorld
from arctic_rpc.control_pb2 import RUNNING, STARTING, RouterState, StageState, TrainingState, WorkerState
from arctic_workers.training.metrics import TrainingCollector


def world_of(every: dict[str, Any]) -> TrainingWorld:
    spec = TRAINING_SPEC | {"checkpoint": TRAINING_SPEC["checkpoint"] | {"every": every}}
    return TrainingWorld(
        namespace="ns",
        name="tiny",
        uid="1e5e7e0c-0000-4000-8000-000000000000",
        first_host="127.0.0.1",
        spec=ArcticTrainingSpec.model_validate(spec),
        attempt=2,
        epoch=2,
        run_folder="/store/ns/tiny-1e5e7",
    )


def exposition(state: WorkerState, **every: Any) -> set[str]:
    registry = CollectorRegistry()
    registry.register(TrainingCollector(world_of(every or {"steps": 500}), lambda: state))
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}


def test_the_state_is_exposed_under_the_names_of_the_training() -> None:
    training = TrainingState(
        stage="general",
        step=3,
        tokens=300,
        loss=2.5,
        tokens_per_second=1000,
        learning_rate=0.5,
        gradient_norm=1.5,
        checkpoint_stall_seconds=0.25,
        mfu=0.25,
        skipped_updates=2,
        stages=[
            StageState(name="general", initial_validation_loss=7.0, validation_loss=4.0),
            StageState(name="code", initial_validation_loss=0.0),
        ],
    )
    training.exposed_communication.add(layer=3, kind="combine", backward=True, in_flight_seconds=2, exposed_seconds=0.5)
    training.exposed_communication.add(kind="gradients", backward=True, in_flight_seconds=2, exposed_seconds=2)
    training.last_checkpoint.time.FromSeconds(1700000000)
    training.last_checkpoint.step = 2
    training.loss_by_source.update({"books": 2.0, "code": 3.0})
    training.seconds.update({"data": 1.0, "compute": 9.0})
    training.routers.append(RouterState(layer=1, load=[0.75, 0.25, 0.0, 0.0], entropy=0.5, dead=[2, 3]))
    assert exposition(WorkerState(epoch=2, phase=RUNNING, training=training)) == {
        'arctic_training_attempt_info{epoch="2",name="tiny",namespace="ns",phase="RUNNING",stage="general"} 1.0',
        "arctic_training_checkpoint_every_steps 500.0",
        "arctic_training_last_checkpoint_step 2.0",
        "arctic_training_loss 2.5",
        "arctic_training_learning_rate 0.5",
        "arctic_training_gradient_norm 1.5",
        "arctic_training_tokens_per_second 1000.0",
        "arctic_training_mfu 0.25",
        "arctic_training_skipped_updates_total 2.0",
        'arctic_training_loss_by_source{source="books"} 2.0',
        'arctic_training_loss_by_source{source="code"} 3.0',
        'arctic_training_seconds_total{part="data"} 1.0',
        'arctic_training_seconds_total{part="compute"} 9.0',
        'arctic_training_router_entropy{layer="1"} 0.5',
        'arctic_training_router_imbalance{layer="1"} 3.0',
        'arctic_training_router_dead_experts{layer="1"} 2.0',
        'arctic_training_router_dropped{layer="1"} 0.0',
        *(
            f'arctic_training_expert_load{{expert="{expert}",layer="1"}} {load}'
            for expert, load in enumerate([0.75, 0.25, 0.0, 0.0])
        ),
        "arctic_training_steps_total 3.0",
        "arctic_training_tokens_total 300.0",
        "arctic_training_checkpoint_stall_seconds_total 0.25",
        "arctic_training_last_checkpoint_timestamp_seconds 1.7e+09",
        'arctic_training_exposed_communication_ratio{kind="combine",layer="3",pass="backward"} 0.25',
        'arctic_training_exposed_communication_ratio{kind="gradients",layer="",pass=""} 1.0',
        'arctic_training_validation_loss{moment="start",stage="general"} 7.0',
        'arctic_training_validation_loss{moment="end",stage="general"} 4.0',
        'arctic_training_validation_loss{moment="start",stage="code"} 0.0',
    }


def test_before_the_first_step_no_figure_is_made_up() -> None:
    assert exposition(WorkerState(epoch=1, phase=STARTING)) == {
        'arctic_training_attempt_info{epoch="1",name="tiny",namespace="ns",phase="STARTING",stage=""} 1.0',
        "arctic_training_checkpoint_every_steps 500.0",
    }


def test_a_time_between_checkpoints_is_told_in_seconds() -> None:
    assert "arctic_training_checkpoint_every_seconds 1200.0" in exposition(WorkerState(epoch=1), interval="20m")
