"""The connection to the Docker engine: starts containers, removes them and forgotten ones."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, InfraError, install_hint
from mathenv.interpreter.base import Limits

LABEL = "mathenv.interpreter"
_UID = 65534  # "nobody"
_PACKAGE = Path(__file__).parents[1]
BUILD = f"docker build -t {{image}} -f {_PACKAGE}/interpreter/Dockerfile {_PACKAGE}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What one container gets, and the sessions inside it."""

    image: str
    max_sessions: int
    memory_bytes: int
    cpus: float | None
    runtime: str | None
    limits: Limits


class Engine:
    """The connection to the Docker engine, and what every container is made from."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._lock = threading.Lock()
        self._connect()
        try:
            # By its id from here on: a container started later is of the same image.
            self.image: str = self._api.inspect_image(resources.image)["Id"]
        except self._errors.ImageNotFound:
            raise ConfigError(
                f"the Docker engine has no image {resources.image!r}. Build it with: "
                + BUILD.format(image=resources.image)
            ) from None

    def _connect(self) -> None:
        try:
            docker: Any = import_module("docker")
        except ImportError:
            hint = install_hint("docker")
            raise ConfigError(f"DockerInterpreter needs the docker package: {hint}") from None
        self._errors, self._pid = docker.errors, os.getpid()
        options = docker.utils.kwargs_from_env()
        try:
            self._api = docker.APIClient(version="auto", **options)
        except docker.errors.DockerException as error:
            address = options.get("base_url", "the default socket /var/run/docker.sock")
            raise InfraError(_explain(str(error), address)) from None

    def start(self) -> tuple[str, Any]:
        """Start a container. Returns its id and the socket attached to its stdin and stdout.

        Raises `InfraError` with the engine's own words.
        """
        if os.getpid() != self._pid:  # a fork must not share its parent's connections
            self._lock = threading.Lock()
            self._connect()
        name = None
        try:
            with self._lock:
                name = self._create()
                streams = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
                attached = self._api.attach_socket(name, params=streams)
                self._api.start(name)
        except (self._errors.DockerException, OSError) as error:
            if name is not None:
                self.remove(name)
            raise InfraError(f"the Docker engine could not start a container: {error}") from None
        return name, attached

    def _create(self) -> str:
        given = self._resources
        scratch = f"size={4 * given.limits.file_bytes},nr_inodes={4096 * given.max_sessions}"
        host_config = self._api.create_host_config(
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            ipc_mode="none",
            pids_limit=256 + 32 * given.max_sessions,
            mem_limit=given.memory_bytes,
            memswap_limit=given.memory_bytes,
            nano_cpus=round(given.cpus * 1e9) if given.cpus else None,
            ulimits=[{"Name": "core", "Soft": 0, "Hard": 0}],
            tmpfs={"/tmp": f"{scratch},uid={_UID},gid={_UID},mode=0700,nosuid,nodev,noexec"},
            log_config={"Type": "none", "Config": {}},  # the default one fills the disk
            auto_remove=True,
            runtime=given.runtime,
        )
        reply = self._api.create_container(
            self.image,
            user=f"{_UID}:{_UID}",
            hostname="sandbox",
            stdin_open=True,  # once: the container's stdin ends when this process does
            network_disabled=True,
            host_config=host_config,
            labels=_owner(),
            use_config_proxy=False,
        )
        return str(reply["Id"])

    def remove(self, name: str) -> None:
        """Kill and remove a container if it is there."""
        if os.getpid() == self._pid:
            with contextlib.suppress(self._errors.DockerException, OSError), self._lock:
                self._api.remove_container(name, force=True)

    def reap(self) -> None:
        """Remove containers whose owner on this machine has died."""
        with contextlib.suppress(self._errors.DockerException, OSError):
            label = f"{LABEL}.host={_host()}"
            for found in self._api.containers(all=True, filters={"label": label}):
                labels = found["Labels"]
                owner = labels.get(f"{LABEL}.pid", ""), labels.get(f"{LABEL}.start")
                if owner[0].isdigit() and _start_time(int(owner[0])) != owner[1]:
                    self.remove(found["Id"])


def _explain(error: str, address: str) -> str:
    if "Permission" in error:
        return (
            f"no permission to use the Docker engine at {address}: add this user to the group "
            "'docker' (sudo usermod -aG docker $USER) and log in again"
        )
    if any(kind in error for kind in ("FileNotFound", "ConnectionRefused", "No such file")):
        return (
            f"no Docker engine answers at {address}: start it (sudo systemctl start docker, "
            "dockerd, or Docker Desktop) or set DOCKER_HOST"
        )
    return f"the Docker engine at {address} cannot be used: {error}"


def _host() -> str:
    """Identify the set of processes among which a process id means something."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks; "" for one that has ended; "?" off Linux."""
    if not Path("/proc/self/stat").exists():
        return "?"
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _owner() -> dict[str, str]:
    pid = os.getpid()
    values = {"host": _host(), "pid": str(pid), "start": _start_time(pid)}
    return {f"{LABEL}.{name}": value for name, value in values.items()}
