"""The command line: arguments, messages, exit codes; no logic. torch, Ray and pandas are imported inside commands.

Exit codes: 0 all trials ok or skipped; 1 a bug; 2 invalid usage or configuration, nothing was run; 3 some trials failed
(or, after a merge, are missing), a run stopped early, or a report's numbers differ from those of --check; 130 interrupted;
141 the reader of the output closed it.
"""

from __future__ import annotations

import math
import shlex
import sys
from typing import Any

import click

from tta_bench import __version__, console
from tta_bench.errors import UsageError

MAX_TIMEOUT_S = 1e8  # three years; the system's timers overflow at 9e9
FORMATS = ("html", "tex", "md", "csv", "parquet", "png", "pdf")


class Finite(click.FloatRange):
    """A number within a range; neither NaN nor infinite, which click lets pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a finite number.", param, ctx)


plugin_option = click.option(
    "--plugin", "plugins", multiple=True, metavar="FILE", help="Python file that defines plugins; may be repeated."
)
cache_option = click.option(
    "--cache", metavar="DIR|off", help="Image cache.  [default: $TTA_BENCH_CACHE or the user's cache folder]"
)


class _GpuShare(Finite):
    """A number, or ``auto``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "auto" else super().convert(value, param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tta-bench")
def cli() -> None:
    """Benchmark test-time adaptation of image classifiers.

    Run a suite, then make its report:

      tta-bench run digits_c

      tta-bench report
    """


@cli.command()
@click.argument("suite")
@click.option(
    "--only",
    multiple=True,
    metavar="EXPR",
    help="Run only a part: method=tent,severity=4|5 (each key once). Repeat to add parts.",
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the suite: seeds=[0,1].")
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray", show_default=True,
              help="ray, or local: one trial at a time, without Ray.")  # fmt: skip
@click.option("--address", metavar="auto|HOST:PORT", help="Join an existing Ray cluster.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Maximum number of Ray workers.")
@click.option("--cpus-per-trial", type=click.IntRange(1, 4096), metavar="N",
              help="CPU cores and torch threads for each trial.  [default: 1 with ray, all with local]")  # fmt: skip
@click.option("--gpus-per-trial", type=_GpuShare(0, min_open=True), default=1.0, show_default=True, metavar="X|auto",
              help="GPUs for each trial: a fraction of one, a whole number, or auto, from measured memory.")  # fmt: skip
@click.option("--timeout", type=Finite(0, MAX_TIMEOUT_S, min_open=True), metavar="S",
              help="Time limit of a trial in seconds; a trial that exceeds it fails.")  # fmt: skip
@click.option("--retries", type=click.IntRange(0), default=2, show_default=True, metavar="N",
              help="Maximum number of retries of a trial whose worker, node or files fail.")  # fmt: skip
@click.option("--out", metavar="DIR", help="Folder of the run.  [default: results/<suite name>; with --set or --plugin "
              "one beside it, of these options' own]")  # fmt: skip
@cache_option
@click.option("--retry-failed", is_flag=True, help="Also rerun trials that failed with an error of the method.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use a seeded subset of N images.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, run nothing.")
@click.option("--yes", is_flag=True, help="Also a plan of more than 10,000 trials.")
@click.option("--profile", is_flag=True, help="Trace a few steps of each selected method and model; store no result.")
@click.option("--measure", is_flag=True, help="With --dry-run: compare speed, memory and predictions in several modes.")
@plugin_option
def run(**options: Any) -> None:
    """Run SUITE, a YAML file or the name of a shipped suite. Finished trials are skipped."""
    from tta_bench.run.server import own_server

    if (options["measure"] or not options["dry_run"]) and options["address"] is None:
        own_server()  # its imports take seconds, in parallel with this process's
    from tta_bench.commands import run as sweep
    from tta_bench.schedule.options import RunOptions

    sys.exit(sweep.run(RunOptions(**options), resume=shlex.join(["tta-bench", *sys.argv[1:]])))


class _DataGroup(click.Group):
    """``data SUITE`` beside the subcommands: what is no subcommand's name is a suite or an option of ``show``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if not args or args[0] in known else ["show", *args])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands["show"].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


@cli.group(cls=_DataGroup, subcommand_metavar="[OPTIONS] SUITE | COMMAND …", options_metavar="", no_args_is_help=True)
def data() -> None:
    """Show what SUITE's data hold, what is wrong with them, and what is still to get; exit 2 if they are not ready."""


@data.command("show", hidden=True)
@click.argument("suite")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the suite: data.root=PATH.")
@cache_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Look at a seeded subset of N images, as run does.")
@plugin_option
def show_data(**options: Any) -> None:
    """Show what SUITE's data hold, what is wrong with them, and what is still to get; exit 2 if they are not ready."""
    from tta_bench.commands import data as page

    sys.exit(page.show(page.DataOptions(**options)))


@data.command("get")
@click.argument("name")
@click.argument("folder", metavar="DIR")
def get_data(name: str, folder: str) -> None:
    """Fetch the published data set NAME into DIR, verify and unpack it, and print the suite's line."""
    from tta_bench.commands import data_get

    sys.exit(data_get.get(name, folder))


@cli.command()
@click.argument("run", required=False)
def status(run: str | None) -> None:
    """Show the progress of a run; without RUN, of the newest run in results/."""
    import pathlib

    from tta_bench.commands import report as reports
    from tta_bench.commands import status as statuses

    statuses.show(pathlib.Path(run) if run else reports.newest())


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--format", "formats", default=",".join(FORMATS), show_default=True, metavar="LIST", help="File formats.")
@click.option("--out", metavar="DIR", help="Output folder.  [default: <first run>/report]")
@click.option("--baseline", default="source", show_default=True, metavar="LABEL",
              help="Row that errors and step times are compared with.")  # fmt: skip
@click.option("--reference", is_flag=False, flag_value="", metavar="[CSV]",
              help="Compare with published numbers: the shipped ones, or a CSV file of the same form.")  # fmt: skip
@click.option(
    "--check", metavar="CSV", help="Exit 3 if the run differs from these published numbers; differences go to stderr."
)
@click.option("--tolerance", type=Finite(0), default=0.5, show_default=True, metavar="X",
              help="Largest difference that --check accepts, in points of error.")  # fmt: skip
@click.option("--verify", is_flag=True, help="Recompute every number from the predictions; exit 3 if one differs.")
@click.option(
    "--mix", is_flag=True, help="Allow runs that differ in images, versions or precision; tables are labelled MIXED."
)
@click.option(
    "--join-families", is_flag=True, help="Show corruptions, natural variants, … in one table, with one mean over all."
)
@click.option("--shared-timings", is_flag=True, help="Also show times measured on a shared device, in separate tables.")
@click.option("--cite", is_flag=True, help="Cite references.bib behind methods and source models of LaTeX tables.")
def report(runs: tuple[str, ...], formats: str, out: str | None, **options: Any) -> None:
    """Print the tables of one or more runs and write them to files; without RUN, of the newest run in results/."""
    from tta_bench.commands import report as reports

    sys.exit(reports.write(runs, [name.strip() for name in formats.split(",")], out, known=FORMATS, **options))


@cli.command()
@click.argument("runs", nargs=-1, metavar="RUN...")
@click.option("--out", required=True, metavar="DIR", help="The merged run's folder.")
@click.option("--keep", metavar="RUN", help="The run whose results win where predictions differ.")
@click.option("--suite", metavar="SUITE", help="Merge into the plan of this suite, not that of all runs.")
def merge(runs: tuple[str, ...], out: str, keep: str | None, suite: str | None) -> None:
    """Merge runs of one suite, made on several machines, into one; exit 3 if a trial is missing or failed."""
    from tta_bench.commands import merge as merging

    sys.exit(merging.merge(runs, out, keep, suite))


@cli.command()
@click.argument("name", required=False)
@plugin_option
def methods(name: str | None, plugins: tuple[str, ...]) -> None:
    """List the methods, or show the origin, needs, hyperparameters and presets of one."""
    from tta_bench.commands import methods as listing

    listing.show(name, plugins) if name else listing.list_all(plugins)


@cli.command()
@click.argument("name", required=False)
@plugin_option
def protocols(name: str | None, plugins: tuple[str, ...]) -> None:
    """List the protocols, or show the origin, variants, parameters and an example of one."""
    from tta_bench.commands import protocols as listing

    listing.show(name, plugins) if name else listing.list_all(plugins)


@cli.command()
@plugin_option
def plugins(plugins: tuple[str, ...]) -> None:
    """List the methods, optimizers, protocols, kinds of data and kinds of model that a suite can name."""
    from tta_bench.commands import plugins as listing

    listing.list_all(plugins)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("suite")
@click.argument("method_options", nargs=-1, type=click.UNPROCESSED, metavar="[--OPTION VALUE]...")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this source model; may be repeated.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the suite.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of the pre-training."
)
@click.option("--out", metavar="DIR", help="Folder for checkpoints.  [default: checkpoints/<suite name>]")
@cache_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, …  [default: a GPU if there is one]")
@plugin_option
def pretrain(**options: Any) -> None:
    """Pre-train method NAME for each source model of SUITE, on the suite's source images.

    Further options are the method's own; 'tta-bench methods NAME' describes them. The same command resumes an interrupted
    pre-training.
    """
    from tta_bench.commands import pretrain as pretraining

    sys.exit(pretraining.run(pretraining.PretrainOptions(**options)))


@cli.command()
@click.argument("name")
@plugin_option
@click.option(
    "--config", "values", multiple=True, metavar="KEY=VALUE", help="A hyperparameter of the method; may be repeated."
)
def check(name: str, plugins: tuple[str, ...], values: tuple[str, ...]) -> None:
    """Check a method against the rules for all methods; exit 3 if it breaks one."""
    from tta_bench.commands import check as checking

    sys.exit(checking.check(name, plugins, values))


def main() -> None:
    """Entry point; invalid input gives a message and exit code 2."""
    console.prepare()
    try:
        _call()
    except BrokenPipeError:
        sys.exit(console.leave_closed())
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # click and rich make it a code of their own
            sys.exit(console.leave_closed())
        raise


def _call() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # click takes it for Ctrl-D; nothing here asks for input
            raise abort.__cause__ from None
        sys.exit(130)
    except click.ClickException as error:
        error.show(file=sys.stderr)
        sys.exit(2)
    except UsageError as error:
        click.echo(str(error), file=sys.stderr)
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''}; nothing was run", file=sys.stderr)
        sys.exit(2)
    finally:
        console.flush()


if __name__ == "__main__":
    main()
