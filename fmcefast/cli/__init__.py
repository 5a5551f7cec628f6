"""The command line: verbs and flags. What they do lives in the stages."""

import sys
import traceback
from io import TextIOWrapper

import click

from fmcefast import __version__
from fmcefast.cli.cam_verb import cam
from fmcefast.cli.finetuning_verbs import finetune, score, sweep
from fmcefast.cli.group import Verbs
from fmcefast.cli.learning_verbs import learn
from fmcefast.cli.markers_verb import markers
from fmcefast.cli.maturity_verbs import compare, probe
from fmcefast.cli.pipeline_verbs import extract, fit, run, train
from fmcefast.cli.report_verb import report
from fmcefast.cli.service_verbs import bench, doctor, plan, verify
from fmcefast.cli.status_verb import status
from fmcefast.cli.wording import with_flags
from fmcefast.errors import FmcefastError
from fmcefast.run.command import store_advice
from fmcefast.runtime.allocator import keep_freed_memory
from fmcefast.runtime.waiting import wait_briefly


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fmcefast")
def cli() -> None:
    """How mature are a backbone's feature maps? (Feature Map Convergence Evaluation)

    \b
    fmcefast run                    all of it, on bundled digits, within minutes
    fmcefast run runs/mine --data folder:my/images --epochs 60 --mu 1e-2
    fmcefast status                 where does every run stand, and what is next?
    fmcefast markers my-losses.csv  has my own training converged, and when?
    fmcefast score runs/mine --weights my.pt  how mature is a checkpoint?
    fmcefast compare old.pt new.pt --backbone resnet18  which is more mature?
    fmcefast cam runs/mine          where does the network look, at every phase?
    fmcefast learn cache runs/mine  is it faster to skip images that maps explain?
    fmcefast sweep runs/mine --rafs 1,0.9,0.5  does FMCE-Net++ help?

    RUN is a run folder, by default the newest one under runs/. A command that is run again continues where it was
    interrupted. Exit codes: 0 done, 1 failed, 2 bad usage or input, 3 not converged.
    """


def main() -> None:
    """Run the command line and exit with its code."""
    debug = "--debug" in sys.argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show stops nothing
    keep_freed_memory()
    wait_briefly()
    try:
        code = cli.main(args=sys.argv[1:] or ["--help"], prog_name="fmcefast", standalone_mode=False) or 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "fmcefast"
        code = _fail(f"{error.format_message()} See: {path} --help", 2, debug)
    except FmcefastError as error:
        code = _fail(f"{error}{store_advice(error)}", error.exit_code, debug)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("Interrupted.", 1, debug)
    except ModuleNotFoundError as error:
        code = _fail(f"{error.name} is not installed. Install all that fmcefast needs: pip install fmcefast", 1, debug)
    except OSError as error:
        code = _fail(str(error), 1, debug)
    except Exception as error:
        code = _fail(f"{type(error).__name__}: {error}. Run again with --debug for the traceback.", 1, debug)
    sys.exit(code)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"fmcefast: {with_flags(message, cli.commands.values())}", file=sys.stderr)
    return code


_PIPELINE = (run, train, markers, extract, fit, finetune, sweep, score, cam, report)
for verb in (*_PIPELINE, probe, compare, learn, plan, status, verify, doctor, bench):
    cli.add_command(verb)
