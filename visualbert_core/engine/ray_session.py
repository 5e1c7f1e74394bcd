"""The Ray session of this process: on the cluster of RAY_ADDRESS, or on this machine alone (docs.ray.io).

Owns how Ray is found, which token is sent to it, and what the user reads where Ray does not start or refuses the job.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from visualbert_core.errors import ClusterError, first_line
from visualbert_core.printable import logger

_LOG = logger(__name__)

OBJECT_STORE = 256 << 20  # bytes; only shards and markers pass through it
LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # without it Ray writes a token into the home folder
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # read at `import ray`; the only switch that makes Ray listen on loopback
}
STARTS = 2  # attempts; Ray allows half a minute for a start, after which a busy machine may be idle again
SHORT = "/tmp/ray"  # Ray's default; ray's get_default_ray_temp_dir returns another folder while TMPDIR is set
ANSWER_SECONDS = 15.0  # for a head that is still starting
TOKEN_PLACES = "RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"


def start_ray() -> bool:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start Ray on this machine alone.

    Return False where Ray already runs in this process. Raise ClusterError where Ray does not start or refuses the job.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        for name, value in LOCAL_ENVIRONMENT.items():
            os.environ[name] = os.environ.get(name) or value  # an empty variable counts as unset
    import ray

    if ray.is_initialized():
        return False
    if address:
        _join(ray, address)
    else:
        _start(ray)
    return True


def read_parquet(paths: Sequence[str], decode: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a `ray.data.Dataset` over Parquet files, whose batches (column → array) `decode` maps. Start Ray."""
    start_ray()
    import ray.data

    return ray.data.read_parquet(list(paths)).map_batches(decode, batch_format="numpy")


# Ray on this machine -------------------------------------------------------------------------------------------------


def _start(ray: Any) -> None:
    # logging.ERROR, because a local Ray warns that it uses a token. Setting RAY_AUTH_MODE would be too late here where
    # ray is imported already. "local", because a bare ray.init() joins any cluster of this user that it finds.
    options: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    options |= {"log_to_driver": False, "logging_level": logging.ERROR}
    failed = 0
    while True:
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises a bare Exception where a node does not start in time
            _end_what_started(ray, error)
            reason = first_line(error).rstrip(".")
            # A Unix socket's path has at most 107 bytes (unix(7)), and Ray puts its sockets below the temporary folder.
            if "AF_UNIX" in reason and "_temp_dir" not in options:
                options["_temp_dir"] = SHORT
                _LOG.warning(
                    "%s is too long a path for Ray's sockets, so Ray keeps its files in %s: set RAY_TMPDIR to use "
                    "another short folder",
                    _variable(),
                    SHORT,
                )
                continue
            failed += 1
            if failed == STARTS:
                raise ClusterError(
                    f"Ray did not start in {STARTS} attempts: {reason}: run the same line again when this machine has "
                    "CPU and memory to spare, or set RAY_TMPDIR to a short path that Ray can write"
                ) from error
            _LOG.warning("Ray did not start (%s): trying once more", reason)


def _variable() -> str:
    """Return the name of the variable from which Ray took its folder."""
    return "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"


def _end_what_started(ray: Any, error: Exception) -> None:
    """End the processes of a node that did not start. Ray forgets them, and they would slow down the next attempt."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, ray._private.node.Node) and hasattr(node, "all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return


# Ray on a cluster ----------------------------------------------------------------------------------------------------


def _join(ray: Any, address: str) -> None:
    if place := _place(address):
        _wait_for(address, place)
        _show_token(ray, address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        reason = first_line(error).rstrip(".")
        raise ClusterError(
            f"{address} (RAY_ADDRESS) does not let this job join: {reason}: name the HOST:PORT of a head with this Ray "
            f"version ({ray.__version__}), or unset RAY_ADDRESS to compute on this machine"
        ) from error


def _place(address: str) -> tuple[str, int] | None:
    """Return host and port, or None for an address that only Ray can resolve, such as "auto"."""
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _wait_for(address: str, place: tuple[str, int]) -> None:
    """Wait until the port accepts connections. Ray itself would try for minutes without a message.

    Raise ClusterError after ANSWER_SECONDS.
    """
    end = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ClusterError(
                    f"no Ray cluster answers at {address} (RAY_ADDRESS): {error}: start it, name the HOST:PORT of a "
                    "running cluster, or unset RAY_ADDRESS to compute on this machine"
                ) from error
            time.sleep(0.5)


def _show_token(ray: Any, address: str) -> None:
    """Make Ray send this machine's token, if the cluster asks for a token.

    `ray start` demands tokens where it finds one, but nothing tells a driver with RAY_ADDRESS. A cluster that asks for
    no token gets none: a driver that uses tokens also demands them, and would refuse the processes of that cluster.
    Raise ClusterError where there is no token here, or the cluster refuses it.
    """
    if not _refused(address):
        return
    loader, mode = ray._raylet.AuthenticationTokenLoader.instance(), os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() != "token":
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses jobs without a token, and RAY_AUTH_MODE={mode} keeps the "
            "token from being sent: unset RAY_AUTH_MODE, or set it to token"
        )
    if not loader.has_token(ignore_auth_mode=True):
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses jobs without a token, and there is none here: copy its "
            f"token (`ray get-auth-token` on the head prints it) into {TOKEN_PLACES}"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    ray._raylet.Config.initialize("")  # again, because `import ray` has already read the variable
    if _refused(address, loader.get_token_for_http_header()):
        raise ClusterError(
            f"the cluster at {address} (RAY_ADDRESS) refuses the token of this machine, which is not its own: copy its "
            f"token (`ray get-auth-token` on the head prints it) into {TOKEN_PLACES}"
        )


def _refused(address: str, headers: dict[str, str] | None = None) -> bool:
    """Return whether the head refuses a request with these headers. Ray itself would ask 20 times without a message."""
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        metadata = [(name.lower(), value) for name, value in (headers or {}).items()]
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False
