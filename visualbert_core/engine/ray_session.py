"""The Ray of this process: the cluster of RAY_ADDRESS, or one of its own on this machine.

Owns how Ray is found, which token it is shown, and what a person reads where it does not start or is not let in.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
import traceback
from typing import Any

from visualbert_core.errors import ClusterError, first_line

_LOG = logging.getLogger(__name__)

OBJECT_STORE = 256 << 20  # bytes; nothing but shards and markers passes through it
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # or Ray writes one into the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # read when ray is imported; Ray's only way to bind to loopback alone
}
STARTS = 2  # attempts; a machine that is busy may not be so half a minute later, which is what Ray gives one
SHORT = "/tmp/ray"  # Ray's own default; its get_default_ray_temp_dir tells another one while TMPDIR is set
ANSWER_SECONDS = 15.0  # until a head that is starting must have answered
TOKEN_PLACES = "RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"


def start_ray() -> bool:
    """Attach to the cluster of RAY_ADDRESS (`ray job submit` sets it) or start Ray on this machine, for it alone.
    False where Ray already runs in this process. Raises ClusterError where there is none to be had."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ[name] = os.environ.get(name) or value  # an empty token is none
    import ray

    if ray.is_initialized():
        return False
    if address:
        _join(ray, address)
    else:
        _start(ray)
    return True


# a Ray of our own ----------------------------------------------------------------------------------------------------


def _start(ray: Any) -> None:
    # Errors only: a local Ray warns that it uses a token, and setting RAY_AUTH_MODE here would be too late where ray is
    # imported already. "local", because a bare ray.init() joins whatever cluster of this user it finds.
    options: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    failed = 0
    while True:
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises a bare one where a node is not up in time
            _end_what_started(ray, error)
            reason = first_line(error).rstrip(".")
            if "AF_UNIX" in reason and "_temp_dir" not in options:
                options["_temp_dir"] = SHORT
                _LOG.warning(
                    "%s is too long a path for Ray's sockets: Ray keeps its files in %s; RAY_TMPDIR names another "
                    "short folder",
                    _variable(),
                    SHORT,
                )
                continue
            failed += 1
            if failed == STARTS:
                raise ClusterError(
                    f"Ray did not start in {STARTS} attempts: {reason}: run the same line again when this machine has "
                    "CPU and memory to spare, or give Ray another short and writable folder with RAY_TMPDIR"
                ) from error
            _LOG.warning("Ray did not start (%s): trying once more", reason)


def _variable() -> str:
    """Which one names the folder that Ray took."""
    return "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"


def _end_what_started(ray: Any, error: Exception) -> None:
    """Processes of a node that never came up: Ray forgets them, and they would take the next attempt's CPU."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, ray._private.node.Node) and hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return


# a cluster that runs --------------------------------------------------------------------------------------------------


def _join(ray: Any, address: str) -> None:
    if place := _place(address):
        _wait_for(address, place)
        _show_token(ray, address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = first_line(error).rstrip(".")
        raise ClusterError(
            f"{address} (RAY_ADDRESS) does not let this job join: {reason}: is it HOST:PORT of a head, of this Ray "
            f"version ({ray.__version__})? Without RAY_ADDRESS, this machine computes"
        ) from error


def _place(address: str) -> tuple[str, int] | None:
    """Host and port; None for what only Ray can look up, as "auto"."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _wait_for(address: str, place: tuple[str, int]) -> None:
    """Until something listens there: Ray itself would try for minutes, and say nothing."""
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ClusterError(
                    f"no Ray cluster answers at {address} (RAY_ADDRESS): {error}: start it, name the HOST:PORT of one "
                    "that runs, or unset RAY_ADDRESS to compute on this machine"
                ) from error
            time.sleep(0.5)


def _show_token(ray: Any, address: str) -> None:
    """Have Ray send the token that is here, where the cluster asks for one.

    `ray start` turns tokens on wherever it finds one, but a driver with RAY_ADDRESS is not told. Never sent where it is
    not asked for: a driver that demands tokens itself would refuse the cluster's own processes.
    """
    if not _refused(address):
        return
    loader, mode = ray._raylet.AuthenticationTokenLoader.instance(), os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses whoever shows no token, and RAY_AUTH_MODE={mode} keeps it "
            "from being sent: unset RAY_AUTH_MODE, or set it to token"
        )
    if not loader.has_token(ignore_auth_mode=True):
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses whoever shows no token, and there is none here: copy its "
            f"own (`ray get-auth-token` on the head prints it) into {TOKEN_PLACES}"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    ray._raylet.Config.initialize("")  # Ray has read the variable when it was imported
    if _refused(address, loader.get_token_for_http_header()):
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses the token that is here: it is another cluster's; copy its "
            f"own (`ray get-auth-token` on the head prints it) into {TOKEN_PLACES}"
        )


def _refused(address: str, headers: dict[str, str] | None = None) -> bool:
    """Whether the head turns away a question that comes with these headers; Ray would ask 20 times and not say so."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
