"""A pod of the native engine: rank 0 leads, the others follow."""

from arctic_api.world import InferenceGroup
from arctic_workers.inference.engines.native.engine import NativeEngine
from arctic_workers.inference.engines.native.follower import Follower
from arctic_workers.inference.engines.native.group import bring_up
from arctic_workers.inference.engines.native.plan import plan_group
from arctic_workers.inference.leader import lead
from arctic_workers.inference.pod import Pod


def run(group: InferenceGroup, rank: int) -> None:
    """Be one pod. Raises Refused, EngineError, PeerLost."""
    plan = plan_group(group)
    pod = Pod(group, rank)
    if rank:
        follower = Follower(pod, plan)
        with pod.controlled(follower):
            follower.run()
        return
    engine = NativeEngine(
        plan,
        lambda progress: bring_up(plan, group, rank, on_loss=pod.lose, on_stop=pod.stop.request, progress=progress),
        beat=pod.heartbeat.beat,
        on_failure=lambda error: pod.lose(str(error)),
    )
    lead(pod, engine, plan.folder, plan.config.vocab_size)
