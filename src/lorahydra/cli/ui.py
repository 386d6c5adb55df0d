"""`lorahydra ui`: MLflow's UI on the recorded runs, and the address of the trials in it."""

from __future__ import annotations

import os
import socket
import sys

import click

from lorahydra.cli.sharing import uri_option
from lorahydra.config.schema import TrackingConfig
from lorahydra.errors import ConfigError

__all__ = ["ui"]

LOOPBACK = "127.0.0.1"


@click.command(short_help="Start MLflow's UI, and print the address of the trials.")
@uri_option
@click.option("--experiment", default=TrackingConfig.experiment_name, show_default=True, help="MLflow experiment.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(uri: str | None, experiment: str, port: int) -> None:
    """Start MLflow's UI on this machine, and say where the trials are in it; stop it with Ctrl-C.

    For a store that is a server, it only prints the address.
    """
    from lorahydra.adapters.find import store_address
    from lorahydra.tracking.address import is_server
    from lorahydra.tracking.views import find_experiment, view_url
    from lorahydra.utils.databases import shown

    store = store_address(uri)
    experiment_id = find_experiment(TrackingConfig(uri=store, experiment_name=experiment))
    address = shown(store) if is_server(store) else f"http://{LOOPBACK}:{port}"
    click.echo(f"Trials, best first: {view_url(address, experiment_id)}")
    if is_server(store):
        return
    _check_free(port)
    click.echo("Stop MLflow's UI with Ctrl-C.")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "ui", "--host", LOOPBACK, "--port", str(port)]
    # This process becomes MLflow's, which then handles Ctrl-C and signals. The address is passed in the environment, so
    # that a password in it does not show in the list of processes.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store
    os.execv(command[0], command)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {LOOPBACK} is taken ({error.strerror}): choose another with --port"
            ) from error
