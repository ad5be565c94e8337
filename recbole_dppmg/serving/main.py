"""`run_dppmg.py serve`: a bundle over HTTP, with a page."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType

from recbole_dppmg.errors import ConfigError
from recbole_dppmg.serving.options import KEY_VARIABLE, ServeOptions, keys_from_environment

_DEFAULTS = {f.name: f.default for f in fields(ServeOptions)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"serve: {message}; see serve --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="run_dppmg.py serve",
        allow_abbrev=False,
        description="Serve a bundle: recommendations, cards and a page.",
        epilog=f"The API key is read from {KEY_VARIABLE}; when it is set, everything but health needs it.",
    )

    def add(name: str, kind: type, told: str) -> None:
        flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*flags, type=kind, default=_DEFAULTS[name], help=f"{told} [%(default)s]")

    parser.add_argument("--bundle", required=True, help="a bundle's folder or hub id, e.g. outputs/latest/bundle")
    add("host", str, "address to listen on; others than this machine's own need a key")
    add("port", int, "port to listen on")
    parser.add_argument("--insecure", action="store_true", help="listen to other machines without a key")
    parser.add_argument("--store", type=Path, help="SQLite file of finished cards; servers may share it [user's cache]")
    add("store_mb", int, "megabytes of finished cards kept")
    add("queue", int, "cards that may wait; beyond it requests get 429")
    add("batch", int, "cards made together")
    add("deadline", float, "seconds that a card may wait")
    add("limit", float, "seconds that a generator may take for a batch before it counts as hung")
    add("body_kb", int, "kilobytes of the largest request body")
    add("drain", float, "seconds to finish open requests when stopped")
    parser.add_argument(
        "--rate", type=float, help="requests a second per key, 0: no limit [100 where others can ask, else 0]"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the generators [OMP_NUM_THREADS, else all cores]")
    return parser


def options_from(argv: Sequence[str]) -> tuple[str, ServeOptions]:
    """The bundle to serve and the options.

    Raises:
        ConfigError: an option is unknown, mistyped or out of range, or the server would be open without a key.
    """
    given = vars(_parser().parse_args(argv))
    bundle = given.pop("bundle")
    for name in ("port", "store_mb", "queue", "batch", "deadline", "limit", "body_kb", "drain", "rate", "threads"):
        least = 0 if name in ("rate", "port") else 1
        if given[name] is not None and given[name] < least:
            raise ConfigError(f"serve: --{name}={given[name]:g}: must be {least} or more")
    given = {name: value for name, value in given.items() if value is not None}
    threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    return bundle, ServeOptions(**{"threads": threads, "keys": keys_from_environment()} | given)


def main(argv: Sequence[str]) -> int:
    """Serve until stopped; returns the exit code.

    Raises:
        DPPMGError: an option, the bundle or the address is not usable.
    """
    return serve(*options_from(argv))


def serve(bundle: str, options: ServeOptions) -> int:
    """Load the bundle and serve it until SIGTERM or SIGINT; open requests are then finished.

    Raises:
        ConfigError: the address is taken or not ours.
        BundleError: the bundle cannot be loaded.
    """
    try:
        import uvicorn

        from recbole_dppmg.serving.app import create_app
        from recbole_dppmg.serving.telemetry import log_json
    except ImportError as error:
        raise ConfigError(f"serve needs more packages ({error}): pip install 'recbole-dppmg[serve]'") from error
    import torch

    from recbole_dppmg.serving.engine import Engine

    torch.set_num_threads(1)  # requests run beside one another; the cores are the generators'
    app, service = create_app(Engine(bundle), options)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            address = f"http://{options.host}:{sockets[0].getsockname()[1]}"
            print(f"serving {bundle} at {address} (API: {address}/docs)", flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            service.drain()  # streams end, and waiting requests are answered
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, options.host, options.port, log_config=None, access_log=False, server_header=False,
        timeout_graceful_shutdown=int(options.drain), timeout_keep_alive=30,
    )  # fmt: skip
    try:
        listener = config.bind_socket()
    except SystemExit as error:
        raise ConfigError(f"serve: cannot listen on {options.host}:{options.port}; is the port taken?") from error
    log_json()
    # uvicorn raises the signal again when it is done; by then all is well
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    Server(config).run(sockets=[listener])
    return 0
