import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from arctic_api.world import CheckpointReport, InferenceGroup, Ports
from arctic_operator.certificates import Authority, ClientTLS, Pair, client_tls, server_secret
from arctic_rpc import control_pb2, control_pb2_grpc
from arctic_workers.control.commands import Commands, NotNow
from arctic_workers.control.server import ControlServer
from arctic_workers.control.state import StateBoard
from arctic_workers.control.tls import TLSFolderError

SECONDS = 100
"""Deadline of calls that are answered at once."""


def server(world: InferenceGroup, commands: Commands | None = None, ready: Callable[[], bool] = bool) -> ControlServer:
    return ControlServer(world, StateBoard(world), commands or Commands(), ready)


@contextmanager
def connection(port: int, tls: ClientTLS | None, name: str = "chat.team") -> Iterator[grpc.Channel]:
    if tls is None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
    else:
        credentials = grpc.ssl_channel_credentials(tls.authorities, tls.pair.key, tls.pair.certificate)
        options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
    with channel:
        yield channel


def first_state(port: int, tls: ClientTLS | None, name: str = "chat.team") -> control_pb2.WorkerState:
    with connection(port, tls, name) as channel:
        return next(control_pb2_grpc.ControlStub(channel).Watch(control_pb2.WatchRequest(), timeout=SECONDS))


def code_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.fixture
def secure(group: InferenceGroup, tls_folder: Path) -> InferenceGroup:
    return group.model_copy(update={"tls_folder": str(tls_folder)})


@pytest.fixture
def client(authority: Authority, now: datetime) -> ClientTLS:
    return client_tls(authority, now)


class TestMutualTLS:
    def test_the_operator_is_served(self, secure: InferenceGroup, client: ClientTLS) -> None:
        with server(secure) as running:
            assert first_state(running.port, client).uid == secure.uid

    def test_a_client_of_another_authority_is_refused(
        self, secure: InferenceGroup, client: ClientTLS, now: datetime
    ) -> None:
        stranger = ClientTLS(client_tls(Authority.create(now), now).pair, client.authorities)
        with server(secure) as running:
            assert code_of(lambda: first_state(running.port, stranger))[0] == grpc.StatusCode.UNAVAILABLE

    def test_another_worker_is_refused_though_of_the_same_authority(
        self, secure: InferenceGroup, client: ClientTLS, authority: Authority, now: datetime
    ) -> None:
        secret = server_secret(authority, "other", "team", now)
        worker = ClientTLS(Pair(secret["tls.crt"], secret["tls.key"]), client.authorities)
        with server(secure) as running:
            assert code_of(lambda: first_state(running.port, worker))[0] == grpc.StatusCode.UNAVAILABLE

    def test_a_client_without_a_certificate_is_refused(self, secure: InferenceGroup, client: ClientTLS) -> None:
        anonymous = grpc.ssl_channel_credentials(client.authorities)
        options = [("grpc.ssl_target_name_override", "chat.team")]
        with (
            server(secure) as running,
            grpc.secure_channel(f"127.0.0.1:{running.port}", anonymous, options=options) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            code, _ = code_of(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS))
        assert code == grpc.StatusCode.UNAVAILABLE

    def test_a_client_in_the_clear_is_refused(self, secure: InferenceGroup) -> None:
        with server(secure) as running:
            assert code_of(lambda: first_state(running.port, None))[0] == grpc.StatusCode.UNAVAILABLE

    def test_a_server_with_another_name_is_refused(self, secure: InferenceGroup, client: ClientTLS) -> None:
        with server(secure) as running:
            code, details = code_of(lambda: first_state(running.port, client, "code.team"))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "code.team is not in peer certificate" in details

    def test_a_server_of_another_authority_is_refused(
        self, secure: InferenceGroup, client: ClientTLS, now: datetime
    ) -> None:
        deceived = ClientTLS(client.pair, Authority.create(now).bundle)
        with server(secure) as running:
            code, details = code_of(lambda: first_state(running.port, deceived))
        assert code == grpc.StatusCode.UNAVAILABLE
        assert "CERTIFICATE_VERIFY_FAILED" in details

    def test_a_folder_that_cannot_serve_is_told_before_anything_starts(
        self, secure: InferenceGroup, tls_folder: Path
    ) -> None:
        (tls_folder / "tls.key").unlink()
        with pytest.raises(TLSFolderError, match=r"tls\.key can't be read"):
            server(secure)


class TestRotation:
    @pytest.fixture
    def mounted(self, tmp_path: Path, authority: Authority, now: datetime) -> Path:
        """A Secret as a kubelet mounts it: files are links through `..data`, which changes as a whole."""
        folder = tmp_path / "mounted"
        folder.mkdir()
        self.swap(folder, server_secret(authority, "chat", "team", now), "1")
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (folder / name).symlink_to(f"..data/{name}")
        return folder

    @staticmethod
    def swap(folder: Path, data: dict[str, bytes], generation: str) -> None:
        (folder / f"..{generation}").mkdir()
        for name, content in data.items():
            (folder / f"..{generation}" / name).write_bytes(content)
        (folder / "..data_tmp").symlink_to(f"..{generation}")
        (folder / "..data_tmp").rename(folder / "..data")

    def test_new_certificates_are_used_without_a_restart_and_streams_go_on(
        self, group: InferenceGroup, mounted: Path, client: ClientTLS, now: datetime
    ) -> None:
        world = group.model_copy(update={"tls_folder": str(mounted)})
        other = Authority.create(now)
        new_client = client_tls(other, now)
        board = StateBoard(world)
        with ControlServer(world, board, Commands(), bool) as running, connection(running.port, client) as channel:
            stream = control_pb2_grpc.ControlStub(channel).Watch(control_pb2.WatchRequest(), timeout=SECONDS)
            next(stream)
            assert code_of(lambda: first_state(running.port, new_client))[0] == grpc.StatusCode.UNAVAILABLE
            self.swap(mounted, server_secret(other, "chat", "team", now), "2")
            assert first_state(running.port, new_client).uid == world.uid
            assert code_of(lambda: first_state(running.port, client))[0] == grpc.StatusCode.UNAVAILABLE
            board.publish(control_pb2.WorkerState(phase=control_pb2.RUNNING))
            assert next(stream).phase == control_pb2.RUNNING

    def test_new_files_that_cannot_serve_leave_the_old_ones_in_use(
        self, group: InferenceGroup, mounted: Path, client: ClientTLS, caplog: pytest.LogCaptureFixture
    ) -> None:
        world = group.model_copy(update={"tls_folder": str(mounted)})
        with server(world) as running:
            self.swap(mounted, {"tls.crt": b"damaged", "tls.key": b"damaged", "ca.crt": b"damaged"}, "2")
            assert first_state(running.port, client).uid == world.uid
        assert "New certificates are not used" in caplog.text


class TestWatch:
    def test_a_stream_brings_the_state_now_and_at_most_one_a_second(self, group: InferenceGroup) -> None:
        board = StateBoard(group)
        ended = threading.Event()

        def publish() -> None:
            for running in range(1, 10_000):
                board.publish(
                    control_pb2.WorkerState(
                        phase=control_pb2.RUNNING, inference=control_pb2.InferenceState(running=running)
                    )
                )
                if ended.wait(0.02):
                    return

        publisher = threading.Thread(target=publish)
        with ControlServer(group, board, Commands(), bool) as running, connection(running.port, None) as channel:
            started = time.monotonic()
            stream = control_pb2_grpc.ControlStub(channel).Watch(control_pb2.WatchRequest(), timeout=SECONDS)
            states = [next(stream)]
            publisher.start()
            states += [next(stream), next(stream)]
            elapsed = time.monotonic() - started
            ended.set()
            publisher.join()
        figures = [state.inference.running for state in states]
        assert figures == sorted(set(figures))
        assert len(figures) <= elapsed + 1

    def test_the_last_state_is_delivered_before_the_server_ends(self, group: InferenceGroup) -> None:
        board = StateBoard(group)
        running = ControlServer(group, board, Commands(), bool)
        running.start()
        with connection(running.port, None) as channel:
            stream = control_pb2_grpc.ControlStub(channel).Watch(control_pb2.WatchRequest(), timeout=SECONDS)
            next(stream)
            board.publish(control_pb2.WorkerState(phase=control_pb2.DONE, message="All is done."))
            running.stop(grace=SECONDS)
            assert [state.message for state in stream] == ["All is done."]


class Obedient(Commands):
    def __init__(self) -> None:
        self.hung = threading.Event()
        self.stopped = threading.Event()

    def checkpoint(self, timeout: float) -> CheckpointReport:
        return CheckpointReport(step=5, tokens=500, uri="file:///c/5", time="2026-01-02T03:04:05Z")

    def pause(self, timeout: float) -> None:
        raise NotNow("The training is done: there is nothing to pause.")

    def resume(self, timeout: float) -> None:
        raise TimeoutError("The ranks did not answer.")

    def drain(self, timeout: float) -> None:
        self.hung.wait(timeout)

    def stop(self, timeout: float) -> None:
        self.stopped.set()

    def profile(self, steps: int, timeout: float) -> str:
        if steps > 10:
            raise ValueError("too many")
        return f"file:///trace/{steps}"


class TestCommands:
    @pytest.fixture
    def commands(self) -> Obedient:
        return Obedient()

    @pytest.fixture
    def stub(self, group: InferenceGroup, commands: Obedient) -> Iterator[control_pb2_grpc.ControlStub]:
        with server(group, commands) as running, connection(running.port, None) as channel:
            yield control_pb2_grpc.ControlStub(channel)
            commands.hung.set()

    def test_answers_come_back(self, stub: Any, commands: Obedient) -> None:
        checkpoint = stub.Checkpoint(control_pb2.CheckpointRequest(), timeout=SECONDS).checkpoint
        assert (checkpoint.step, checkpoint.tokens, checkpoint.uri) == (5, 500, "file:///c/5")
        assert checkpoint.time.ToJsonString() == "2026-01-02T03:04:05Z"
        assert stub.Profile(control_pb2.ProfileRequest(steps=3), timeout=SECONDS).uri == "file:///trace/3"
        stub.Stop(control_pb2.StopRequest(), timeout=SECONDS)
        assert commands.stopped.is_set()

    def test_refusals_have_codes_and_sentences(self, stub: Any) -> None:
        assert code_of(lambda: stub.Pause(control_pb2.PauseRequest(), timeout=SECONDS)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "The training is done: there is nothing to pause.",
        )
        assert code_of(lambda: stub.Resume(control_pb2.ResumeRequest(), timeout=SECONDS)) == (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "The ranks did not answer.",
        )
        assert code_of(lambda: stub.Profile(control_pb2.ProfileRequest(steps=11), timeout=SECONDS)) == (
            grpc.StatusCode.INTERNAL,
            "ValueError: too many",
        )
        code, details = code_of(lambda: stub.Profile(control_pb2.ProfileRequest(), timeout=SECONDS))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "steps is 0" in details

    def test_what_hangs_holds_up_nothing_else(self, stub: Any, commands: Obedient) -> None:
        hung = [stub.Drain.future(control_pb2.DrainRequest(), timeout=SECONDS) for _ in range(12)]
        stub.Stop(control_pb2.StopRequest(), timeout=SECONDS)
        assert commands.stopped.is_set()
        commands.hung.set()
        for call in hung:
            call.result()

    @pytest.mark.parametrize("name", ["Checkpoint", "Pause", "Resume", "Drain", "Stop", "Profile"])
    def test_what_a_worker_cannot_do_is_unimplemented(self, group: InferenceGroup, name: str) -> None:
        requests = {"Profile": control_pb2.ProfileRequest(steps=1)}
        with server(group) as running, connection(running.port, None) as channel:
            method = getattr(control_pb2_grpc.ControlStub(channel), name)
            request = requests.get(name) or getattr(control_pb2, f"{name}Request")()
            code, sentence = code_of(lambda: method(request, timeout=SECONDS))
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert sentence.startswith("This worker ")


class TestBeside:
    def test_health_follows_readiness(self, group: InferenceGroup) -> None:
        ready = threading.Event()
        with server(group, ready=ready.is_set) as running, connection(running.port, None) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="arctic_rpc.Control"), timeout=SECONDS
            )
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            ready.set()
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            ready.clear()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING

    def test_readiness_that_cannot_be_told_is_a_no(self, group: InferenceGroup) -> None:
        def broken() -> bool:
            raise RuntimeError("no device")

        with server(group, ready=broken) as running, connection(running.port, None) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING

    def test_reflection_lists_the_services(self, group: InferenceGroup) -> None:
        with server(group) as running, connection(running.port, None) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            answer = next(stub.ServerReflectionInfo(iter([request]), timeout=SECONDS))
        names = {service.name for service in answer.list_services_response.service}
        assert {"arctic_rpc.Control", "grpc.health.v1.Health"} <= names

    def test_a_taken_port_is_named(self, group: InferenceGroup) -> None:
        with server(group) as running:
            second = server(group.model_copy(update={"ports": Ports(control=running.port)}))
            with pytest.raises(OSError, match=f"Port {running.port} for gRPC"):
                second.start()

    def test_without_certificates_only_this_machine_is_served(self, group: InferenceGroup) -> None:
        with server(group) as running, grpc.insecure_channel(f"127.0.0.2:{running.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            code, _ = code_of(lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS))
        assert code == grpc.StatusCode.UNAVAILABLE

    def test_a_process_that_serves_ends_though_a_command_hangs(self, group: InferenceGroup) -> None:
        program = """
import sys, threading
import grpc
from arctic_api.world import InferenceGroup
from arctic_rpc import control_pb2, control_pb2_grpc
from arctic_workers.control.commands import Commands
from arctic_workers.control.server import ControlServer
from arctic_workers.control.state import StateBoard

begun = threading.Event()

class Hung(Commands):
    def drain(self, timeout):
        begun.set()
        threading.Event().wait()

world = InferenceGroup.model_validate_json(sys.stdin.read())
with ControlServer(world, StateBoard(world), Hung(), bool) as running:
    with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        call = control_pb2_grpc.ControlStub(channel).Drain.future(control_pb2.DrainRequest())
        begun.wait()
print("ended")
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=group.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ,
        )
        assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
