"""Techniques that change or train the weights of a candidate."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from spaces.domains import Choice, Domain, Scalar, Suggester, draw, least, middle, pick
from spaces.serialization import added_later, digest, formerly
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder, TableForm
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import Pruning
from spaces.techniques.reshaping import Reshaping

# Settings of weights that have their shapes, and no training.
_UNTRAINED = Distillation(temperature=1.0, teacher_weight=0.0, epochs=0)
# Share of the epochs after which a training is evaluated early.
_EARLY = 4
# Prefix of the knob of each group that may train quantization-aware.
AWARE = "weights.quantization_aware"


@dataclass(frozen=True)
class Weights:
    """Techniques applied to the weights; the defaults are the baseline's own weights, unchanged.

    The stages run in the order of the fields. Shapes that no elastic network holds are trained separately, for as many
    epochs.

    quantization_aware: groups trained with the rounding of static int8 in the loop
    reference: name of a simple reference model in the baseline's place
    """

    architecture: Architecture | None = None
    quotient_remainder: tuple[QuotientRemainder, ...] = field(default=(), metadata=formerly("shared_rows"))
    mixed_dimensions: tuple[MixedDimensions, ...] = ()
    attention: Attention | None = None
    pruning: Pruning | None = None
    low_rank: LowRank | None = None
    distillation: Distillation | None = None
    quantization_aware: tuple[str, ...] = field(default=(), metadata=formerly("quantisation_aware"))
    reference: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantization_aware", tuple(sorted(self.quantization_aware)))
        if (self.reshaped or self.quantization_aware) and self.distillation is None:
            raise ValueError("Weights that differ from the baseline's are distilled, but got no distillation.")
        if self.reference is not None and self.distillation is not None:
            raise ValueError(f"A simple reference is taken as it is, but {self.reference!r} got a distillation.")
        if self.architecture is not None and self.pruning is not None:
            raise ValueError("A student has the sizes of its own, so it is not pruned, but got both.")
        if self.distillation is not None and self.elastic and not self.sliceable:
            object.__setattr__(self, "distillation", self.distillation.separate())
        tables = [form.group for form in self.table_forms]
        if len(set(tables)) != len(tables):
            raise ValueError(f"The tables of a group are held in one form, but got {tables}.")

    @property
    def table_forms(self) -> tuple[TableForm, ...]:
        return (*self.quotient_remainder, *self.mixed_dimensions)

    @cached_property
    def reshaping(self) -> Mapping[str, tuple[Reshaping, ...]]:
        """Fields of techniques that are applied before training, with their techniques."""
        found: dict[str, tuple[Reshaping, ...]] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value:
                values = value if isinstance(value, tuple) else (value,)
                if isinstance(values[0], Reshaping):
                    found[name] = values
        return found

    @property
    def techniques(self) -> tuple[Reshaping, ...]:
        """Techniques that are applied before training, in their order."""
        return tuple(technique for techniques in self.reshaping.values() for technique in techniques)

    @property
    def reshaped(self) -> bool:
        """Return True if any technique is applied before training."""
        return bool(self.reshaping)

    @property
    def elastic(self) -> bool:
        """Return True if the weights are a slice of an elastic network."""
        return self.distillation is not None and self.distillation.elastic_epochs > 0

    @property
    def sliceable(self) -> bool:
        """Return True if an elastic network holds the shape: a student's or a pruned model's."""
        return self.reshaping.keys() in ({"architecture"}, {"pruning"})

    @property
    def untrained(self) -> Weights:
        """The same shapes before training: what differs only in its training is the same."""
        if not self.reshaped:
            return self if self.distillation is None else Weights()
        pruning = None if self.pruning is None else replace(self.pruning, importance="magnitude", steps=1)
        return replace(self, pruning=pruning, distillation=_UNTRAINED, quantization_aware=())

    @property
    def early(self) -> Weights | None:
        """The same weights after a quarter of their epochs, at least one; None where there is no such point.

        There is none in a training of one epoch, one in several parts or cycles, or one that learns a projection of
        features besides.
        """
        learning = self.distillation
        in_parts = self.quantization_aware or self.elastic or (self.pruning is not None and self.pruning.steps > 1)
        in_parts = in_parts or self.previous is not None
        if learning is None or in_parts or learning.feature_weight > 0 or learning.stopped_after or learning.epochs < 2:
            return None
        return replace(self, distillation=replace(learning, stopped_after=max(1, learning.epochs // _EARLY)))

    @property
    def previous(self) -> Weights | None:
        """The weights that the last cycle of the training starts from; None where there is a single cycle.

        Quantization-aware training is part of the last cycle only.
        """
        learning = self.distillation
        if learning is None or learning.cycles == 1:
            return None
        return replace(self, distillation=replace(learning, cycles=learning.cycles - 1), quantization_aware=())

    @cached_property
    def trainings(self) -> tuple[Weights, ...]:
        """The weights after each cycle of their training, these last; none for the baseline's own weights."""
        if self.distillation is None:
            return ()
        previous = self.previous
        return (*(() if previous is None else previous.trainings), self)

    @property
    def first_cycle(self) -> Weights:
        """The weights after the first cycle of their training, which all longer trainings of them begin with."""
        return next(iter(self.trainings), self)

    @property
    def origin(self) -> str:
        if self.reference is not None:
            return self.reference.replace("_", " ")
        if self.architecture is not None:
            return "student"
        return "baseline" if self.distillation is None else "pruned"

    @property
    def id(self) -> str:
        return "w" + digest(self)[:12]

    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name."""
        knobs: dict[str, Scalar] = {"weights.origin": self.origin}
        for technique in self.techniques:
            knobs |= technique.knobs()
        if self.distillation is not None:
            knobs |= self.distillation.knobs()
            knobs |= {f"{AWARE}.{group}": True for group in self.quantization_aware}
        return knobs


FULL, SHARED, MIXED = "full", "quotient-remainder", "mixed-dimensions"
CYCLES = "distillation.cycles"
_NO, _ONCE, _MAGNITUDE = Choice((False,)), Choice((1,)), Choice(("magnitude",))
_NONE = Choice((0,))
# Fields of the space with a choice for each layer group, and the value that leaves the group whole.
_WHOLE: Mapping[str, Scalar] = {"low_rank": 1.0}
_BY_GROUP = ("pruning", *_WHOLE, "tables")


@dataclass(frozen=True)
class TableSpace:
    """Forms that the tables of a group may take, and the strength of each."""

    form: Choice
    full_rows_share: Domain
    temperature: Domain

    def __post_init__(self) -> None:
        unknown = set(self.form.values) - {FULL, SHARED, MIXED}
        if FULL not in self.form or unknown:
            raise ValueError(f"Tables are {FULL} at least, {SHARED} or {MIXED} too, but got {self.form.values}.")


@dataclass(frozen=True)
class WeightsSpace:
    """Domains by knob; a knob with a single value is fixed and not suggested.

    architecture: sizes of a student by name; a student with the sizes in `own` is the baseline
    pruning: share of units removed, by group; 0 leaves the group whole
    low_rank: share of the full rank that is kept, by group; 1 leaves the group whole
    multiple: pruning leaves a multiple of this number of units
    tables: forms of the tables, by group
    quantization_aware: quantization-aware training of each group in static int8
    window, history: limits of the attention, in positions; 0 is all
    distillation: domains of temperature, teacher_weight and feature_weight
    own: the baseline's sizes by name
    elastic_epochs: epochs of the elastic network of each origin that has one, whose shapes are sliced out of it
    fine_tuning: epochs of a slice by itself
    cycles: cycles of a training that is no slice's, from 1 on; each is of `epochs`
    """

    architecture: Mapping[str, Domain]
    pruning: Mapping[str, Domain]
    distillation: Mapping[str, Domain]
    epochs: int
    importance: Choice = _MAGNITUDE
    steps: Choice = _ONCE
    multiple: int = 16
    low_rank: Mapping[str, Choice] = field(default_factory=dict)
    tables: Mapping[str, TableSpace] = field(default_factory=dict)
    window: Choice = _NONE
    history: Choice = _NONE
    quantization_aware: Choice = _NO
    own: Mapping[str, Scalar] = field(default_factory=dict)
    elastic_epochs: Mapping[str, int] = field(default_factory=dict)
    fine_tuning: Choice = _NONE
    cycles: Choice = field(default=_ONCE, metadata=added_later())

    def __post_init__(self) -> None:
        wanted = {"temperature", "teacher_weight", "feature_weight"}
        if set(self.distillation) != wanted:
            raise ValueError(f"distillation has {', '.join(sorted(wanted))}, but got {sorted(self.distillation)}.")
        if list(self.cycles.values) != list(range(1, len(self.cycles.values) + 1)):
            raise ValueError(f"{CYCLES} must be 1, 2, and so on, but got {list(self.cycles.values)}.")
        for knob, (value, domain) in {**self._whole, AWARE: (False, self.quantization_aware)}.items():
            if value not in domain:
                raise ValueError(f"{knob} must offer the baseline's {value}, but got {list(domain.values)}.")

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """Origins of the weights on offer; `pruned` is any technique on the baseline's own weights."""
        settled = {n: d.values[0] for n, d in self.architecture.items() if isinstance(d, Choice) and len(d.values) == 1}
        choices = (self.window, self.history, self.quantization_aware)
        student = ("student",) if self.architecture and not self._is_own(settled) else ()
        pruned = any(getattr(self, name) for name in _BY_GROUP) or any(len(choice.values) > 1 for choice in choices)
        return ("baseline", *student, *(("pruned",) if pruned else ()))

    def within(self, groups: Collection[str]) -> WeightsSpace:
        """Return the space in which the techniques of single groups change no other group."""
        kept = {
            name: {group: domain for group, domain in getattr(self, name).items() if group in groups}
            for name in _BY_GROUP
        }
        return replace(self, **kept)  # type: ignore[arg-type]

    def starts(self) -> tuple[dict[str, Scalar], ...]:
        """Return the knob values of the middle student, pruned model and sparse attention, and of the smallest student.

        Each is alone; low rank, compressed tables and quantization-aware training are in none.
        """
        sparse = {"window": self.window, "history": self.history}
        whole = {knob: value for knob, (value, _) in self._whole.items()}
        whole |= {f"tables.{group}.form": FULL for group in self.tables}
        whole |= {f"pruning.{group}": least(domain) for group, domain in self.pruning.items()}
        whole |= {f"distillation.{name}": middle(domain) for name, domain in self.distillation.items()}
        whole |= {"distillation.fine_tuning": self.fine_tuning.values[0]} if self.elastic_epochs else {}
        whole |= {CYCLES: 1} if len(self.cycles.values) > 1 else {}
        whole |= {"pruning.importance": self.importance.values[0], "pruning.steps": self.steps.values[0]}
        roads = (
            ("student", "architecture", self.architecture, middle),
            ("pruned", "pruning", self.pruning, middle),
            ("pruned", "attention", {name: d for name, d in sparse.items() if len(d.values) > 1}, middle),
            ("student", "architecture", self.architecture, least),
        )
        taken = ((origin, prefix, {n: of(d) for n, d in domains.items()}) for origin, prefix, domains, of in roads)
        return tuple(
            whole | {f"{prefix}.{name}": value for name, value in chosen.items()} | {"weights.origin": origin}
            for origin, prefix, chosen in taken
            if chosen and not (origin == "student" and self._is_own(chosen))
        )

    def suggest(self, suggester: Suggester, static: tuple[str, ...]) -> Weights:
        """Suggest the weights; only the knobs that apply to the suggested origin are suggested.

        Args:
            static: the groups held in static int8, each of which may train quantization-aware
        """
        origin = suggester.suggest_categorical("weights.origin", self.origins)
        sizes = draw(self.architecture, suggester, "architecture") if origin == "student" else ()
        if origin == "baseline" or self._is_own(dict(sizes)):
            return Weights()
        shared, mixed = self._tables(suggester)
        attention, low_rank = self._attention(suggester), self._low_rank(suggester)
        network = 0 if shared or mixed or attention or low_rank else self.elastic_epochs.get(origin, 0)
        pruning = self._pruning(suggester, network > 0) if origin == "pruned" else None
        network = network if sizes or pruning else 0
        return Weights(
            architecture=Architecture(sizes) if sizes else None,
            quotient_remainder=shared,
            mixed_dimensions=mixed,
            attention=attention,
            pruning=pruning,
            low_rank=low_rank,
            distillation=self._distillation(suggester, network),
            quantization_aware=tuple(g for g in static if pick(self.quantization_aware, suggester, f"{AWARE}.{g}")),
        )

    @property
    def _whole(self) -> Mapping[str, tuple[Scalar, Choice]]:
        """Return the value that leaves the model as it is, and the choice, of each knob that must offer it."""
        attention: dict[str, tuple[Scalar, Choice]] = {
            "attention.window": (0, self.window),
            "attention.history": (0, self.history),
        }
        by_group = {f"{n}.{g}": (value, d) for n, value in _WHOLE.items() for g, d in getattr(self, n).items()}
        return by_group | attention

    def _is_own(self, sizes: Mapping[str, Scalar]) -> bool:
        """Compare sizes with the baseline's as text, since a study file's 64 equals the widths `64`."""
        return {n: str(v) for n, v in sizes.items()} == {n: str(v) for n, v in self.own.items()} and bool(sizes)

    def _tables(self, suggester: Suggester) -> tuple[tuple[QuotientRemainder, ...], tuple[MixedDimensions, ...]]:
        shared, mixed = [], []
        for group, space in sorted(self.tables.items()):
            form = pick(space.form, suggester, f"tables.{group}.form")
            if form == SHARED:
                share = space.full_rows_share.suggest(suggester, f"tables.{group}.full_rows_share")
                shared.append(QuotientRemainder(group, float(share)))
            if form == MIXED:
                temperature = space.temperature.suggest(suggester, f"tables.{group}.temperature")
                mixed.append(MixedDimensions(group, float(temperature)))
        return tuple(shared), tuple(mixed)

    def _attention(self, suggester: Suggester) -> Attention | None:
        window = pick(self.window, suggester, "attention.window")
        history = pick(self.history, suggester, "attention.history")
        window = 0 if history and window >= history else window  # the window covers everything that is read
        return Attention(window or None, history or None) if window or history else None

    def _pruning(self, suggester: Suggester, sliced: bool) -> Pruning | None:
        ratios = tuple((g, float(ratio)) for g, ratio in draw(self.pruning, suggester, "pruning") if float(ratio) > 0)
        if sliced or not ratios:  # the units of a slice are in order already
            return Pruning(ratios, multiple=self.multiple) if ratios else None
        importance = pick(self.importance, suggester, "pruning.importance")
        return Pruning(ratios, importance, int(pick(self.steps, suggester, "pruning.steps")), self.multiple)

    def _low_rank(self, suggester: Suggester) -> LowRank | None:
        drawn = draw(self.low_rank, suggester, "low_rank")
        shares = tuple((group, float(share)) for group, share in drawn if float(share) < 1)
        return LowRank(shares) if shares else None

    def _distillation(self, suggester: Suggester, network: int) -> Distillation:
        if network:  # the same for all of its slices
            temperature, weight = (float(middle(self.distillation[n])) for n in ("temperature", "teacher_weight"))
            epochs = int(pick(self.fine_tuning, suggester, "distillation.fine_tuning"))
            return Distillation(temperature, weight, epochs, elastic_epochs=network)
        weights = {name: self.distillation[name] for name in ("feature_weight", "teacher_weight")}
        drawn = {name: float(value) for name, value in draw(weights, suggester, "distillation")}
        taught = drawn["teacher_weight"] > 0  # else the temperature changes nothing
        temperature = pick(self.distillation["temperature"], suggester, "distillation.temperature") if taught else 1.0
        return Distillation(
            float(temperature),
            drawn["teacher_weight"],
            self.epochs,
            drawn["feature_weight"],
            cycles=int(pick(self.cycles, suggester, CYCLES)),
        )
