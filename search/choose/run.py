"""Choice of a study: finalists confirmed, bundled and registered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.int8_weights import Int8WeightBits
from objectives.records import Measurement, Prepared
from objectives.serving.bundle import COSTS, EXAMPLE_ROWS, ROW_QUANTILES, check_free, write_bundle
from objectives.serving.pool.pending_result import cut_rows
from objectives.serving.warm_up import row_quantiles
from planning.virtual_fleet.dispatch import replica_cost
from search.ablation.records import DistillationGain
from search.ablation.verdict import distillation_gain
from search.choose import choose as choosing
from search.choose.choose import Confirmed
from search.choose.looks import Look, Looks
from search.choose.policy import Policy, finalists, no_finalist
from search.cli.console import Console
from search.errors import JobError, NothingConfirmedError
from search.explore.cost_model import CostModel
from search.home import Home
from search.ledger.registry import CHAMPION
from search.locking import locked, stoppable
from search.report.render import render
from search.results import Choice, TunedRatios, choice_json, timing_numbers
from search.session import Session
from search.study import Study
from search.workers.meter_jobs import MeterJobs, Side
from search.workers.paired_comparison import SEEDS, PairedComparison
from search.workers.processes import open_workers
from spaces.ablations import techniques
from spaces.candidate import Candidate
from spaces.serialization import Json, digest, fields_in, from_plain, to_plain


def choose(session: Session, policy: Policy, out: Path | None, console: Console) -> Choice:
    """Confirm finalists in their fixed order, write and register the bundle of the first that holds.

    Raises:
        BundleError: the folder of the bundle holds something else.
        NothingConfirmedError: none does.
        ConfigError: nothing was measured yet, or files of the baseline are gone.
        JobError: the baseline cannot be timed.
    """
    config, home, study = session.config, session.home, session.study
    folder = out or home.reports(config.name) / "bundle"
    check_free(folder)
    found = session.front()
    jobs = session.jobs(found)
    if not (ordered := finalists(found, policy)):
        raise NothingConfirmedError(no_finalist(found, policy))
    with locked(home, config.name), stoppable():
        looks = looks_of(study)
        with open_workers(home.logs(config.name)) as workers:
            pairs, sides = PairedComparison(jobs, workers.builder, workers.meter, console), session.sides()
            console.say(f"choose: {len(ordered)} finalists; the tolerated loss is {policy.max_loss:.2%}")
            known = [(point, sides[point.trial]) for point in ordered]
            point, confirmed = choosing.confirm(pairs, known, looks, policy)
            gained = control(pairs, sides[point.trial])
            assert found.tuned_baseline is not None, "the baseline is measured, and it is one"
            tuned = tuned_ratios(pairs, point.trial, confirmed.measurement, found.tuned_baseline.trial, sides)
            confirmed = replace(confirmed, control=gained, tuned=tuned)
        _, candidate = side = sides[point.trial]
        why = choosing.reason(point, confirmed, policy, len(ordered))
        bundle_up(folder, pairs.jobs, side, confirmed, why, study.facts["machine"], policy)
        console.say("choose: registering the bundle with MLflow")
        session.level(console)
        tags = {"candidate": candidate.id, "reason": why[:500], "through": confirmed.measurement.latency.through}
        metrics = dict[str, float]()
        if gained is not None:
            tags["control"] = gained.sentence
            name, (low, high) = "test.distillation_gain", gained.gain_interval
            metrics = {name: gained.gain, f"{name}.low": low, f"{name}.high": high}
        version = session.ledger.register(config.name, folder, point.trial, tags, metrics)
        registered = None
        if version is not None:
            registered = {"name": version.name, "version": version.version, "alias": version.alias}
            if version.refused is not None:
                console.warn(f"version {version.version} of {version.name} is no {CHAMPION}: {version.refused}")
        chosen = choosing.choice(point, confirmed, folder, why, registered, policy.max_loss)
        study.note(chosen=choice_json(chosen))
        session.level(console)
    return chosen


def looks_of(study: Study) -> Looks:
    """Return the looks at test of a study, to which further ones are added; read within the study's lock."""
    study.refresh_facts()  # another process may have looked since
    known = (from_plain(Look, look) for look in study.facts.get("looks", []))
    return Looks(known, lambda looks: study.note(looks=to_plain(looks)))


def tuned_ratios(
    pairs: PairedComparison, trial: int, measured: Measurement, tuned: int, sides: Mapping[int, Side]
) -> TunedRatios | None:
    """Measure a confirmed trial's ratios to the tuned baseline, over a long window.

    Return None where the trial is the tuned baseline itself, or where the benchmark failed, which is reported.
    """
    if tuned == trial:
        return None
    latency, throughput, say = measured.latency, measured.throughput, pairs.console.say
    if tuned != 0:  # else no placement is better than the baseline's own, to which the ratios are known
        say(f"timing beside the tuned baseline, trial {tuned}, over a long window")
        try:
            timed = pairs.benchmark(sides[trial], "confirm", pairs.jobs.recording("confirm-tuned"), sides[tuned])
        except JobError as error:
            say(f"not timed beside the tuned baseline: {error}")
            return None
        latency, throughput = timed.latency, timed.throughput
    return TunedRatios(trial=tuned, **fields_in(TunedRatios, timing_numbers(latency, throughput)))


def control(pairs: PairedComparison, chosen: Side) -> DistillationGain | None:
    """Measure on test what distillation gains over the same model trained on the labels alone for as many epochs.

    Return None where the model learned nothing from the baseline, or where the measurement failed, which is reported.
    """
    without = next((part.without for part in techniques(chosen[1]) if part.name == "distillation"), None)
    if without is None:
        return None
    say = pairs.console.say
    say(f"control: the same model, learning from the labels alone for as long; both from {SEEDS} seeds")
    try:
        quality = pairs.quality(chosen, (pairs.built(without), without), "test")
    except (JobError, ValueError) as error:
        say(f"control: not measured: {error}")
        return None
    return distillation_gain(quality, "test", SEEDS)


def bundle_up(
    folder: Path, jobs: MeterJobs, side: Side, confirmed: Confirmed, why: str, machine: str, policy: Policy
) -> None:
    """Write the bundle of a confirmed point, with what `leanrec build` needs to do the same on a newer checkpoint."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    (artifact, candidate), config, prepared = side, jobs.config, jobs.prepared
    requests = read_requests(Path(prepared.holdout))
    measurement = {
        "study": config.name,
        "machine": machine,
        **to_plain(confirmed.measurement),
        "traffic": config.traffic.model_dump(mode="json"),
        ROW_QUANTILES: row_quantiles(requests),
        COSTS: _costs(jobs, candidate),
        "widths": dict(artifact.widths),
        "units": to_plain(artifact.units),
        "recipe": {
            "settings": config.model_dump(mode="json", exclude={"storage", "tracking_uri"}),  # may hold a password
            "policy": to_plain(policy),
            "made_of": made_of(prepared, candidate, artifact.int8_weight_bits),
            "looks": confirmed.looks,
            "encoding": prepared.encoding,
        },
    }
    card = render(
        "model_card.md.j2", config=config, candidate=candidate, artifact=artifact, confirmed=confirmed, reason=why,
        machine=machine,
    )  # fmt: skip
    write_bundle(
        folder, config.name, Path(jobs.task.home, artifact.path), candidate, measurement, prepared.inputs, card,
        cut_rows(requests[0], 0, EXAMPLE_ROWS), prepared.columns, artifact.int8_weight_bits,
    )  # fmt: skip


def _costs(jobs: MeterJobs, candidate: Candidate) -> list[Json]:
    """Return the cost of a request on a replica of each instance group; none where its curve was not measured."""
    known = CostModel(jobs, Home(Path(jobs.task.home)).service_curves(jobs.config.name))
    with suppress(KeyError):
        return [to_plain(replica_cost(curve)) for curve in known.curves(candidate)]
    return []


def made_of(prepared: Prepared, candidate: Candidate, weight_bits: Int8WeightBits | None) -> str:
    """Return a hash of the checkpoint and of what was done to it, which need not be done again.

    Args:
        weight_bits: of the weights of int8 products, None where there are none
    """
    return digest(prepared.key, candidate.id, weight_bits)
