"""Other settings for a run: what they contradict, what that costs, and how they are applied.

Nothing is removed until a Change is applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.pipeline.stages import STAGES, from_stage, undo
from fmcefast.run.config import SETTINGS, Config, read_yaml, resolve, to_yaml
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.stages.stage import Stage


@dataclass(frozen=True)
class Change:
    """The difference between a run's folder and the run that is wanted.

    run: as it will be. saved: the configuration in the folder, None when there is no folder yet. contradicted: the
    first stage whose results the new settings contradict. redone: a stage whose results are to be made again anyway,
    of `modules` alone if there are some.
    """

    run: RunFolder
    saved: Config | None
    contradicted: Stage[Any] | None
    redone: Stage[Any] | None = None
    modules: tuple[str, ...] = ()

    @property
    def first(self) -> Stage[Any] | None:
        """The first stage whose results must go; None when all can stay."""
        return self.contradicted or self.redone

    @property
    def views(self) -> list[RunFolder]:
        """The views of the run whose results must go."""
        names = self.modules if self.modules and not self.contradicted else (None,)
        return [self.run.view(name) for name in names]

    @property
    def removes_results(self) -> bool:
        """Whether there is anything that must go."""
        stages = from_stage(self.first) if self.first else ()
        return any(stage.is_begun(view) for stage in stages for view in self.views)

    @property
    def costly(self) -> list[Stage[Any]]:
        """The stages that lose results which took long to make."""
        stages = from_stage(self.first) if self.first else ()
        return [stage for stage in stages if stage.costly and any(stage.is_begun(view) for view in self.views)]

    def explain(self) -> str:
        """What differs."""
        if self.saved is None:
            return f"{self.run} is new."
        differences = self.saved.differences(self.run.config).items()
        listed = ", ".join(f"{name} is {saved}, not {wanted}" for name, (saved, wanted) in differences)
        return f"{self.run} was made with another configuration: {listed}."

    def refuse_loss(self, remedy: str | None = None) -> None:
        """Raise InputError when the new settings contradict results that took long to make.

        remedy: what to do about it, instead of advice to force it.
        """
        if not self.contradicted or not self.costly:
            return
        if remedy is None:
            again = " and ".join(stage.name for stage in self.costly if not stage.on_request)
            trained = any(stage.on_request for stage in self.costly)
            also = ", and to lose what was trained under its FMCE-Net," if trained else ""
            remedy = f"Give `force` to redo {again} there{also} or name another folder."
        raise InputError(f"{self.explain()} {remedy}")

    def check(self, *, resumes: bool) -> None:
        """Refuse what could not be made again; see Stage.check. Raises InputError."""
        if self.first is not None:
            for view in self.views:
                self.first.check(view, resumes=resumes)

    def apply(self) -> RunFolder:
        """Remove what must go, write the configuration, and return the run."""
        run = self.run
        if self.saved is None:
            run.path.mkdir(parents=True, exist_ok=True)
        elif self.first is not None:
            for view in self.views:
                undo(view, self.first)
        if run.config != self.saved:
            files.write_text(run.config_yaml, to_yaml(run.config))
        return run


def compare(
    path: Path,
    settings: Mapping[str, Any],
    config_file: Path | None = None,
    *,
    redo: Stage[Any] | None = None,
    modules: Sequence[str] = (),
) -> Change:
    """What becomes of the run at `path` under its saved settings, changed by those of `config_file` and `settings`.

    redo: a stage whose results are to be made again; of `modules` alone if there are some. Nothing is made, checked or
    removed. Raises InputError for settings that are no settings, a damaged configuration, and a folder that is not a
    run.
    """
    layers = [settings, *([read_yaml(config_file)] if config_file else [])]
    saved_file = path / "config.yaml"
    if not saved_file.exists():
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{path} exists and is not a run folder (no config.yaml in it). Choose another name.")
        return Change(RunFolder(path, resolve(*layers)), None, None)
    saved = read_run(path).config
    wanted = resolve(*layers, read_yaml(saved_file))
    if wanted.data != saved.data:
        wanted = resolve(*layers)  # another data set brings its own preset
    return Change(RunFolder(path, wanted), saved, _first_contradicted(saved, wanted), redo, tuple(modules))


def open_run(
    path: Path, settings: Mapping[str, Any], *, create: bool = False, force: bool = False, remedy: str | None = None
) -> RunFolder:
    """The run at `path` under its saved settings, changed by `settings`.

    create: make the folder if it is missing; force: remove results that took long to make when the settings contradict
    them; remedy: what to do about such results otherwise. Raises InputError as `compare` does, and for such results.
    """
    if not create:
        read_run(path)
    change = compare(path, settings)
    if not force:
        change.refuse_loss(remedy)
    return change.apply()


def _first_contradicted(saved: Config, wanted: Config) -> Stage[Any] | None:
    names = {name for name in saved.differences(wanted) if SETTINGS[name].invalidates_results}
    return next((stage for stage in STAGES if names & set(stage.settings)), None)
