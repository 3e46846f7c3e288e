import json

from arctic_api.world import Label
from arctic_operator.cache import Cache, Key, Listing, owner_of, slim


def custom(uid="u1", version="1", name="tiny"):
    metadata = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version}
    return {"kind": "ArcticTraining", "metadata": metadata}


def child(uid, version="1", owner="u1", kind="Pod"):
    labels = {Label.UID.value: owner, Label.KIND.value: "ArcticTraining", Label.NAME.value: "tiny"}
    metadata = {"namespace": "team", "name": uid, "uid": uid, "resourceVersion": version, "labels": labels}
    return {"kind": kind, "metadata": metadata}


def node(name, version):
    return {"kind": "Node", "metadata": {"name": name, "uid": name, "resourceVersion": version}}


KEY = Key("ArcticTraining", "team", "tiny")


def test_an_older_state_never_replaces_a_newer_one():
    cache = Cache()
    assert cache.put(custom(version="10"))
    assert not cache.put(custom(version="9"))
    assert not cache.put(custom(version="10"))
    assert cache.custom(KEY)["metadata"]["resourceVersion"] == "10"


def test_an_answer_that_comes_after_the_deletion_does_not_bring_an_object_back():
    cache = Cache()
    cache.put(child("p1"))
    cache.remove(child("p1", version="3"))
    assert not cache.put(child("p1", version="2"))
    assert list(cache.children("u1")) == []


def test_a_child_whose_labels_are_taken_off_and_put_on_again_is_there_again():
    for gone in (
        lambda c: c.remove(child("p1", version="3")),
        lambda c: c.replace_children("u1", "Pod", Listing([], 3)),
    ):
        cache = Cache()
        cache.put(child("p1"))
        gone(cache)
        assert not cache.is_behind(child("p1", version="3"))
        assert cache.is_behind(child("p1", version="4"))
        assert cache.put(child("p1", version="4"))
        assert len(list(cache.children("u1"))) == 1


def test_a_child_that_is_given_to_another_owner_is_the_others_until_it_is_gone():
    cache = Cache()
    cache.put(child("p1"))
    cache.put(child("p1", version="2", owner="u2"))
    assert list(cache.children("u1")) == []
    assert [c["metadata"]["uid"] for c in cache.children_of_others(KEY, "u1")] == ["p1"]
    cache.remove(child("p1", version="3", owner="u2"))
    assert [*cache.children("u1"), *cache.children("u2"), *cache.children_of_others(KEY, "u1")] == []


def test_a_watch_that_is_late_does_not_hide_an_object_behind_the_one_before_it():
    cache = Cache()
    cache.put(custom("u2", "30"))
    cache.put(custom("u1", "10"))
    cache.remove(custom("u1", "20"))
    assert cache.custom(KEY)["metadata"]["uid"] == "u2"
    assert [key for key, _ in cache.customs()] == [KEY]


def test_nothing_is_kept_of_owners_that_are_gone_with_their_children():
    cache = Cache()
    for number in range(10):
        cache.put(child("p1", version=str(3 * number + 1), owner=f"u{number}"))
        cache.remove(child("p1", version=str(3 * number + 2), owner=f"u{number}"))
    assert (len(cache._owners), len(cache._children)) == (0, 0)


def test_a_node_is_nobodys_child_whatever_its_labels_say():
    cache, labelled = Cache(), node("n0", "1")
    labelled["metadata"]["labels"] = child("p1")["metadata"]["labels"]
    assert cache.put(labelled)
    assert owner_of(labelled) is None


def test_an_object_made_again_under_the_same_name_is_another_one():
    cache = Cache()
    cache.put(custom("u1", "1"))
    cache.put(custom("u2", "5"))
    cache.remove(custom("u1", "4"))
    assert cache.custom(KEY)["metadata"]["uid"] == "u2"


def test_children_are_found_by_owner_and_kind():
    cache = Cache()
    for manifest in (child("p1"), child("p2", owner="u2"), child("j1", kind="Job")):
        cache.put(manifest)
    assert [c["metadata"]["uid"] for c in cache.children("u1", "Pod")] == ["p1"]
    assert {c["metadata"]["uid"] for c in cache.children("u1")} == {"p1", "j1"}


def test_what_a_list_lacks_is_gone_and_only_of_the_kinds_that_were_listed():
    cache = Cache()
    for manifest in (child("p1"), child("p2"), child("j1", kind="Job")):
        cache.put(manifest)
    cache.replace_children("u1", "Pod", Listing([child("p2", version="2"), child("p3")], version=3))
    assert {c["metadata"]["uid"] for c in cache.children("u1")} == {"p2", "p3", "j1"}


def test_what_the_watch_showed_after_a_list_was_answered_stays_and_is_followed_on():
    cache = Cache()
    cache.put(child("old", version="10"))
    cache.put(child("new", version="21"))
    cache.put(node("n1", version="30"))
    cache.replace_children("u1", "Pod", Listing([], version=20))
    cache.replace_all("Node", Listing([], version=20))
    assert [c["metadata"]["uid"] for c in cache.children("u1")] == ["new"]
    assert cache.count("Node") == 1
    assert cache.put(child("new", version="22"))
    assert not cache.put(child("old", version="11"))


def test_what_a_list_of_all_lacks_is_gone_in_the_namespaces_that_were_listed():
    cache = Cache()
    elsewhere = child("p4", version="1")
    elsewhere["metadata"]["namespace"] = "other"
    for manifest in (child("p1"), child("p2"), child("p3", version="9"), elsewhere):
        cache.put(manifest)
    gone = cache.remove_missing("Pod", "team", Listing([child("p2")], version=5))
    assert [manifest["metadata"]["uid"] for manifest in gone] == ["p1"]
    assert {manifest["metadata"]["uid"] for manifest in cache.all("Pod")} == {"p2", "p3", "p4"}
    gone = cache.remove_missing("Pod", "", Listing([], version=5))
    assert {manifest["metadata"]["uid"] for manifest in gone} == {"p2", "p4"}


def test_what_pods_are_made_of_is_not_kept_and_what_is_read_of_it_is():
    worker = {"name": "worker", "resources": {"limits": {"memory": "1Gi"}}, "env": [{"name": "ARCTIC_WORLD"}]}
    spec = {"nodeName": "n1", "restartPolicy": "Never", "containers": [worker], "volumes": [{"name": "tls"}]}
    pod = child("p1") | {"spec": spec, "status": {"phase": "Running"}}
    pod["metadata"]["managedFields"] = [{"manager": "kubelet"}]
    kept = slim(pod)
    assert kept["spec"] == {
        "nodeName": "n1",
        "restartPolicy": "Never",
        "containers": [{"name": "worker", "resources": worker["resources"]}],
        "initContainers": [],
    }
    assert kept["status"] == pod["status"]
    assert "managedFields" not in kept["metadata"]
    assert "managedFields" in pod["metadata"], "what was given stays as it is"
    assert slim(child("j1", kind="Job") | {"spec": {"parallelism": 2, "template": {}}})["spec"] == {"parallelism": 2}
    deployment = child("d1", kind="Deployment") | {"spec": {"template": {"spec": {}}}}
    assert slim(deployment) == deployment, "what is applied is compared whole"


def test_what_objects_have_in_common_is_kept_once():
    cache = Cache()
    for uid in ("p1", "p2"):
        status = json.loads(json.dumps({"phase": "Running", "conditions": [{"type": "Ready", "message": "m" * 99}]}))
        cache.put(child(uid) | {"status": status})
    one, other = (manifest["status"] for manifest in cache.all("Pod"))
    assert one == other == {"phase": "Running", "conditions": [{"type": "Ready", "message": "m" * 99}]}
    assert one["phase"] is other["phase"]
    assert one["conditions"][0]["type"] is other["conditions"][0]["type"]


def test_a_child_is_kept_however_deeply_it_is_nested():
    cache, value = Cache(), "leaf"
    for _ in range(400):
        value = {"in": [value]}
    cache.put(child("p1") | {"status": value})
    assert next(cache.all("Pod"))["status"] == value


def service(version, name="chat", uid="s1", **model):
    metadata = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": version}
    return {"kind": "ArcticInference", "metadata": metadata, "spec": {"model": model}}


def test_who_names_a_trainings_weights_is_known_through_edits_and_deletions():
    cache = Cache()
    cache.put(service("1", training="tiny"))
    cache.put(custom() | {"spec": {"model": {"from": {"training": "tiny"}}}})
    cache.put(custom("u2", name="other") | {"spec": {"model": {"from": {"uri": "file:///x"}}}})
    chat = Key("ArcticInference", "team", "chat")
    assert set(cache.users(KEY)) == {chat, KEY}
    cache.put(service("2", training="other"))
    assert list(cache.users(KEY)) == [KEY]
    assert list(cache.users(Key("ArcticTraining", "team", "other"))) == [chat]
    cache.put(service("4", uid="s2", training="tiny"))
    cache.remove(service("3", training="other"))  # of the one before it, late
    assert set(cache.users(KEY)) == {chat, KEY}
    assert list(cache.users(Key("ArcticTraining", "team", "other"))) == []
    cache.remove(service("5", uid="s2"))
    cache.remove(custom())
    assert list(cache.users(KEY)) == []


def test_who_reads_a_child_changes_nothing_of_what_is_kept():
    cache = Cache()
    metadata = {"name": "p", "namespace": "team", "uid": "pod", "resourceVersion": "1", "labels": {Label.UID: "owner"}}
    pod = {"kind": "Pod", "metadata": metadata, "status": {"phase": "Running", "message": "half a \ud83c"}}
    cache.put(pod)
    (read,) = cache.children("owner", "Pod")
    assert read["status"] == pod["status"]
    read["status"]["phase"] = "Failed"
    (again,) = cache.children("owner", "Pod")
    assert again["status"]["phase"] == "Running"
