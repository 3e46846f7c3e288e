from pathlib import Path

from arctic_cluster import manifests

CLAIMS = manifests.claims(Path("/run/here/environment"), ["vllm"], Path("/data"))


def test_a_claim_is_bound_to_a_volume_of_its_namespace_on_the_host_folder() -> None:
    for claim in CLAIMS:
        volume, bound = manifests.claim_with_volume(claim, "team")
        assert volume["metadata"]["name"] == bound["spec"]["volumeName"] == manifests.volume_name(claim, "team")
        assert volume["spec"]["claimRef"] == {"namespace": "team", "name": claim.name}
        assert volume["spec"]["hostPath"]["path"] == str(claim.folder)
        # Without this the claim would wait for a provisioner that is not there.
        assert volume["spec"]["storageClassName"] == bound["spec"]["storageClassName"] == ""


def test_only_the_store_can_be_claimed_for_writing() -> None:
    modes = {claim.name: claim.mode for claim in CLAIMS}
    assert modes == {
        "arctic-environment": "ReadOnlyMany",
        "arctic-environment-vllm": "ReadOnlyMany",
        "arctic-corpus": "ReadOnlyMany",
        "arctic-models": "ReadOnlyMany",
        "arctic-store": "ReadWriteMany",
    }


def test_the_environment_of_an_engine_lies_beside_that_of_all() -> None:
    folders = {claim.name: claim.folder for claim in CLAIMS}
    assert folders["arctic-environment-vllm"] == Path("/run/here/environment-vllm")


def test_two_namespaces_share_folders_and_no_volume() -> None:
    names = [manifests.volume_name(claim, namespace) for claim in CLAIMS for namespace in ("one", "two")]
    assert len(set(names)) == len(names)


def test_namespaces_enforce_the_restricted_standard() -> None:
    labels = manifests.restricted_namespace("team")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_dns_has_the_address_that_pods_are_told_and_pods_behind_it() -> None:
    objects = {each["kind"]: each for each in manifests.dns("10.96.0.10", "an/image:1", Path("/cache/bin"), 2)}
    assert objects["Service"]["spec"]["clusterIP"] == "10.96.0.10"
    template = objects["Deployment"]["spec"]["template"]
    assert objects["Service"]["spec"]["selector"] == template["metadata"]["labels"]
    assert objects["ClusterRoleBinding"]["subjects"][0]["name"] == template["spec"]["serviceAccountName"]
