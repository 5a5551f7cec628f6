"""Changed settings of a run: what they contradict, what that costs, and how they are applied.

Nothing is removed until a Change is applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmcefast import files
from fmcefast.errors import InputError
from fmcefast.pipeline.stages import STAGES, from_stage, undo
from fmcefast.run.config import Config, read_yaml, resolve, saved_settings, to_yaml
from fmcefast.run.folder import RunFolder, read_run
from fmcefast.stages.stage import Stage


@dataclass(frozen=True)
class Change:
    """The difference between a run on disk and the requested run.

    run: as it will be. saved: the configuration in the folder, None when there is none yet. contradicted: the first
    stage whose results the new settings contradict. redone: a stage to redo in any case. modules: those that the
    command works on, if not on the final feature map; without a contradiction, only their results are removed.
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
    def changes_anything(self) -> bool:
        """Whether applying it changes the folder."""
        return self.run.config != self.saved or self.first is not None

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
        listed = ", ".join(f"{name} was {saved}, now {new}" for name, (saved, new) in differences)
        return f"{self.run} was made with another configuration: {listed}."

    def refuse_loss(self, remedy: str | None = None) -> None:
        """Raise InputError when the new settings contradict results that took long to make.

        remedy: what to do about it, instead of advice to force it.
        """
        if not self.contradicted or not self.costly:
            return
        if remedy is None:
            again = " and ".join(stage.name for stage in self.costly if not stage.on_request) or "it"
            trained = any(stage.on_request for stage in self.costly)
            also = " (what was trained under its FMCE-Net is lost)," if trained else ""
            remedy = f"Give `force` to redo {again} there{also} or name another folder."
        raise InputError(f"{self.explain()} {remedy}")

    def check(self, *, resumes: bool) -> None:
        """Refuse what could not be made again; see Stage.check. Raises InputError."""
        if self.first is not None:
            for name in self.modules or (None,):
                self.first.check(self.run.view(name), resumes=resumes)

    def apply(self) -> RunFolder:
        """Remove what must go, write the configuration, and return the run. Raises InputError for a folder that exists
        and is not a run."""
        run, path = self.run, self.run.path
        if self.saved is None:
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise InputError(f"{path} exists and is not a run folder (no config.yaml in it). Choose another name.")
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
    """The change from the run at `path` to its saved settings overridden by `config_file` and `settings`.

    redo, modules: see Change. Nothing is created, checked or removed. Raises InputError for invalid settings and a
    damaged configuration.
    """
    layers = [settings, *([read_yaml(config_file)] if config_file else [])]
    saved_file = path / "config.yaml"
    if not saved_file.exists():
        return Change(RunFolder(path, resolve(*layers)), None, None)
    saved = read_run(path).config
    new = resolve(*layers, saved_settings(saved_file))
    if new.data != saved.data:
        new = resolve(*layers)  # another data set brings its own preset
    return Change(RunFolder(path, new), saved, _first_contradicted(saved, new), redo, tuple(modules))


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


def _first_contradicted(saved: Config, new: Config) -> Stage[Any] | None:
    before, after = saved.of_results, new.of_results
    names = {name for name in before if before[name] != after[name]}
    return next((stage for stage in STAGES if names & set(stage.settings)), None)
