"""What runs on a host for ``ovs-hotswap --host``: commands that are not for people."""

from __future__ import annotations

from pathlib import Path

import click

from ovs_hotswap.cli.app import App, Command, Effect, effect_of, pass_app
from ovs_hotswap.cli.job_cmd import jobs_of, start_job
from ovs_hotswap.remote.far_end import Task, arguments_of, job_sender, serve
from ovs_hotswap.remote.frames import Request


@click.command(name="host-end", cls=Command, hidden=True, changes=False)
@pass_app
def host_end(app: App) -> None:
    """Be the host's end of `ovs-hotswap --host`, which speaks with it over standard input and output.

    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap host-end
    """
    serve(lambda request: _task(app, request))


def _task(app: App, request: Request) -> Task:
    """What to run: the command itself if it only reads or makes a job by itself, otherwise what follows its job."""
    from ovs_hotswap.cli.main import cli

    if effect_of(cli, request.arguments) is not Effect.CHANGES:
        return Task(request.arguments)
    options = cli.make_parser(click.Context(cli, **cli.context_settings)).parse_args(list(request.arguments))[0]
    config = Path(options.get("config", app.config_path)).absolute()
    here = App(config_path=config)
    started = start_job(here, jobs_of(here), request.arguments, asks=request.asks)
    json = ["--json"] if "--json" in request.arguments else []  # for an error of `follow` itself
    return Task(["--config", str(config), *json, "job", "follow", started.id], started.id)


@click.command(name="host-command", cls=Command, hidden=True, changes=False)
@click.argument("descriptor", type=int)
@click.argument("job_descriptor", type=int)
@click.pass_context
def host_command(context: click.Context, descriptor: int, job_descriptor: int) -> None:
    """Run the command whose arguments are in a file that `host-end` left open. If it starts or follows a job, it writes
    the job's id to the other descriptor.

    With --json: nothing is printed.

    \b
    Example:
      ovs-hotswap host-command 5 6
    """
    from ovs_hotswap.cli.main import run

    context.exit(run(arguments_of(descriptor), App(names_job=job_sender(job_descriptor))))
