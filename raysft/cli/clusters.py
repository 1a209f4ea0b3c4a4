"""Commands that take a cluster as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysft.cli.options import Address, AsJson, Debug
from raysft.cli.session import backend_at, output, show_rows

app = typer.Typer()


@app.command(
    epilog="Example: raysft doctor --address http://127.0.0.1:8265 --storage s3://bucket/runs"
)
def doctor(
    address: Address = None,
    storage: Annotated[
        str, typer.Option(help="Where runs will go: a folder or URI that every node reaches.")
    ] = "runs",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Examine a cluster: nodes, versions, storage from every node, the network between them.

    Exit status 1 if anything is wrong.
    """
    from dataclasses import asdict

    found = [asdict(finding) for finding in backend_at(address).doctor(storage)]
    show_rows(found, ("check", "where", "state", "text"), as_json)
    if any(finding["state"] == "wrong" for finding in found):
        raise typer.Exit(1)


@app.command(epilog="Example: raysft connect cluster/gpu.yaml")
def connect(
    cluster_file: Annotated[
        Path,
        typer.Argument(help="The file that `ray up` started the cluster from.", show_default=False),
    ],
    port: Annotated[int, typer.Option(help="The port on this machine.", min=1, max=65535)] = 8265,
    debug: Debug = False,
) -> None:
    """Open an SSH tunnel to a cluster's dashboard and print the address to use, until Ctrl-C."""
    from raysft.cluster.tunnel import tunnel

    with tunnel(cluster_file, port) as (address, wait):
        output().line(f"connected: {address} (Ctrl-C closes the tunnel; runs keep running)")
        output().line(f"  raysft submit jobs/quickstart.yaml --address {address}")
        wait()
