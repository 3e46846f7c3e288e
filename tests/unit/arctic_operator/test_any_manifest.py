"""Whatever a manifest says: what is right is carried out, what is broken is explained, and the operator goes on.

`make fuzz` tries ten thousand of them.
"""

import asyncio
import copy

import hypothesis
import pytest
from generated_manifests import changed_manifests, right_manifests
from hypothesis import HealthCheck, Phase, given
from schema_manifests import schema_manifests

from arctic_ablation.faults import fault
from arctic_ablation.study import VariantStudy
from arctic_ablation.swarm.study import SwarmStudy
from arctic_api.ablation import ArcticAblationSpec
from arctic_api.verdict import field_problems, settle, verdict
from arctic_operator.cache import Key
from arctic_operator.observed import INVALID_SPEC

UID = "0a1b2c3d-0000-4000-8000-000000000001"
MOST_GROUPS = 3
LONGEST_TOLD = 1024


@pytest.mark.parametrize(
    ("manifests", "share"),
    [(right_manifests, 1 / 2), (changed_manifests(), 1 / 4), (schema_manifests, 1 / 4)],
    ids=["right by construction", "one change away from right", "right in each field"],
)
def test_right_ones_are_accepted_broken_ones_explained_and_none_stops_the_operator(
    build, operator_with, request, manifests, share
):
    accepted = []

    @hypothesis.seed(request.config.getoption("seed"))
    @hypothesis.settings(
        max_examples=round(share * request.config.getoption("manifests")),
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(manifests)
    def examine(manifest):
        problems = verdict(manifest)
        accepted.append(not problems)
        assert manifests is not right_manifests or problems == []
        assert manifests is not schema_manifests or field_problems(manifest) == [], "schema and types say the same"
        assert all(problem.field and problem.message for problem in problems)
        asyncio.run(carry_out(operator_with(build.settings), manifest))

    examine()
    print(f"{len(accepted)} manifests, {sum(accepted)} of them accepted")
    assert manifests is right_manifests or not all(accepted)


def variant_problems(manifest):
    """Return what is wrong with the trainings of an ablation that is right itself."""
    spec = manifest["spec"]
    if manifest["kind"] != "ArcticAblation":
        return []
    study = VariantStudy if spec.get("mixture") is None else SwarmStudy
    wrong = fault(study(manifest["metadata"]["name"], ArcticAblationSpec.model_validate(spec)))
    return [wrong] if wrong else []


async def carry_out(operator, manifest):
    """Have an operator see a manifest, as from an API server that let it pass: twice, and once begun anew."""
    manifest = settle(copy.deepcopy(manifest))  # it stores no null
    if isinstance(manifest["spec"].get("replicas"), int):  # more groups are only more of the same
        manifest["spec"]["replicas"] = min(manifest["spec"]["replicas"], MOST_GROUPS)
    problems = [str(problem) for problem in verdict(manifest)] or variant_problems(manifest)
    metadata = manifest["metadata"] | {"namespace": "team", "uid": UID, "generation": 1}
    key = Key(manifest["kind"], "team", metadata["name"])
    operator.cache.put(operator.server.put(manifest | {"metadata": metadata}))
    for _ in range(2):
        assert await operator.reconciler._attempt(key) == "success"
    status = operator.status(key)
    assert (status["state"] == INVALID_SPEC) == bool(problems)
    told = "\n".join(condition.get("message", "") for condition in status["conditions"])
    assert "; ".join(problems)[:LONGEST_TOLD] in told
    made = set(operator.server.objects)
    operator.restart()
    assert await operator.reconciler._attempt(key) == "success"
    assert set(operator.server.objects) == made, "one that begins anew makes no more"
