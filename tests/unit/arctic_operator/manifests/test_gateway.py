"""The gateway's objects, and its configuration in a real HAProxy with leaders on loopback."""

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateways import HOST, PATIENCE, Gateway, answers, find_haproxy, run_gateway, wait_until, write_keys
from hypothesis import given
from hypothesis import strategies as st

from arctic_api.common import Toleration
from arctic_api.inference import ArcticInferenceSpec
from arctic_operator.cluster import contains
from arctic_operator.manifests import gateway
from arctic_operator.manifests.gateway import (
    GatewayShape,
    gateway_children,
    haproxy_config,
    leader_slots,
    service_url,
)
from arctic_operator.manifests.gateway_lua import LUA, LUA_FILE
from arctic_operator.observed import Identity
from arctic_operator.settings import Settings

pytestmark = pytest.mark.processes

STOPPED_AT_ONCE = 16
"""With four threads each, in one run of four one of them did not end, on two cores."""
UID = "0a1b2c3d-0000-4000-8000-000000000000"
DEMO = Identity("ArcticInference", "default", "demo", UID)
SETTINGS = Settings(namespace="arctic-system", worker_image="worker", gateway_image="haproxy:2.8")


def make_spec(**changes: Any) -> ArcticInferenceSpec:
    return ArcticInferenceSpec.model_validate({"model": {"training": "tiny"}, **changes})


def children(settings: Settings = SETTINGS, **changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    built = gateway_children(DEMO, make_spec(**changes), settings)
    return {(child["kind"], child["metadata"]["name"]): child for child in built}


def connected(running: Gateway) -> socket.socket:
    """Open a connection to the gateway's API, on which nothing is sent yet."""
    host, _, port = running.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


@pytest.mark.parametrize("slots", [16, 1024])
def test_haproxy_takes_the_configuration_without_a_warning(tmp_path: Path, slots: int) -> None:
    path = tmp_path / "haproxy.cfg"
    (tmp_path / LUA_FILE).write_text(LUA)
    more = slots > 16
    shape = GatewayShape(HOST, HOST, 8000, 9441, slots, 512, 120, locked=more, hold_seconds=300 * more)
    odd = "https://\"#$'\\%[x]"
    shape = shape._replace(origins=(odd, *(f"https://{index}{'x' * 200}.example" for index in range(31))) * more)
    config = haproxy_config(shape)
    path.write_text(config.replace(gateway.CONFIG_FOLDER, str(tmp_path)))
    checked = subprocess.run([find_haproxy(), "-c", "-dW", "-f", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_requests_with_no_ready_leader_get_503_in_the_openai_form(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=0) as running:
        answer = running.post("/answer")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
        assert answer.headers["Content-Type"] == "application/json"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == "service_unavailable"
        assert answers(running.url + "/healthz"), "the gateway itself is well"


def test_a_gateway_that_has_just_begun_is_not_ready_before_it_has_found_a_leader(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, begin_seconds=3600) as running:
        assert answers(running.url + "/healthz")
        running.leaders[0].ready = False
        wait_until(lambda: running.up() == 0, "leaving out the leader")
        assert not answers(running.url + "/healthz")
        assert answers(running.metrics_url + "/healthz"), "it is alive"


def bad_answers(gateway: Gateway) -> tuple[int, int]:
    """Return how many answers an alert counts as failed, and as broken off."""
    served = gateway.metrics()
    failed = re.findall(
        r'^haproxy_backend_http_responses_total\{proxy="leaders",code="5xx"\} (\d+)', served, re.MULTILINE
    )
    broken = re.findall(r'^haproxy_backend_server_aborts_total\{proxy="leaders"\} (\d+)', served, re.MULTILINE)
    return sum(map(int, failed)), sum(map(int, broken))


def test_alerts_count_each_request_that_fails_once_be_it_refused_or_broken_off(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        assert running.post("/answer").status_code == 200
        assert bad_answers(running) == (0, 0)
        assert running.post("/vanish").status_code == 502
        wait_until(lambda: bad_answers(running) == (1, 0), "the count of what failed")
        with pytest.raises(httpx.RemoteProtocolError):
            running.post("/break_off")
        wait_until(lambda: bad_answers(running) == (1, 1), "the count of what was broken off")
        running.leaders[0].ready = False
        wait_until(lambda: running.post("/answer").status_code == 503, "leaving out an unready leader")
        wait_until(lambda: bad_answers(running) == (2, 1), "the count of what was refused")


def logged(folder: Path) -> list[str]:
    """Return the statuses of the requests that the gateway's log tells of."""
    return re.findall(r' api \S+ \S+ (\d{3}) \d+ - - .* "', (folder / "haproxy.log").read_text())


def test_the_log_tells_of_requests_that_fail_and_of_no_others(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        assert running.post("/answer").status_code == 200
        connected(running).close()
        assert running.post("/vanish").status_code == 502
        wait_until(lambda: logged(tmp_path) == ["502"], "a line about what failed")
        running.leaders[0].ready = False
        wait_until(lambda: running.up() == 0, "leaving out the leader")
        assert running.post("/answer").status_code == 503
        wait_until(lambda: logged(tmp_path) == ["502", "503"], "a line about what no leader got")


def has_ipv6() -> bool:
    """Whether loopback has an address of it: a kernel that knows IPv6 may have it switched off."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
def test_a_gateway_is_reached_by_either_family_of_addresses(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, everywhere=True) as running:
        for url in (running.url, running.metrics_url):
            assert answers(f"{url}/healthz")
            assert answers(f"{url}/healthz".replace("127.0.0.1", "[::1]"))


def test_a_stream_is_passed_on_chunk_by_chunk(tmp_path: Path) -> None:
    with (
        run_gateway(tmp_path, leaders=1) as running,
        httpx.stream("POST", running.url + "/stream", content=b"{}", timeout=PATIENCE) as answer,
    ):
        chunks = answer.iter_raw()
        assert next(chunks) == b"one", "the second chunk has not been sent yet"
        running.leaders[0].next_chunk.set()
        assert b"".join(chunks) == b"two"


def test_bodies_are_bounded(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        announced = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=PATIENCE)
        announced.putrequest("POST", "/answer")
        announced.putheader("Content-Length", str(gateway.MAX_BODY_BYTES + 1))
        announced.endheaders()
        refused = announced.getresponse()
        assert (refused.status, json.load(refused)["error"]["code"]) == (413, "request_too_large")
        announced.close()
        unannounced = running.post("/answer", content=iter([b"{", b"}"]))
        assert (unannounced.status_code, unannounced.json()["error"]["code"]) == (411, "length_required")
        assert running.leaders[0].requests == []


def test_a_leader_that_is_gone_or_unready_gets_no_request_and_none_is_lost(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=2) as running:
        gone, kept = running.leaders
        gone.stop()
        answered = [running.post("/answer").text for _ in range(10)]
        assert answered == [kept.address] * 10, "a refused connection is tried again at another leader"
        kept.ready = False
        wait_until(lambda: running.post("/answer").status_code == 503, "leaving out an unready leader")
        kept.ready = True
        wait_until(lambda: running.post("/answer").status_code == 200, "its return")


def test_a_leader_too_busy_to_answer_a_check_at_once_stays(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running:
        busy = running.leaders[0]
        busy.health_seconds = 0.3
        before = busy.checks
        wait_until(lambda: busy.checks >= before + 4, "slow checks")
        assert running.post("/answer").text == busy.address


def test_a_request_that_reached_a_leader_is_never_sent_twice(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=2) as running:
        # In one piece: HAProxy could send again only what it has whole.
        with connected(running) as connection:
            connection.sendall(b"POST /vanish HTTP/1.1\r\nHost: demo\r\nContent-Length: 2\r\n\r\n{}")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, json.load(answer)["error"]["code"]) == (502, "bad_gateway")
            answer.close()
        assert sum(len(leader.requests) for leader in running.leaders) == 1


def test_requests_beyond_what_a_leader_takes_wait_for_it(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, requests_per_leader=2) as running:
        leader = running.leaders[0]
        statuses: list[int] = []
        clients = [
            threading.Thread(target=lambda: statuses.append(running.post("/held").status_code)) for _ in range(4)
        ]
        for client in clients:
            client.start()
        wait_until(lambda: running.queued() == len(leader.requests) == 2, "two requests at the leader and two behind")
        leader.release.set()
        for client in clients:
            client.join(PATIENCE)
        assert statuses == [200] * 4


def test_requests_beyond_the_queue_are_refused_at_once(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1) as running:
        held = [threading.Thread(target=running.post, args=("/held",)) for _ in range(2)]
        for client in held:
            client.start()
        wait_until(lambda: running.queued() == 1, "queueing")
        refused = running.post("/answer")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.headers["Retry-After"] == "1"
        running.leaders[0].release.set()
        for client in held:
            client.join(PATIENCE)
        assert running.post("/answer").status_code == 200


def test_probes_find_a_gateway_well_whose_api_has_all_the_connections_that_it_may_have(tmp_path: Path) -> None:
    connections = gateway.RESERVED + gateway.REFUSALS
    with run_gateway(tmp_path, leaders=0, connections=connections) as running, ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(connected(running))
        assert answers(running.metrics_url + "/healthz")
        full = f'haproxy_frontend_current_sessions{{proxy="api"}} {connections - gateway.RESERVED}\n'
        wait_until(lambda: full in running.metrics(), "taking all connections")
        assert answers(running.metrics_url + "/healthz")
        assert running.waiting() == 0


def test_requests_on_the_last_connections_are_refused_and_leave_them(tmp_path: Path) -> None:
    room = 3
    connections = gateway.RESERVED + gateway.REFUSALS + room
    with run_gateway(tmp_path, leaders=1, connections=connections) as running:
        held = [threading.Thread(target=running.post, args=("/held",)) for _ in range(room)]
        for client in held:
            client.start()
        wait_until(lambda: len(running.leaders[0].requests) == room, "the leader's requests")
        refused = running.post("/answer")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["Connection"] == "close"
        running.leaders[0].release.set()
        for client in held:
            client.join(PATIENCE)
        wait_until(lambda: running.post("/answer").status_code == 200, "room for a request")


def test_a_request_that_waited_in_vain_hears_that_all_are_busy(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1, queue_timeout="100ms") as running:
        client = threading.Thread(target=running.post, args=("/held",))
        client.start()
        wait_until(lambda: bool(running.leaders[0].requests), "the leader's request")
        late = running.post("/answer")
        assert (late.status_code, late.json()["error"]["code"]) == (503, "overloaded")
        assert "busy" in late.json()["error"]["message"]
        running.leaders[0].release.set()
        client.join(PATIENCE)


def test_a_request_needs_a_key_and_a_replaced_one_counts_while_requests_are_open(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1, keys=["old", "other"]) as running:

        def asked(scheme: str = "Bearer", key: str = "", path: str = "/answer") -> httpx.Response:
            return running.post(path, headers={"Authorization": f"{scheme} {key}"})

        refused = [running.post("/answer"), asked(key="wrong"), asked("Basic", "old"), asked(key="old2")]
        assert {answer.status_code for answer in refused} == {401}
        assert {answer.headers["WWW-Authenticate"] for answer in refused} == {"Bearer"}
        assert {answer.json()["error"]["code"] for answer in refused} == {"invalid_api_key"}
        assert running.leaders[0].requests == []
        assert (asked(key="old").status_code, asked("bearer", "other").status_code) == (200, 200)
        assert httpx.get(running.url + "/health", timeout=PATIENCE).status_code == 200
        assert httpx.get(running.url + "/v1/models", timeout=PATIENCE).status_code == 401
        assert httpx.options(running.url + "/answer", timeout=PATIENCE).status_code == 401, "no page may ask"
        headers = {"Authorization": "Bearer old"}
        with httpx.stream("POST", running.url + "/stream", content=b"{}", headers=headers, timeout=PATIENCE) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"one"
            write_keys(tmp_path, ["new"])
            wait_until(lambda: asked(key="old").status_code == 401, "the end of the old key")
            assert asked(key="new").status_code == 200
            running.leaders[0].next_chunk.set()
            assert b"".join(chunks) == b"two"
        (tmp_path / gateway.KEYS_FILE).unlink()
        wait_until(lambda: asked(key="new").status_code == 401, "closing where there are no keys")
        told = (tmp_path / "haproxy.log").read_text()
        assert not any(key in told for key in ("old", "other", "wrong"))


def test_a_canary_gets_its_share_of_the_requests_and_all_where_nobody_else_is_ready(tmp_path: Path) -> None:
    canary_file = tmp_path / gateway.CANARY_FILE
    canary_file.write_text("30\n")
    with run_gateway(tmp_path, leaders=3, canaries=1) as running, httpx.Client(base_url=running.url) as client:
        first, second, canary = running.leaders

        def answered(count: int) -> list[str]:
            return [client.post("/answer", content=b"{}").text for _ in range(count)]

        answers_of = answered(400)
        # 30% of 400 with a standard deviation of 9: five of those on each side.
        assert 75 <= answers_of.count(canary.address) <= 165
        assert set(answers_of) == {leader.address for leader in running.leaders}
        canary_file.write_text("0\n")
        wait_until(lambda: canary.address not in answered(20), "the end of the canary's share")
        first.ready = second.ready = False
        wait_until(lambda: answered(1) == [canary.address], "the canary's taking all")
        first.ready = True
        wait_until(lambda: answered(1) == [first.address], "the stable one's return")
        canary_file.write_text("100\n")
        wait_until(lambda: set(answered(10)) == {canary.address}, "the canary's taking all that is asked for")
        # Promoted: what was a canary's is everybody's, while requests go on.
        running.dns.addresses, running.dns.canaries = [canary.address], []
        seen = [client.post("/answer", content=b"{}").status_code for _ in range(200)]
        wait_until(lambda: set(answered(5)) == {canary.address}, "the way over the other backend")
        assert set(seen) == {200}


def test_requests_wait_while_a_service_that_is_scaled_to_zero_starts(tmp_path: Path) -> None:
    (tmp_path / gateway.HOLD_FILE).write_text("2\n")
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1, hold_seconds=60) as running:
        (leader,) = running.leaders
        leader.ready = False
        wait_until(
            lambda: httpx.get(running.url + "/health", timeout=PATIENCE).status_code == 503, "leaving out the leader"
        )
        assert running.waiting() == 0, "a probe neither waits nor wakes"
        with connected(running) as impatient:
            impatient.sendall(b"POST /answer HTTP/1.1\r\nHost: demo\r\nContent-Length: 2\r\n\r\n{}")
            wait_until(lambda: running.waiting() == 1, "holding a request")
        wait_until(lambda: running.waiting() == 0, "forgetting one whose client has gone")
        answers_of: list[httpx.Response] = []
        clients = [threading.Thread(target=lambda: answers_of.append(running.post("/answer"))) for _ in range(2)]
        for client in clients:
            client.start()
        wait_until(lambda: running.waiting() == 2, "holding both")
        refused = running.post("/answer")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["Retry-After"] == "10"
        leader.ready = True
        for client in clients:
            client.join(PATIENCE)
        assert [answer.status_code for answer in answers_of] == [200, 200]
        assert len(leader.requests) == 2, "the one that went away has reached nobody"
        assert running.waiting() == 0


def test_who_comes_while_held_requests_are_still_queueing_waits_too(tmp_path: Path) -> None:
    (tmp_path / gateway.HOLD_FILE).write_text("3\n")
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1, hold_seconds=60, hold_requests=3) as running:
        (leader,) = running.leaders
        leader.ready = False
        wait_until(lambda: running.up() == 0, "leaving out the leader")
        clients = [threading.Thread(target=running.post, args=("/held",)) for _ in range(3)]
        for client in clients:
            client.start()
        wait_until(lambda: running.waiting() == 3, "holding all")
        leader.ready = True
        wait_until(lambda: running.queued() == 2, "queueing for the leader")
        answers_of: list[httpx.Response] = []
        late = threading.Thread(target=lambda: answers_of.append(running.post("/answer")))
        late.start()
        wait_until(lambda: running.queued() == 3 or bool(answers_of), "the late one's queueing")
        leader.release.set()
        for client in (*clients, late):
            client.join(PATIENCE)
        assert [answer.status_code for answer in answers_of] == [200]


def test_a_request_that_has_waited_for_long_enough_is_told_to_come_again(tmp_path: Path) -> None:
    (tmp_path / gateway.HOLD_FILE).write_text("2\n")
    with run_gateway(tmp_path, leaders=0, hold_seconds=1) as running:
        late = running.post("/answer")
        assert (late.status_code, late.json()["error"]["code"]) == (429, "starting")
        assert late.headers["Retry-After"] == "10"
        (tmp_path / gateway.HOLD_FILE).write_text("0\n")
        wait_until(lambda: running.post("/answer").json()["error"]["code"] == "queue_full", "holding none any more")


PAGE = "https://chat.example.com"


def preflight(running: Gateway, origin: str) -> httpx.Response:
    """Ask as a browser does before a page's request goes out."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    return httpx.options(running.url + "/answer", headers={"Origin": origin, **asked}, timeout=PATIENCE)


@pytest.mark.parametrize(("origins", "allowed"), [(("https://other.example", PAGE), PAGE), (("*",), "*")])
def test_a_browser_may_ask_without_a_key_whether_a_page_may_ask(
    tmp_path: Path, origins: tuple[str, ...], allowed: str
) -> None:
    with run_gateway(tmp_path, leaders=1, keys=[], origins=origins) as running:
        answer = preflight(running, PAGE)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == allowed
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
        assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
        assert "Origin" in answer.headers["Vary"]
        assert running.post("/answer").status_code == 401
        assert httpx.options(running.url + "/answer", timeout=PATIENCE).status_code == 401, "no browser asks like that"


def test_only_a_service_whose_spec_names_origins_answers_browsers() -> None:
    def config(**service: Any) -> str:
        text: str = children(service=service)["ConfigMap", "demo-0a1b2-gateway"]["data"][gateway.CONFIG_FILE]
        return text

    assert f"'{PAGE}'" in config(cors=[PAGE])
    assert "OPTIONS" not in config(auth={"secretName": "people"})


def test_a_browser_that_asks_wakes_no_service_that_is_scaled_to_zero(tmp_path: Path) -> None:
    (tmp_path / gateway.HOLD_FILE).write_text("1\n")
    with run_gateway(tmp_path, leaders=0, keys=["key"], origins=(PAGE,), hold_seconds=60) as running:
        assert preflight(running, PAGE).headers["Access-Control-Allow-Origin"] == PAGE
        refused = preflight(running, "https://elsewhere.example")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in refused.headers
        assert running.waiting() == 0
        with connected(running) as page:
            page.sendall(b"GET /answer HTTP/1.1\r\nHost: demo\r\nAuthorization: Bearer key\r\n\r\n")
            wait_until(lambda: running.waiting() == 1, "the page's own request, which wakes it")


@pytest.mark.parametrize("size", [2, 40_000])
def test_a_leader_hears_of_a_request_once_it_is_whole(tmp_path: Path, size: int) -> None:
    with run_gateway(tmp_path, leaders=1, requests_per_leader=1) as running, connected(running) as slow:
        head = f"POST /answer HTTP/1.1\r\nHost: demo\r\nContent-Length: {size}\r\n\r\n"
        slow.sendall(head.encode() + b"x" * (size - 1))
        assert running.post("/answer").status_code == 200, "the slow one took the leader's only place"
        slow.sendall(b"x")
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert answer.status == 200
        answer.close()


def test_a_gateway_told_to_stop_finishes_its_streams_and_loses_no_request(tmp_path: Path) -> None:
    with run_gateway(tmp_path, leaders=1) as running, httpx.Client(timeout=PATIENCE) as kept_alive:
        assert "Connection" not in kept_alive.post(running.url + "/answer", content=b"{}").headers
        with httpx.stream("POST", running.url + "/stream", content=b"{}", timeout=PATIENCE) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == b"one"
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not answers(running.url + "/healthz"), "telling load balancers")
            late = kept_alive.post(running.url + "/answer", content=b"{}")
            assert (late.status_code, late.headers["Connection"]) == (200, "close")
            wait_until(lambda: refuses(running.url), "closing the listener")
            running.process.send_signal(signal.SIGTERM)  # a runtime may say it again
            running.leaders[0].next_chunk.set()
            assert b"".join(chunks) == b"two"
        assert running.process.wait(PATIENCE) == 0


def test_gateways_told_to_stop_end_by_themselves_however_busy_the_node_is(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(STOPPED_AT_ONCE)]
    with ExitStack() as stack:
        stopped = []
        for folder in folders:
            folder.mkdir()
            stopped.append(stack.enter_context(run_gateway(folder, leaders=1)))
        for running in stopped:
            running.process.send_signal(signal.SIGTERM)
        assert [running.process.wait(PATIENCE) for running in stopped] == [0] * STOPPED_AT_ONCE
    assert not [folder for folder in folders if "hard-stop" in (folder / "haproxy.log").read_text()]


def refuses(url: str) -> bool:
    try:
        httpx.get(url, timeout=PATIENCE)
    except httpx.TransportError as error:  # what was let in just before may be cut off
        return isinstance(error, httpx.ConnectError)
    return False


def test_the_gateway_of_a_service_is_these_objects() -> None:
    assert set(children()) == {
        ("ConfigMap", "demo-0a1b2-gateway"),
        ("Deployment", "demo-0a1b2-gateway"),
        ("PodDisruptionBudget", "demo-0a1b2-gateway"),
        ("Service", "demo-0a1b2-leaders"),
        ("Service", "demo-0a1b2-canary"),
        ("Service", "demo"),
    }
    assert all(child["metadata"]["ownerReferences"][0]["uid"] == UID for child in children().values())
    json.dumps(list(children().values()))


def test_digests_of_keys_are_in_a_secret_alone_and_a_new_one_restarts_nothing() -> None:
    spec = make_spec(service={"auth": {"secretName": "people"}})
    one, other = (
        {child["kind"]: child for child in gateway_children(DEMO, spec, SETTINGS, digests)}
        for digests in (["aa", "bb"], ["cc"])
    )
    secret = one.pop("Secret")
    assert secret["metadata"]["name"] == "demo-0a1b2-keys"
    assert base64.b64decode(secret["data"][gateway.KEYS_FILE]) == b"aa\nbb\n"
    assert one == {kind: child for kind, child in other.items() if kind != "Secret"}
    assert "people" not in json.dumps(list(one.values()))
    pod = one["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "keys", "secret": {"secretName": "demo-0a1b2-keys"}} in pod["volumes"]
    assert gateway.KEYS_FOLDER in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}


def test_only_a_service_that_may_be_scaled_to_zero_holds_requests_and_not_while_it_is_suspended() -> None:
    def built(**changes: Any) -> tuple[str, str]:
        data = children(**changes)["ConfigMap", "demo-0a1b2-gateway"]["data"]
        return data[gateway.HOLD_FILE], data[gateway.CONFIG_FILE]

    scaling = {"min": 0, "max": 2, "scaleToZeroAfter": "1h", "target": {"ttft": "1s"}, "hold": {"requests": 5}}
    assert built()[0] == built(autoscaling={"max": 2, "target": {"ttft": "1s"}})[0] == "0\n"
    assert "lua.hold" not in built()[1]
    assert built(autoscaling=scaling)[0] == "3\n"
    assert built(autoscaling=scaling, suspend=True) == ("0\n", built(autoscaling=scaling)[1]), "nothing restarts"


def test_the_stable_address_leads_to_the_gateway_on_the_port_of_the_spec() -> None:
    built = children(service={"port": 80})
    service = built["Service", "demo"]["spec"]
    pod = built["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}["http"] == 8080
    assert service_url(DEMO, make_spec(service={"port": 80})) == "http://demo.default.svc:80"


def test_the_leaders_service_does_not_select_the_gateway() -> None:
    built = children()
    selector = built["Service", "demo-0a1b2-leaders"]["spec"]["selector"]
    assert (
        not selector.items()
        <= built["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_pod_has_memory_for_the_buffers_of_all_connections() -> None:
    built = children()
    config = built["ConfigMap", "demo-0a1b2-gateway"]["data"][gateway.CONFIG_FILE]
    connections, bytes_each = (
        int(re.findall(rf"^ +{key} (\d+)$", config, re.M)[0]) for key in ("maxconn", "tune.bufsize")
    )
    pod = built["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["spec"]
    limit = pod["containers"][0]["resources"]["limits"]["memory"]
    assert int(limit.removesuffix("Mi")) << 20 > 2 * connections * bytes_each


def test_a_changed_configuration_rolls_the_gateway_and_nothing_else_does() -> None:
    def template(**changes: Any) -> Any:
        return children(**changes)["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]

    assert template() == template(replicas=3, model={"training": "other"})
    assert template() != template(replicas=40)
    assert template() != template(batching={"maxSequences": 8})


def test_the_pods_go_where_the_settings_say() -> None:
    toleration = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    placed = SETTINGS.model_copy(
        update={"gateway_node_selector": {"pool": "cpu"}, "gateway_tolerations": (toleration,)}
    )
    pod = children(placed)["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "cpu"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_what_is_not_asked_for_any_more_rolls_the_gateway_too() -> None:
    """What is left out of an apply is no difference to what is there."""
    placed = SETTINGS.model_copy(update={"gateway_node_selector": {"pool": "cpu"}})
    now = children()["Deployment", "demo-0a1b2-gateway"]
    for before in (children(placed), children(priorityClassName="high")):
        assert not contains(before["Deployment", "demo-0a1b2-gateway"], now)


def test_the_pod_outlives_its_drain() -> None:
    pod = children(rollout={"drainTimeout": "90s"})["Deployment", "demo-0a1b2-gateway"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= gateway.GRACE_SECONDS + 90


@given(st.integers(1, 4000))
def test_there_are_slots_for_every_group(most_groups: int) -> None:
    assert most_groups <= leader_slots(most_groups) < max(gateway.MIN_SLOTS + 1, 2 * most_groups)
