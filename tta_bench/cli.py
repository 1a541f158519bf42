"""The command line: arguments, messages, exit codes; no logic. torch, Ray and pandas are imported inside commands.

Exit codes: 0 every trial ok or skipped; 1 a bug; 2 usage or configuration, nothing was run; 3 finished, but some trials
failed (or, where runs are merged, are missing), or a report's numbers differ from those of --check; 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import click

from tta_bench import __version__
from tta_bench.errors import UsageError

FORMATS = ("html", "tex", "md", "csv", "parquet", "png", "pdf")


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
@click.option("--only", multiple=True, metavar="EXPR", help="Run only method=tent,severity=4|5; several are united.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Replace a key of the suite: seeds=[0,1].")
@click.option("--executor", type=click.Choice(["ray", "local"]), default="ray", show_default=True,
              help="Ray, or one trial after another without it.")  # fmt: skip
@click.option("--address", metavar="auto|HOST:PORT", help="Join an existing Ray cluster.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Maximum number of Ray workers.")
@click.option("--cpus-per-trial", type=click.IntRange(1), metavar="N",
              help="CPU cores and torch threads of a trial.  [default: 1 with ray, all with local]")  # fmt: skip
@click.option("--gpus-per-trial", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, metavar="X",
              help="Share of a GPU that a trial gets.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S",
              help="End a trial's process after S seconds; the trial has failed.")  # fmt: skip
@click.option("--retries", type=click.IntRange(0), default=2, show_default=True, metavar="N",
              help="How often a trial is tried again when its worker, node or files fail.")  # fmt: skip
@click.option("--out", metavar="DIR", help="The run's folder.  [default: results/<suite name>]")
@click.option("--cache", metavar="DIR|off", help="Image cache.  [default: $TTA_BENCH_CACHE or the user's cache folder]")
@click.option("--retry-failed", is_flag=True, help="Run trials again that failed by the method's own error.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Use a seeded subset of N images.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, run nothing.")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file that defines plugins.")
def run(**options: Any) -> None:
    """Run SUITE, a YAML file or the name of a shipped suite; finished trials are skipped."""
    from tta_bench.run.server import own_server

    if not options["dry_run"] and options["address"] is None:
        own_server()  # its imports take seconds, beside those of this process
    from tta_bench.commands import run as sweep
    from tta_bench.schedule.options import RunOptions

    sys.exit(sweep.run(RunOptions(**options), resume=shlex.join(["tta-bench", *sys.argv[1:]])))


@cli.command()
@click.argument("run", required=False)
def status(run: str | None) -> None:
    """Say what a run is doing; without RUN, the newest run below results/."""
    import pathlib

    from tta_bench.commands import report as reports
    from tta_bench.commands import status as statuses

    statuses.show(pathlib.Path(run) if run else reports.newest())


@cli.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--format", "formats", default=",".join(FORMATS), show_default=True, metavar="LIST", help="Which files.")
@click.option("--out", metavar="DIR", help="Where to write.  [default: <first run>/report]")
@click.option("--baseline", default="source", show_default=True, metavar="LABEL",
              help="The row that errors and step times are shown relative to.")  # fmt: skip
@click.option("--reference", is_flag=False, flag_value="", metavar="[CSV]",
              help="Compare with published numbers: those that come with tta-bench, or a file in their form.")  # fmt: skip
@click.option("--check", metavar="CSV", help="Exit 3 where the run differs from published numbers, listed on stderr.")
@click.option("--tolerance", type=click.FloatRange(0), default=0.5, show_default=True, metavar="X",
              help="What --check lets pass: points of error.")  # fmt: skip
@click.option("--verify", is_flag=True, help="Recompute every number from the predictions; exit 3 where one differs.")
@click.option("--mix", is_flag=True, help="Put runs together that differ in images, versions or precision.")
@click.option("--shared-timings", is_flag=True, help="Also show times taken on a shared device, apart.")
def report(runs: tuple[str, ...], formats: str, out: str | None, **options: Any) -> None:
    """Print the tables of one or more runs and write them as files; without RUN, of the newest run below results/."""
    from tta_bench.commands import report as reports

    sys.exit(reports.write(runs, [name.strip() for name in formats.split(",")], out, known=FORMATS, **options))


@cli.command()
@click.argument("runs", nargs=-1, metavar="RUN...")
@click.option("--out", required=True, metavar="DIR", help="The merged run's folder.")
@click.option("--keep", metavar="RUN", help="The run whose results win where predictions differ.")
@click.option("--suite", metavar="SUITE", help="Merge into the plan of this suite, not that of all runs.")
def merge(runs: tuple[str, ...], out: str, keep: str | None, suite: str | None) -> None:
    """Join runs of one suite, made on several machines, into one; exit 3 where a trial is missing or failed."""
    from tta_bench.commands import merge as merging

    sys.exit(merging.merge(runs, out, keep, suite))


@cli.command()
@click.argument("name", required=False)
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file that defines plugins.")
def methods(name: str | None, plugins: tuple[str, ...]) -> None:
    """List the methods, or show one's origin, hyperparameters, presets and needs."""
    from tta_bench.commands import methods as listing

    listing.show(name, plugins) if name else listing.list_all(plugins)


@cli.command()
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file that defines plugins.")
def plugins(plugins: tuple[str, ...]) -> None:
    """List the methods, optimizers, protocols, kinds of data and kinds of models that a suite can name."""
    from tta_bench.commands import plugins as listing

    listing.list_all(plugins)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("suite")
@click.argument("further", nargs=-1, type=click.UNPROCESSED, metavar="[--OPTION VALUE]...")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="Only for this source model; repeat it for more."
)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Replace a key of the suite.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw.")
@click.option("--out", metavar="DIR", help="Where checkpoints go.  [default: checkpoints/<suite name>]")
@click.option("--cache", metavar="DIR|off", help="Image cache.  [default: $TTA_BENCH_CACHE or the user's cache folder]")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, …  [default: a GPU where there is one]")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file that defines plugins.")
def pretrain(**options: Any) -> None:
    """Pre-train what method NAME learns, for the source models of SUITE, on its source images.

    Further options are the method's own: 'tta-bench methods NAME' lists them. A run that was stopped goes on.
    """
    from tta_bench.commands import pretrain as pretraining

    sys.exit(pretraining.run(pretraining.Options(**options)))


@cli.command()
@click.argument("name")
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="A Python file that defines plugins.")
@click.option("--config", "values", multiple=True, metavar="KEY=VALUE", help="A field of the method's Config.")
def check(name: str, plugins: tuple[str, ...], values: tuple[str, ...]) -> None:
    """Check that a method keeps the rules that every method must keep; exit 3 where it does not."""
    from tta_bench.commands import check as checking

    sys.exit(checking.check(name, plugins, values))


def main() -> None:
    """Entry point: bad input is one message and exit code 2."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except UsageError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        count = len(error.problems)
        click.echo(f"{count} problem{'s' if count > 1 else ''}; nothing was run", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
