"""Score files that exist already: lists from them in place of a run, and runs made of them."""

from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracin_core.cli.asking import SCORE_NAME, JsonOption, Marking, Rule, WorkspaceOption, opened
from tracin_core.cli.computing import summarise, told_of
from tracin_core.cli.lists import mark, say_list, told_of_list
from tracin_core.cli.talk import answer, say
from tracin_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from tracin_core.records.score_files import ScoreFile

NAMED = 10  # lines about what is wrong with a file, before they are only counted


ENDINGS = {  # of names, the longest first
    "_per_checkpoint_influence_metadata.json": "per_checkpoint_influence_file",
    "_per_checkpoint_metadata.json": "per_checkpoint_file",
    "_influence_metadata.json": "influence_file",
    "_metadata.json": "self_influence_file",
}


def import_files(
    files: Annotated[
        list[Path], typer.Argument(help="Score files; what each holds is read from the end of its name.", show_default=False)
    ],
    data_root: Annotated[
        Path | None, typer.Option(help="The recordings: samples, angles, pictures and sounds.", show_default=False)
    ] = None,
    sample_metadata: Annotated[
        Path | None, typer.Option(help="A file of the samples' records, with their angles.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; default: that of the files.", show_default=False)] = None,
    influence_score_name: Annotated[str, typer.Option(help="What keys of influences begin with.")] = SCORE_NAME,
    workspace: WorkspaceOption = Path("workspace"),
    as_json: JsonOption = False,
) -> None:
    """Make a run of existing score files, which all pages show, and say what its numbers are. Scores only: what needs kernels is off.

    Example: python -m tracin_core import --data-root recordings metadata/plastic_500hz_metadata.json
    metadata/plastic_500hz_influence_metadata.json
    """
    from tracin_core.records.imports import import_scores

    chosen: dict[str, Any] = {}
    for file in files:
        part = next((part for ending, part in ENDINGS.items() if file.name.endswith(ending)), None)
        if part is None or part in chosen:
            told = "ends in none of" if part is None else f"is of one kind with '{chosen[part].name}', of"
            raise InputError(f"The name of '{file.name}' {told} {', '.join(ENDINGS)}; rename it, or import it by itself.")
        chosen[part] = file
    place = opened(workspace)
    run = import_scores(
        place, **chosen, data_root=data_root, samples_metadata=sample_metadata, name=name, score_name=influence_score_name
    )
    summarise(run, workspace)
    answer({"runs": [told_of(run)]})


def from_file(
    path: Path, output_file: Path, rule: Rule, marking: Marking, *, samples: list[str], score_name: str, why: str = ""
) -> None:
    """The list of the harm rule on the influences of an existing score file is written, with its provenance beside it."""
    from tracin_core.records.interchange import provenance_path, write_exclusions_txt, write_provenance
    from tracin_core.records.score_files import read_scores

    scores = read_scores(path, samples, score_name=score_name)
    if scores.influence.shape[1] == 0:
        raise InputError(
            f"'{path.name}' holds self-influence only, and harm is an influence on tests; give the file whose name ends in "
            f"_influence_metadata.json."
        )
    unusable = say_of_file(scores)
    settings = rule.settings(scores.noun)
    chosen = chosen_from(scores, settings)
    of_run = scores.provenance or {}
    simulated = bool(of_run.get("simulated"))
    provenance = {
        "run": of_run.get("run"),
        "simulated": simulated,
        "score_file": path.name,
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "rule": settings,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "why": why,
    }
    write_exclusions_txt(output_file, chosen, file_header(provenance, len(chosen)))
    write_provenance(provenance_path(output_file), chosen, provenance)
    say_list(chosen, output_file, settings, marking, simulated)
    if chosen.empty:
        say(f"Nothing does harm below {rule.threshold:g} on {rule.min_occurrences} tests; the lowest score of the file is")
        say(f"  {float(scores.influence[~_missing(scores)].min(initial=0.0)):g}")
    marked = mark(marking, marking.sample_metadata or path, chosen, provenance)
    told = {"score_file": path, "simulated": simulated, "unusable": unusable, "marked": marked}
    answer({**told, **told_of_list(chosen, settings, output_file)})


def chosen_from(scores: "ScoreFile", settings: dict[str, Any]) -> "pd.DataFrame":
    """The harm rule on a file's influences; where no score stands, there is no harm.

    Raises:
        InputError: mode `sample` of pairs, which needs all pairs of each sample.
    """
    import numpy as np

    from tracin_core.scores.exclusions import choose_pairs

    influence = np.where(np.isnan(scores.influence), 0.0, scores.influence)
    if scores.noun == "pair" and settings["pair_mode"] == "sample":
        raise InputError(
            "Mode 'sample' needs the influence of every pair of a sample, which a score file need not hold; choose ranking_pair or "
            "full_pair, or give --run."
        )
    if scores.noun == "sample":
        ids = scores.rows["id"].to_numpy()
        return choose_pairs(None, scores.rows, scores.tests, sample_ids=ids, sample_scores=influence, **settings)
    return choose_pairs(influence, scores.rows, scores.tests, **settings)


def _missing(scores: "ScoreFile") -> Any:
    import numpy as np

    return np.isnan(scores.influence)


def say_of_file(scores: "ScoreFile") -> list[str]:
    """What the file holds, where it is not what it was when written here, and by key what is no number in it."""
    missing = int(_missing(scores).sum())
    say(f"{scores.path.name}: {len(scores.rows)} train {scores.noun}s x {len(scores.tests)} test {scores.noun}s")
    if scores.provenance is None:
        say("It is not as this product wrote it; its numbers are taken as they are.")
    unusable = [str(each) for each in scores.unusable]
    for line in unusable[:NAMED]:
        say(f"LOOK {line}, which counts as no harm")
    if len(unusable) > NAMED:
        say(f"LOOK {len(unusable) - NAMED} more such scores (--json names them all)")
    if missing > len(unusable):
        say(
            f"LOOK {missing - len(unusable)} combinations of a train and a test {scores.noun} have no score, which counts as no harm"
        )
    if scores.unread:
        say(f"LOOK {len(scores.unread)} entries are neither scores nor samples: {', '.join(scores.unread[:3])}")
    return unusable


def samples_known(
    path: Path, workspace: Path, run_id: str | None, data_root: Path | None, sample_metadata: Path | None
) -> list[str]:
    """The samples that joined ids are split by: of the named run; else of the recordings, a metadata file, the file itself, its provenance.

    Raises:
        InputError: none of these is there, or the score file is not.
    """
    if not path.is_file():
        raise InputError(f"The score file '{path}' is not there; give the JSON file that holds the influences.")
    if run_id is not None:
        return [str(sample) for sample in opened(workspace).run(run_id).samples["id"]]
    from tracin_core.records.imports import known_samples

    return list(known_samples([path], data_root, sample_metadata))


def file_header(provenance: dict[str, Any], entries: int) -> list[str]:
    """What a reader of the list needs before believing it."""
    from tracin_core.records.interchange import SIMULATED_LINE

    return [
        "Exclusion list written by TracIn Studio",
        *([SIMULATED_LINE] if provenance["simulated"] else []),
        f"score file {provenance['score_file']}, sha256 {provenance['sha256'][:8]}, {provenance['created']}",
        f"rule: {', '.join(f'{name}={value}' for name, value in provenance['rule'].items())}",
        f"entries: {entries}",
    ]
